"""Engines sample tokens.

`transformers` in this process, `vllm` over HTTP, `scripted` for tests and demonstrations.
"""
