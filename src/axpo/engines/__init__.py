"""Engines sample tokens.

`transformers` samples in this process, `vllm` over HTTP, and `scripted` plays a script in tests and
dry runs.
"""
