"""Loads a checkpoint, and holds what engine and trainer share of the model."""
