"""Starts vLLM servers with the engine that asks them, or in the foreground for `axpo serve`, to
which other commands connect."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from axpo.config import Config
from axpo.engines.base import Start
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.process import Process, stop_all
from axpo.engines.vllm.server import start_servers
from axpo.engines.vllm.settings import VLLM_ENVIRONMENT, Vllm
from axpo.errors import ConfigError, Stopped, UserError
from axpo.models.card import recipe_card
from axpo.models.device import torch_device
from axpo.models.loading import load_processor
from axpo.models.shapes import without_weights

LOOK_SECONDS = 1.0
"""Seconds between two checks that the servers still run."""


def start_engine(settings: Vllm, start: Start) -> VllmEngine:
    """Start the recipe's servers of the model, or connect to those at `urls`.

    Raises `UserError` if they do not start.
    """
    trained = None if start.checkpoint is None else TrainedModel.of(start.checkpoint)
    processes: Sequence[Process] = []
    if settings.python is not None:
        lora = None if trained is None else trained.lora
        processes = start_servers(
            settings, start.processor, start.dtype, start.folder, lora, start.servers
        )
    started = [(process.url, process) for process in processes]
    servers = [
        Server(Client(url, settings.request_seconds, settings.health_seconds), process)
        for url, process in (*started, *((url, None) for url in settings.urls))
    ]
    return VllmEngine(
        trained or start.processor,
        servers,
        Path(settings.folder) if settings.folder else start.shared or start.folder,
        room=start.room,
        slots=settings.slots,
        in_flight=start.in_flight,
        recovery_seconds=settings.start_seconds,
        backend=None if settings.transfer == "file" else settings.transfer,
    )


def start(config: Config, model: str, say: Callable[[str], None]) -> Sequence[Process]:
    """Start the recipe's servers, which takes a while; `say` gets messages about the progress."""
    settings = config.engine
    if not isinstance(settings, Vllm) or settings.python is None:
        raise ConfigError(
            "engine.python: expected the python of vLLM's environment to serve with; set it, "
            f"and engine.name = 'vllm' ({VLLM_ENVIRONMENT})"
        )
    logs = Path("runs/vllm")
    say(f"starting {settings.servers} vLLM server(s) of {model}; logs in {logs}")
    processor = load_processor(model)
    device = torch_device(config.model)
    dtype, lora = config.model.dtype, config.model.lora
    card = recipe_card(config.model, device)
    settings.taken(without_weights(processor.config), dtype, card, device)
    return start_servers(settings, processor, dtype, logs, lora)


def serve(servers: Sequence[Process]) -> None:
    """Print the lines for other recipes, and wait until the command is stopped.

    Raises `UserError` if a server ends by itself.
    """
    addresses = ", ".join(f'"{server.url}"' for server in servers)
    print('Ready. In other recipes:\n\n[engine]\nname = "vllm"')
    print(f"urls = [{addresses}]\n\nCtrl-C stops it.", flush=True)
    try:
        while True:
            for server in servers:
                if failure := server.failure():
                    raise UserError(f"the vLLM server at {server.url} is gone: {failure}")
            time.sleep(LOOK_SECONDS)
    except Stopped:
        print("Stopping.")
    finally:
        stop_all(servers)
