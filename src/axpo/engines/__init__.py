"""Engines sample tokens: `scripted` for tests and demonstrations, `transformers` in-process."""
