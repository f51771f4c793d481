"""vLLM servers that axpo starts: their environment, and the arguments that training needs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from axpo.config import LoraSettings
from axpo.costs import memory
from axpo.engines.vllm.checks import lora_arguments, refused_heads
from axpo.engines.vllm.process import (
    MODULE,
    Installation,
    Place,
    Process,
    ServerProcess,
    find_installation,
    free_port,
    start_all,
)
from axpo.engines.vllm.settings import CPU_CACHE, Vllm
from axpo.errors import ConfigError
from axpo.models.families.base import head_dim
from axpo.models.loading import Processor
from axpo.models.vision import seen_limits


def fitting_installation(settings: Vllm, model: Any, dtype: str) -> Installation:
    """The vLLM of `settings`, if it can serve a model with the config `model`.

    Raises `ConfigError` for settings that would kill a server on a CPU.
    """
    assert settings.python is not None
    found = find_installation(settings.python)
    if not found.cpu:
        return found
    text = model.get_text_config()
    if refused := refused_heads(head_dim(text)):
        raise ConfigError(f"engine.name: {refused}")
    space = os.environ.get(CPU_CACHE) or "1"
    size = getattr(torch, dtype).itemsize
    needed = memory.keys_values(text, settings.max_length, size) / 2**30
    if not space.isdigit() or int(space) < needed:
        raise ConfigError(
            f"engine.max_length: {settings.max_length} tokens of this model need {needed:.2f} "
            f"GiB of KV cache, a server on a CPU has {CPU_CACHE} = {space}: set that environment "
            f"variable to at least {math.ceil(needed)} (GiB), or lower engine.max_length"
        )
    return found


def arguments(
    installation: Installation,
    settings: Vllm,
    processor: Processor,
    dtype: str,
    lora: LoraSettings | None = None,
) -> list[str]:
    """The arguments that training (with `lora` of adapters) needs, then the recipe's, which win.

    The output layer computes as a trainer's on the same kind of device does (`axpo.models.head`).
    """
    here = Path(processor.path).is_dir()
    path = str(Path(processor.path).absolute()) if here else processor.path  # else a Hub id
    needed = [
        "--model", path, "--served-model-name", "policy",
        "--dtype", dtype, "--max-model-len", str(settings.max_length),
        "--max-num-seqs", str(settings.slots), "--scheduling-policy", "priority",
        "--generation-config", "vllm",
        "--enable-scale-out", "--enable-prompt-tokens-details",
        "--logprobs-mode", "processed_logprobs",
        "--hf-overrides", json.dumps({"head_dtype": dtype if installation.cpu else "float32"}),
        "--worker-extension-cls", f"{MODULE}.Extension",
        "--weight-transfer-config", json.dumps({"backend": "axpo"}),
    ]  # fmt: skip
    if processor.family.sees:
        size = seen_limits(processor.image_processor)
        needed += [
            "--limit-mm-per-prompt", json.dumps({"video": 0}),
            "--mm-processor-kwargs", json.dumps({"size": size}),
        ]  # fmt: skip
    if installation.cpu:
        needed += cpu_arguments(settings.max_length)
    if lora is not None:
        needed += lora_arguments(lora.rank, lora.vision)
    return [*needed, *settings.arguments]


def cpu_arguments(max_length: int) -> list[str]:
    """What a server on a CPU needs: seeded requests beside a chunked prefill kill the engine."""
    return [
        "--no-enable-chunked-prefill", "--block-size", "32", "--enforce-eager",
        "--max-num-batched-tokens", str(max(8192, max_length)),
    ]  # fmt: skip


def start_servers(
    settings: Vllm,
    processor: Processor,
    dtype: str,
    logs: Path,
    lora: LoraSettings | None = None,
    place: Place | None = None,
) -> Sequence[Process]:
    """Start the recipe's servers of the processor's checkpoint as it is on disk; wait for all.

    They run on this machine, or where `place` makes them. With `lora` they take such adapters.
    Raises `ConfigError` if vLLM is missing or cannot serve the model, and `UserError` with the end
    of the log if a server does not start; then none is left running.
    """
    installation = fitting_installation(settings, processor.config, dtype)
    options = arguments(installation, settings, processor, dtype, lora)
    servers = (place or _local(settings))(installation, options, logs)
    start_all(servers, settings.start_seconds, "engine")
    return servers


def _local(settings: Vllm) -> Place:
    """Makes the servers on this machine."""

    def make(installation: Installation, arguments: Sequence[str], logs: Path) -> list[Process]:
        every = range(settings.servers)
        ports = [settings.port + i if settings.port else free_port() for i in every]
        return [
            ServerProcess(installation, arguments, port, logs / f"vllm-{i}.log")
            for i, port in enumerate(ports)
        ]

    return make
