"""Moves host tensors to the model's device without waiting for it."""

from __future__ import annotations

import torch


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; the host does not wait until a GPU has it.

    Only page-locked memory can be copied while the host goes on. PyTorch keeps such memory for
    the next call and reuses it once the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
