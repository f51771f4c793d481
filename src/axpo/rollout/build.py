"""From settings and a checkpoint to a model, an engine and an agent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from axpo.algorithms.arpo import TOP_LOGPROBS
from axpo.config import Config
from axpo.engines.base import Engine
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Process, Server
from axpo.engines.vllm.server import start_servers
from axpo.folder import CheckpointFolder, RunFolder
from axpo.models.device import torch_device
from axpo.models.loading import Checkpoint, CheckpointError, load_checkpoint
from axpo.models.lora import WEIGHTS, adapter_settings, base_of, put_adapters, require_peft
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.tasks.grading import grade
from axpo.tools.base import Tool


def load_model(config: Config, path: str | Path) -> Checkpoint:
    """The checkpoint at `path` on the settings' device, in their dtype, with what they ban; sets
    this process's threads. Raises `CheckpointError`."""
    device, dtype = torch_device(config.model), getattr(torch, config.model.dtype)
    return load_checkpoint(path, device, dtype, banned=config.rollout.banned)


def load_trained(config: Config, path: str | Path) -> Checkpoint:
    """The policy that was trained at `path`: `load_model`, but of a run with adapters in bfloat16
    the weights that it started from with the adapters beside `path` (`adapter/`), for the merged
    ones at `path` have lost most of a small change to rounding.

    Raises `CheckpointError`.
    """
    merged, adapter = Path(path) / "config.json", CheckpointFolder(Path(path).parent).adapter
    if not (adapter / WEIGHTS).is_file() or not merged.is_file():
        return load_model(config, path)
    if json.loads(merged.read_text()).get("dtype") == "float32":
        return load_model(config, path)
    require_peft()
    try:
        checkpoint = load_model(config, base_of(adapter))
    except CheckpointError as error:
        raise CheckpointError(
            f"{adapter} belongs to weights that are not there; {path} holds the merged ones, which "
            f"bfloat16 has rounded: copy them elsewhere to evaluate these ({error})"
        ) from error
    put_adapters(checkpoint.model, adapter)
    return checkpoint


def build_agent(
    config: Config, checkpoint: Checkpoint, tools: Mapping[str, Tool], out: Path | None = None
) -> Agent:
    """An agent that samples with `checkpoint`'s own weights, in this process or in vLLM servers.

    `out` is the run's folder, which gets the servers' logs. Starting servers takes a while;
    raises `UserError` where they do not start.
    """
    rendering = Rendering(checkpoint, tools, config.task.system)
    engine = build_engine(config, checkpoint, out)
    top_logprobs = TOP_LOGPROBS if config.algorithm.name == "arpo" else 0
    solved_at = config.task.solved
    return Agent(engine, rendering, tools, config.rollout, grade, top_logprobs, solved_at)


def starting_engine(config: Config) -> str:
    """What `build_agent` does that takes a while, in words."""
    vllm = config.engine.vllm
    if vllm is None or vllm.python is None:
        return "starting the engine"
    return f"starting {vllm.servers} vLLM server{'s' if vllm.servers > 1 else ''}"


def build_engine(config: Config, checkpoint: Checkpoint, out: Path | None = None) -> Engine:
    """The recipe's engine, with `checkpoint`'s weights as version 0."""
    settings = config.engine
    if settings.vllm is None:
        return TransformersEngine(checkpoint, settings.slots, settings.max_prefill_tokens)
    vllm = settings.vllm
    folder = Path(tempfile.mkdtemp(prefix="axpo-vllm-")) if out is None else RunFolder(out).vllm
    clients: list[tuple[str, Process | None]] = [(url, None) for url in vllm.urls]
    if vllm.python is not None:
        dtype, slots = config.model.dtype, settings.slots
        lora = adapter_settings(checkpoint.model)
        processes = start_servers(vllm, checkpoint, dtype, slots, folder, lora)
        clients = [(process.url, process) for process in processes]
    servers = [
        Server(Client(url, vllm.request_seconds, vllm.health_seconds), process)
        for url, process in clients
    ]
    return VllmEngine(
        checkpoint,
        servers,
        folder if vllm.folder is None else Path(vllm.folder),
        room=config.rollout.max_tokens,
        in_flight=config.rl.in_flight if config.rl.max_staleness else None,
        recovery_seconds=vllm.start_seconds,
        backend=None if vllm.transfer == "file" else vllm.transfer,
    )
