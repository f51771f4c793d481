"""How far an engine's logprobs are from the trainer's, token by token, of any model.

`python -m benchmarks.numerics` samples as training does and compares (docs/numerics.md).
"""
