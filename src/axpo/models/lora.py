"""Low-rank adapters (LoRA, arXiv 2106.09685) by PEFT: W + (alpha / rank) B A, with W frozen.

Adapters are put into the model itself, whose class and module names stay; only its targeted linear
layers become PEFT's. B starts at 0, so the adapted model starts as the model itself. With its
adapters off it is that model at any time, so the KL reference needs no weights of its own. Engines
in other processes get A and B themselves (`adapter_weights`). Readers of checkpoints get plain
weights under the model's own names (`merged_weights`), which in bfloat16 lose most of a small
change: W + scale B A is rounded to one part in 256 of W.

There is no dropout, because sampler and trainer must have the same distribution, and because tokens
that branches share are computed once, and some tokens of pieces twice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from axpo.config import LoraSettings
from axpo.models.families import family_of

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
"""The names of PEFT's files."""
_ADAPTER = "default"
_PREFIX = "base_model.model."
"""PEFT's files put this before names of modules, because its own wrapper has them so."""


def targets(model: nn.Module, settings: LoraSettings) -> str:
    """A regular expression that matches the full names of the adapted layers of `model`."""
    family = family_of(model.config)
    text = rf"{family.text_layers}(?:{'|'.join(settings.targets)})"
    return rf"{text}|{family.vision_layers}" if settings.vision else text


def targeted_layers(model: nn.Module, settings: LoraSettings) -> list[nn.Linear]:
    """The layers of a model without adapters that `add_adapters` would adapt."""
    pattern = re.compile(targets(model, settings))
    return [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and pattern.fullmatch(name)
    ]


