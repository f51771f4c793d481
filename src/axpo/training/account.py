"""The sum of a recipe's memory against its card: certain parts, upper bounds, the servers' share.

Servers are started after this sum is made, so their share is not yet missing from what is free.
"""

from __future__ import annotations

from dataclasses import dataclass

from axpo.config import Config
from axpo.engines.base import Servers
from axpo.models.card import Card, in_units, recipe_card
from axpo.training.estimate import Estimate, Kind, Shaped, estimate, optimizer_settings
from axpo.tree import Segment


@dataclass(frozen=True, slots=True)
class Account:
    """What the trainer needs (`found`) and `servers` take of `card`.

    `refusal` says why it cannot fit, empty where it can.
    """

    found: Estimate
    card: Card
    servers: Servers | None
    refusal: str

    @property
    def taken(self) -> int:
        """Bytes of the card that servers take."""
        return self.servers.taken if self.servers else 0

    @property
    def total(self) -> int:
        """Bytes of the card that may be needed at the worst moment."""
        return self.found.total + self.taken

    def at_once(self, slots: int) -> int:
        """Rollouts of the longest path that are sampled at once where `slots` of them may be."""
        if self.servers is None:
            return slots
        return self.servers.count * max(1, min(slots, self.servers.room // self.found.sizes.path))

    @property
    def exceeds(self) -> bool:
        """Whether the upper bound is above what the card has."""
        return self.card.memory is not None and self.total > self.card.memory


def account(config: Config, kind: Kind, shaped: Shaped, prompt: Segment, device: str) -> Account:
    """Add up what `config` needs on its card with a longest prompt such as `prompt`.

    Raises `ConfigError` where servers have too small a share of it for themselves.
    """
    card = recipe_card(config.model, device)
    found = estimate(config, kind, shaped, prompt, card.gpu)
    servers = None
    if kind == "rl":
        servers = config.engine.taken(shaped.model, config.model.dtype, card, device)
    return Account(found, card, servers, _refusal(config, kind, found, card, servers))


def _refusal(
    config: Config, kind: Kind, found: Estimate, card: Card, servers: Servers | None
) -> str:
    """Why what is there at every update does not fit beside the servers; empty where it does."""
    taken = servers.taken if servers else 0
    if card.memory is None or found.weights <= card.memory - taken:
        return ""
    ways = ["name a larger card" if card.named else "free some memory"]
    if taken:
        ways.append("lower the servers' --gpu-memory-utilization (engine.arguments)")
    if config.model.lora is None:
        ways.append("train adapters (model.lora)")
        if not optimizer_settings(config, kind).freeze_vision:
            ways.append(f"set {kind}.optimizer.freeze_vision")
    parts = ", ".join(f"{name} {in_units(size)}" for name, size in found.parts.items() if size)
    beside = f", of which servers take {in_units(taken)}" if taken else ""
    return (
        f"model: every update needs {in_units(found.weights)} whatever is sampled ({parts}); there "
        f"are {card.what}{beside}: {', '.join(ways[:-1])}{' or ' if ways[1:] else ''}{ways[-1]}"
    )
