"""Makes running servers, and the engine that asks them, from a recipe's settings."""

from __future__ import annotations

from pathlib import Path

from axpo.engines.base import Start
from axpo.engines.vllm.checks import TrainedModel, dtype_name
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.server import ServerProcess, start_servers
from axpo.engines.vllm.settings import Vllm


def start_engine(settings: Vllm, start: Start) -> VllmEngine:
    """Start the recipe's servers of the model, or go to those at `urls`.

    Raises `UserError` where they do not start.
    """
    trained = TrainedModel.of(start.checkpoint)
    processes: list[ServerProcess] = []
    if settings.python is not None:
        dtype = dtype_name(trained.dtype)
        processes = start_servers(settings, trained.processor, dtype, start.folder, trained.lora)
    started = [(process.url, process) for process in processes]
    servers = [
        Server(Client(url, settings.request_seconds, settings.health_seconds), process)
        for url, process in (*started, *((url, None) for url in settings.urls))
    ]
    return VllmEngine(
        trained,
        servers,
        start.folder if settings.folder is None else Path(settings.folder),
        room=start.room,
        in_flight=start.in_flight,
        recovery_seconds=settings.start_seconds,
        backend=None if settings.transfer == "file" else settings.transfer,
    )
