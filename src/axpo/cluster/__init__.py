"""A run on many GPUs and machines: Ray places its processes, and tells when one is lost.

`nodes` looks at every machine before anything is loaded, and waits for room; `servers` are vLLM's.
Only here is Ray imported, and only where a recipe has `[cluster]`.
"""
