"""A recipe's memory against its card: parts that are certain, upper bounds, the servers' share.

Servers start after this sum is made, so their share still counts as free memory. In a cluster they
have cards of their own, and the sum is that of a trainer's card.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from axpo.config import Config
from axpo.costs.estimate import MemoryEstimate, estimate
from axpo.costs.sizes import Loop
from axpo.models.card import Card, recipe_card
from axpo.tree import Segment
from axpo.wording import in_units, listed

if TYPE_CHECKING:
    from axpo.engines.base import Servers


CLOSING = "buffer in which gradients are reduced, after the passes"
"""What `MemoryEstimate.closing` is called."""
LEAST_BUDGET = 256
"""The fewest tokens of a pass that are proposed (choice)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The memory that `loop` (`found`), `servers` and the `judge`'s server take, on `card`."""

    loop: Loop
    found: MemoryEstimate
    card: Card
    servers: Servers | None
    judge: int = 0

    @property
    def taken(self) -> int:
        """The bytes of the trainer's card that servers take, with the judge's."""
        beside = self.servers is not None and self.loop.config.cluster is None
        return self.judge + (self.servers.taken if self.servers and beside else 0)

    @property
    def total(self) -> int:
        """The bytes of the card that may be needed at the worst moment."""
        return self.found.total + self.taken

    @property
    def at_once(self) -> int:
        """The number of rollouts of the longest path that are sampled at once."""
        slots = self.loop.config.engine.slots
        if self.servers is None:
            return slots
        return self.servers.count * max(1, min(slots, self.servers.room // self.found.sizes.path))

    @property
    def exceeds(self) -> bool:
        """Whether the upper bound is above the card's memory."""
        return self.card.memory is not None and self.total > self.card.memory

    @property
    def refusal(self) -> str:
        """Why the memory of every update does not fit beside the servers; empty if it does."""
        found, card, taken = self.found, self.card, self.taken
        if card.memory is None or found.weights <= card.memory - taken:
            return ""
        ways = ["name a larger card" if card.named else "free some memory"]
        if self.loop.config.cluster is not None:
            ways.append("spread it over more GPUs (cluster.trainers, cluster.shard)")
        elif card.gpu:
            ways.append("lay a recipe for more GPUs over it (docs/cluster.md)")
        if self.servers and self.taken > self.judge:
            ways.append("lower the servers' --gpu-memory-utilization (engine.arguments)")
        if self.judge:
            ways.append("lower judge.vllm.share")
        if self.loop.config.model.lora is None:
            ways.append("train adapters (model.lora)")
            if self.loop.trains_vision:
                ways.append(f"set {self.loop.kind}.optimizer.freeze_vision")
        sizes = {**found.parts, CLOSING: found.closing}
        parts = ", ".join(f"{name} {in_units(size)}" for name, size in sizes.items() if size)
        beside = f", of which servers take {in_units(taken)}" if taken else ""
        return (
            f"model: every update needs {in_units(found.weights)} whatever is sampled ({parts}); "
            f"there are {card.what}{beside}: {listed(ways, 'or')}"
        )


def account(loop: Loop, prompt: Segment, device: str) -> Account:
    """Add up what the loop needs on its card if `prompt` is the longest prompt.

    Raises `ConfigError` if servers have too small a share of it for themselves.
    """
    config, card = loop.config, recipe_card(loop.config.model, device)
    servers, judge = None, 0
    if loop.kind == "rl":
        servers = config.engine.taken(loop.model, config.model.dtype, card, device)
        judge = judge_share(config, card)
    if servers is not None and config.cluster is not None:
        servers = replace(servers, count=config.cluster.servers)
    found = estimate(loop, prompt, card.gpu)
    return Account(loop=loop, found=found, card=card, servers=servers, judge=judge)


def fitting_budget(told: Account, prompt: Segment) -> int | None:
    """The recipe's max_tokens_per_micro_batch, halved until the upper bound fits the card; None if
    none of at least `LEAST_BUDGET` does. The smaller the pieces of a tree, the less memory they
    take, and the more of the tree goes forward twice."""
    loop, budget = told.loop, told.found.budget
    while told.exceeds and budget >= 2 * LEAST_BUDGET:
        budget //= 2
        section = getattr(loop.config, loop.kind)
        update = {"max_tokens_per_micro_batch": budget}
        section = section.model_copy(
            update={"optimizer": section.optimizer.model_copy(update=update)}
        )
        smaller = replace(loop, config=loop.config.model_copy(update={loop.kind: section}))
        found = estimate(smaller, prompt, told.card.gpu)
        told = replace(told, loop=smaller, found=found)
    return None if told.exceeds else budget


def judge_share(config: Config, card: Card) -> int:
    """Bytes of the card that a server which is started for the judge takes."""
    server = config.judge.vllm if config.judge else None
    if server is None or server.cards is not None or not card.gpu:
        return 0
    assert card.whole is not None
    return int(server.share * card.whole)
