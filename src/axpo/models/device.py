"""The device on which a process computes, and the copy of host tensors to it."""

from __future__ import annotations

import torch

from axpo.config import ModelSettings
from axpo.errors import ConfigError, MissingError


def torch_device(settings: ModelSettings) -> str:
    """Set this process's number of threads; return the device's name.

    Raises `ConfigError` for a device that torch does not know, and `MissingError` for one that this
    machine does not have.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(settings.device)
    except RuntimeError:
        raise ConfigError(
            f"model.device: {settings.device!r} is no device of torch; expected 'auto', 'cpu', "
            "'cuda' or 'cuda:0'"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = "" if torch.version.cuda or torch.version.hip else ", which is built without CUDA,"
        raise MissingError(
            f"model.device: {settings.device!r}, but torch {torch.__version__}{why} sees "
            f"{torch.cuda.device_count() or 'no'} GPU on this machine: set it to 'cpu' or 'auto', "
            "or install a torch that fits this machine's driver"
        )
    return settings.device


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`tensor` on `device`; the host does not wait until a GPU has received it.

    Only page-locked memory can be copied while the host goes on. PyTorch keeps such memory for
    the next call and reuses it once the copy is done.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
