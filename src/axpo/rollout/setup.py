"""From settings to a task, an engine and an agent; every name is checked before weights load."""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from axpo.algorithms.arpo import TOP_LOGPROBS
from axpo.config import (
    Config,
    ConfigError,
    McpSettings,
    ModelSettings,
    TaskSettings,
    ToolsSettings,
    UserError,
)
from axpo.config.extras import require
from axpo.engines.base import Engine
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Process, Server
from axpo.engines.vllm.server import start_servers
from axpo.folder import files_digest
from axpo.models.loading import Checkpoint, CheckpointError, load_checkpoint
from axpo.models.lora import WEIGHTS, adapter_settings, base_of, put_adapters, require_peft
from axpo.rollout.agent import Agent
from axpo.rollout.control import FAMILY
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Task
from axpo.tasks.grading import grade
from axpo.tasks.lab import CORPUS, GALLERY
from axpo.tools import make_tools
from axpo.tools.base import Tool
from axpo.tools.toolbox import Toolbox


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
    merged, adapter = Path(path) / "config.json", Path(path).parent / "adapter"
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


def torch_device(settings: ModelSettings) -> str:
    """Set this process's threads; returns the device."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device


def build_task(settings: TaskSettings) -> Task:
    """The recipe's task; raises `ConfigError` where its files or packages are missing."""
    if settings.name == "data":
        from axpo.tasks.data import DataTask

        return DataTask(settings)
    require("sklearn", 'task.name = "lab"')
    from axpo.tasks.lab.questions import LabTask

    return LabTask(settings.families)


def recipe_tools(config: Config) -> Toolbox:
    """The recipe's tools, those of its MCP servers after them, with their limits.

    Asks the servers what they have; raises `ConfigError` that names the setting.
    """
    try:
        settings = _with_lab_indexes(config.tools)
        tools = make_tools(config.rollout.tools, settings, config.rollout.max_seconds)
    except ValueError as error:
        raise ConfigError(f"rollout.tools: {error}") from error
    for name, tool in tools.items():
        _check_spec(tool, "rollout.tools", f"tool {name!r}")
    for place, server in enumerate(config.tools.mcp):
        for tool in _server_tools(server, f"tools.mcp.{place}"):
            _check_spec(tool, f"tools.mcp.{place}", f"tool {tool.name!r} of {server.address}")
            if tool.name in tools:
                raise ConfigError(
                    f"tools.mcp.{place}.prefix: there is a tool {tool.name!r} already; set a prefix"
                )
            tools[tool.name] = tool
    try:
        return Toolbox(tools, config.tools.limits)
    except ValueError as error:
        raise ConfigError(f"tools.limits: {error}") from error


def _with_lab_indexes(settings: ToolsSettings) -> ToolsSettings:
    """The settings with "lab" replaced by the shipped files."""
    search = settings.search
    shipped = {"corpus": CORPUS, "gallery": GALLERY}
    found = {name: str(path) for name, path in shipped.items() if getattr(search, name) == "lab"}
    return settings.model_copy(update={"search": search.model_copy(update=found)})


def tool_files(config: Config) -> dict[str, str]:
    """What the tools depend on beside the settings, file -> digest: indexes that they search, and
    the modules of one's own tools."""
    search = _with_lab_indexes(config.tools).search
    files = [Path(file) for file in (search.corpus, search.gallery) if file is not None]
    for name in config.rollout.tools:
        module, colon, _ = name.partition(":")
        spec = importlib.util.find_spec(module) if colon else None
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            files.append(Path(spec.origin))
    return {file.name: files_digest([file]) for file in files if file.is_file()}


def _check_spec(tool: Tool, key: str, what: str) -> None:
    """Refuse a tool whose name, description or schema would be control tokens in the prompt."""
    if (spelled := FAMILY.spelled(tool.spec)) is not None:
        raise ConfigError(
            f"{key}: {what} has the control token {spelled} in its description or schema, which "
            "would change what the prompt says; leave this tool out or change its text"
        )


def _server_tools(settings: McpSettings, key: str) -> Sequence[Tool]:
    require("mcp", key)
    from axpo.tools.mcp import server_tools

    try:
        return server_tools(settings)
    except UserError as error:
        raise ConfigError(f"{key}: {error}") from error


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
    folder = Path(tempfile.mkdtemp(prefix="axpo-vllm-")) if out is None else out / "vllm"
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