def add_adapters(model: nn.Module, settings: LoraSettings, base: str, seed: int) -> None:
    """Put adapters into `model`, in the model's dtype.

    A is drawn by `seed`. `base` is the path or Hub id that PEFT's files will name. A model on the
    meta device gets adapters on the CPU, with their values.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=targets(model, settings),
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(devices=[]), _present(targeted_layers(model, settings)):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model, _ADAPTER)


@contextmanager
def _present(layers: Iterable[nn.Linear]) -> Iterator[None]:
    """Within the context, weights on the meta device are on the CPU, where they take no memory.

    PEFT draws adapters there and moves them to where their layer's weight is.
    """
    weights = [(layer, layer.weight) for layer in layers if layer.weight.is_meta]
    for layer, weight in weights:
        nothing = torch.zeros((), dtype=weight.dtype).expand(weight.shape)
        layer.weight = nn.Parameter(nothing, requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in weights:
            layer.weight = weight


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The model's layers with an adapter (PEFT's `LoraLayer`), by name; empty without adapters."""
    if not hasattr(model, "peft_config"):
        return {}
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def adapters_of(layer: nn.Module) -> list[tuple[nn.Linear, nn.Linear, float]]:
    """A, B and their scale, by which the layer's result changes; empty if it has none or they are
    off."""
    if getattr(layer, "disable_adapters", True):
        return []
    found: Any = layer
    return [(found.lora_A[_ADAPTER], found.lora_B[_ADAPTER], found.scaling[_ADAPTER])]


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The matrices A and B of every adapter."""
    return [
        matrix[_ADAPTER].weight
        for layer in adapted_layers(model).values()
        for matrix in (layer.lora_A, layer.lora_B)
    ]


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Within the context, `model` computes without its adapters."""
    layers = adapted_layers(model).values()
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merged_weights(
    model: nn.Module, weights: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The items of `weights`, a state dict of `model`, for the same model without adapters.

    A weight that an adapter changes becomes a new tensor on the CPU: W + scale B A in float32,
    rounded to W's dtype. All other tensors are passed on unchanged.
    """
    layers = adapted_layers(model)
    for name in weights:
        if (plain := plain_name(name, layers)) is None:
            continue
        tensor, owner = weights[name], plain.removesuffix(".weight")
        if owner in layers and owner != plain:
            down = weights[f"{owner}.lora_A.{_ADAPTER}.weight"].float()
            up = weights[f"{owner}.lora_B.{_ADAPTER}.weight"].float()
            change = layers[owner].scaling[_ADAPTER] * (up @ down)
            tensor = (tensor.float() + change).to(tensor.dtype).cpu()
        yield plain, tensor


def plain_name(name: str, layers: Container[str]) -> str | None:
    """The name, in the model without adapters, of its weight `name`; None for an adapter's own.

    `layers` are the names of those with adapters.
    """
    owner, _, rest = name.rpartition(".base_layer.")
    if owner in layers:
        return f"{owner}.{rest}"
    return None if name.partition(".lora_")[0] in layers else name


def adapter_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The matrices A and B in `weights`, a model's state dict, by the names of PEFT's files."""
    return {
        f"{_PREFIX}{name.replace(f'.{_ADAPTER}.', '.')}": weights[name]
        for name in weights
        if f".lora_A.{_ADAPTER}." in name or f".lora_B.{_ADAPTER}." in name
    }


def adapted_names(weights: Iterable[str]) -> list[str]:
    """The names of the layers with adapters, from the names in a state dict."""
    found = (name.partition(f".lora_A.{_ADAPTER}.") for name in weights)
    return [layer for layer, sign, _ in found if sign]


def adapter_settings(model: nn.Module) -> LoraSettings | None:
    """The adapters of `model` as settings; None if it has none."""
    layers = list(adapted_layers(model))
    if not layers:
        return None
    config: Any = model.peft_config
    rank, alpha = config[_ADAPTER].r, config[_ADAPTER].lora_alpha
    in_vision = family_of(model.config).in_vision
    text = sorted({name.rpartition(".")[2] for name in layers if not in_vision(name)})
    vision = any(map(in_vision, layers))
    return LoraSettings.model_validate(
        {"rank": rank, "alpha": alpha, "targets": text, "vision": vision}
    )


@torch.no_grad()
def served_share(
    trained: Mapping[str, torch.Tensor], served: Mapping[str, torch.Tensor], scale: float
) -> float:
    """The share of the adapters' change that reaches an engine that was given `served`.

    The trained change of a layer is D = scale B A of `trained` (`adapter_weights`), as the
    learner's forward computes it. The served change S is the same for `served`, the matrices as
    they were handed over, with scale B rounded to B's dtype, as vLLM does. The share is
    <S, D> / <D, D>, both summed over all adapted layers. It is 1 if everything is carried or
    nothing has changed yet, and 0 if the engine samples with the weights below the adapters.

    No product of the weights' size is computed: <S, D> is the sum of the elements of
    (B_S^T B_D) * (A_S A_D^T), which are rank x rank.
    """
    carried = whole = 0.0
    for name in trained:
        if ".lora_A." not in name:
            continue
        names = [name, name.replace(".lora_A.", ".lora_B.")]
        down, up = (trained[n].float() for n in names)
        down_served, up_served = (served[n].to(down.device) for n in names)
        up_served, up = (up_served * scale).float(), up * scale
        whole += ((up.T @ up) * (down @ down.T)).double().sum()
        carried += ((up_served.T @ up) * (down_served.float() @ down.T)).double().sum()
    return float(carried / whole) if whole else 1.0


def save_adapters(model: nn.Module, folder: Path, adapters: Mapping[str, torch.Tensor]) -> None:
    """Write `adapters` (`adapter_weights` of `model`) as PEFT's
    `PeftModel.from_pretrained(base, folder)` reads them."""
    folder.mkdir(parents=True)
    found = {name: tensor.cpu().contiguous() for name, tensor in adapters.items()}
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})
    config: Any = model.peft_config
    config[_ADAPTER].save_pretrained(folder)


def base_of(folder: Path) -> str:
    """The path or Hub id of the weights to which the adapters in `folder` belong."""
    return str(json.loads((folder / CONFIG).read_text())["base_model_name_or_path"])


def put_adapters(model: nn.Module, folder: Path) -> None:
    """Put the adapters in `folder` into `model`, which has none and is their base."""
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), model, _ADAPTER)
    load_adapters(model, folder)


@torch.no_grad()
def load_adapters(model: nn.Module, folder: Path) -> None:
    """Load what `save_adapters` wrote; raises `ValueError` if it does not fit `model`."""
    own, stored = adapter_weights(model.state_dict()), load_file(folder / WEIGHTS)
    shapes = {name: tensor.shape for name, tensor in own.items()}
    if {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise ValueError(
            f"{folder} holds {len(stored)} matrices of other adapters, expected {len(own)}: "
            "resume with the model.lora that it was trained with"
        )
    check_base(model, folder)
    for name, tensor in own.items():
        tensor.copy_(stored[name])


def check_base(model: nn.Module, folder: Path) -> None:
    """Raise `ValueError` if the adapters in `folder` do not belong to the weights of `model`."""
    config: Any = model.peft_config
    if (base := base_of(folder)) != (start := config[_ADAPTER].base_model_name_or_path):
        raise ValueError(f"{folder} adapts {base}, this run starts from {start}: give it that one")
