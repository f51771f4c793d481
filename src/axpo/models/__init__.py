"""Loads a Qwen3-VL checkpoint, and holds what engine and trainer share of the model."""
