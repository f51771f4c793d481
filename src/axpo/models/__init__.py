"""Loading a Qwen3-VL checkpoint and what engine and trainer share of it."""
