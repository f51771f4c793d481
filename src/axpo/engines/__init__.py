"""Engines sample tokens.

`transformers` samples in this process, `vllm` over HTTP; `scripted` plays a script in tests, and
the turns of a teacher's demonstration.
"""
