"""How much of a card vLLM servers take when they are started, and how much KV cache that holds.

A server takes its share of a card when it starts and keeps it: the weights come first, the rest is
KV cache. If it has several cards, each holds a part of its weights and of its KV cache. Servers
take the first cards that this process sees, so several servers share the same card.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import torch

from axpo.costs import memory
from axpo.engines.base import Servers
from axpo.engines.vllm.settings import CPU_CACHE, Vllm
from axpo.errors import ConfigError
from axpo.models.card import Card
from axpo.wording import in_units

UTILIZATION = 0.92
"""The --gpu-memory-utilization that vLLM 0.32 uses by default."""


def started_servers(
    settings: Vllm, model: Any, dtype: str, card: Card, device: str
) -> Servers | None:
    """The servers that this process starts on the card of `device`; None if there are none.

    `model` needs shapes only. Raises `ConfigError` if a server's share of the card does not hold
    the weights and one path of `engine.max_length`.
    """
    if settings.python is None:
        return None
    what = "vLLM server" if settings.servers == 1 else f"{settings.servers} vLLM servers"
    text, size = model.config.get_text_config(), getattr(torch, dtype).itemsize
    token = memory.keys_values(text, 1, size)
    weights = size * sum(p.numel() for p in model.parameters())
    if not card.gpu:
        space = os.environ.get(CPU_CACHE) or "1"
        cache = int(space) * 2**30 if space.isdigit() else 0
        return Servers(what, settings.servers, weights + cache, weights, token)
    assert card.whole is not None
    taken, cards = _memory_arguments(settings.arguments)
    share = int(taken * card.whole)
    servers = Servers(what, settings.servers, share, -(-weights // cards), -(-token // cards))
    if servers.room < settings.max_length:
        path = settings.max_length * servers.token
        raise ConfigError(
            f"engine.arguments: a server has {in_units(servers.share)} of its card "
            f"(--gpu-memory-utilization={taken:g}); its weights take {in_units(servers.weights)} "
            f"and one path of engine.max_length = {settings.max_length} tokens "
            f"{in_units(path)} of KV cache: give it more than "
            f"{(servers.weights + path) / card.whole:.2f}, or lower engine.max_length"
        )
    _, _, index = device.partition(":")
    return servers if int(index or 0) < cards else None


def _memory_arguments(arguments: Sequence[str]) -> tuple[float, int]:
    """A server's share of each of its cards, and the number of cards, as vLLM reads its arguments.

    Raises `ConfigError` for values that vLLM would refuse.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--gpu-memory-utilization", type=float, default=UTILIZATION)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", "-pp", type=int, default=1)
    dashed: list[str] = []
    for argument in arguments:  # vLLM accepts underscores in names as well.
        name, equals, value = argument.partition("=")
        long = name.startswith("--")
        dashed.append(f"{name.replace('_', '-')}{equals}{value}" if long else argument)
    try:
        found, _ = parser.parse_known_args(dashed)
    except argparse.ArgumentError as error:
        raise ConfigError(f"engine.arguments: {error}") from None
    taken, cards = found.gpu_memory_utilization, found.tensor_parallel_size
    cards *= found.pipeline_parallel_size
    if not 0 < taken <= 1 or cards < 1:
        raise ConfigError(
            f"engine.arguments: --gpu-memory-utilization={taken:g} of {cards} cards; expected "
            "a share above 0 and up to 1, of at least one"
        )
    return taken, cards
