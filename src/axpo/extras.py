"""The packages that are installed apart, as extras of axpo, and how each is asked for."""

from __future__ import annotations

import importlib.util

from axpo.errors import MissingError

PACKAGES = {
    "accelerate": ("Accelerate", "gguf"),
    "datasets": ("datasets", "data"),
    "gguf": ("gguf", "gguf"),
    "imagehash": ("ImageHash", "search"),
    "mcp": ("the MCP SDK", "mcp"),
    "peft": ("PEFT", "lora"),
    "ray": ("Ray", "cluster"),
    "reasoning_gym": ("reasoning-gym", "gym"),
    "sklearn": ("scikit-learn", "lab"),
    "tavily": ("tavily-python", "search"),
    "tensorboard": ("TensorBoard", "tracking"),
}
"""Module -> what it is called, and the extra that brings it."""


def require(module: str, key: str) -> None:
    """Raise `MissingError` where `module`, which the setting `key` asks for, is not installed."""
    if importlib.util.find_spec(module) is None:
        name, extra = PACKAGES[module]
        raise MissingError(f"{key}: needs {name}, which is not here: pip install 'axpo[{extra}]'")
