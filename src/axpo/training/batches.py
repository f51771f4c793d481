"""Turns an update's groups into micro-batches: packed trees with what is trained and shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image
from torch.utils.hooks import RemovableHandle

from axpo.errors import TreeError
from axpo.models.families import family_of
from axpo.models.loading import Checkpoint, Processor
from axpo.models.vision import Pixels
from axpo.training.items import Item, Size, item_weights, items
from axpo.training.objective import Objective
from axpo.training.packing import OldLogprobs, PackedTree, pack
from axpo.training.pieces import plain_logprobs, plan
from axpo.training.policy import idle_pass
from axpo.training.ranks import ALONE, Kind, Ranks, shares
from axpo.tree import Group


@dataclass(frozen=True, slots=True)
class Work:
    """A group that is ready for the forward pass but for its pictures: the items that it trains,
    and its tree."""

    group: Group
    items: list[Item]
    tree: PackedTree


def prepare(
    processor: Processor, groups: Sequence[Group], objective: Objective, ranks: Ranks = ALONE
) -> list[Work]:
    """The `Work` of each group with something to learn; raises `TreeError`, naming the group.

    On several `ranks` the denominators count the groups of all, and the error of one is raised on
    all.
    """
    with ranks.agreed():
        credited = [items(group) for group in groups]
    whole = Size.total(ranks.gather(Size.of(credited)))
    weights = item_weights(credited, objective.aggregation, whole)
    with ranks.agreed():
        return _packed(processor, groups, objective, credited, weights)


def _packed(
    processor: Processor,
    groups: Sequence[Group],
    objective: Objective,
    credited: Sequence[Sequence[Item]],
    weights: Sequence[Sequence[float]],
) -> list[Work]:
    prepared: list[Work] = []
    for group, all_items, all_weights in zip(groups, credited, weights, strict=True):
        # Without a KL term an item without advantage changes no weight.
        useful = [objective.kl or item.credit.advantage != 0.0 for item in all_items]
        chosen = [item for item, keep in zip(all_items, useful, strict=True) if keep]
        if not chosen:
            continue
        tree = pack(
            group,
            chosen,
            [weight for weight, keep in zip(all_weights, useful, strict=True) if keep],
            lambda digest, group=group: processor.grid(_picture(group, digest)),
            processor.merge_size,
            objective.old,
            objective.correction,
        )
        prepared.append(Work(group, chosen, tree))
    return prepared


Batch = TypeVar("Batch", bound=Sequence[Work])


def with_pixels(
    processor: Processor, batches: Iterable[Batch]
) -> Iterator[tuple[Batch, dict[str, Pixels]]]:
    """Each batch and its pictures by digest, which threads preprocess while the batch before it is
    computed: those of two batches are in memory at once."""
    with ThreadPoolExecutor() as threads:

        def start(batch: Batch) -> tuple[Batch, dict[str, Future[Pixels]]]:
            shown = {d: _picture(work.group, d) for work in batch for d in work.tree.pictures}
            return batch, {d: threads.submit(processor.pixels, d, shown[d]) for d in shown}

        started = map(start, batches)
        following = next(started, None)
        while following is not None:
            (batch, coming), following = following, next(started, None)
            yield batch, {digest: pixels.result() for digest, pixels in coming.items()}


def shared(groups: Sequence[Group], ranks: int) -> list[list[Group]]:
    """The groups that each of `ranks` trains, with about as many tokens in their trees."""
    sizes = [sum(len(node) for node in group.nodes()) for group in groups]
    return [[groups[place] for place in share] for share in shares(sizes, ranks)]


def micro_batches(prepared: Sequence[Work], budget: int) -> list[list[Work]]:
    """Batches of at most `budget` tokens: each tree, largest first, goes into the first with room.

    A tree above the budget has a batch of its own; it is trained in pieces.
    """
    batches: list[list[Work]] = []
    rooms: list[int] = []
    for work in sorted(prepared, key=lambda work: -len(work.tree)):
        size = len(work.tree)
        found = next((i for i, room in enumerate(rooms) if size <= room), len(batches))
        if found == len(batches):
            batches.append([])
            rooms.append(budget)
        batches[found].append(work)
        rooms[found] -= size
    return batches


def passes_of(batches: Iterable[Sequence[Work]], budget: int, kl: bool) -> Iterator[Kind]:
    """The kinds of the passes that train `batches`, in order; with `kl` the reference's are first
    in each batch."""
    for batch in batches:
        kinds: list[Kind] = [Kind.TRAIN]
        if len(batch) == 1:  # Only then it may exceed the budget.
            kinds = plan(batch[0].tree, budget)
        if kl:
            yield from (Kind.REFERENCE for kind in kinds if kind == Kind.TRAIN)
        yield from kinds


@torch.no_grad()
def recompute_logprobs(
    checkpoint: Checkpoint,
    groups: Sequence[Group],
    kl: bool,
    temperature: float,
    budget: int,
    rounded_otherwise: bool = False,
    ranks: Ranks = ALONE,
) -> OldLogprobs:
    """`checkpoint`'s logprobs of every token of `groups` that would be trained; NaN for the others.

    A tree above `budget` tokens is computed in pieces. With `rounded_otherwise` they are rounded
    as another correct implementation of the model may round them.
    """
    found: dict[tuple[str, str], torch.Tensor] = {}
    processor = checkpoint.processor
    prepared = prepare(processor, groups, Objective(kl=kl), ranks)
    kinds = (
        Kind.PLAIN for work in prepared for kind in plan(work.tree, budget) if kind == Kind.TRAIN
    )
    with (
        _rounded_otherwise(checkpoint.model) if rounded_otherwise else nullcontext(),
        ranks.passes([checkpoint], kinds, lambda _: idle_pass(checkpoint), False) as meet,
    ):
        for (work,), pixels in with_pixels(processor, ([work] for work in prepared)):
            args = checkpoint, work.tree, pixels, temperature, budget
            lineage = work.group.lineage()
            logprobs = plain_logprobs(*args, meet=partial(meet, Kind.PLAIN))
            runs = [run for item in work.items for run in item.runs]
            parts = logprobs.double().cpu().split([run.end - run.start for run in runs])
            for run, values in zip(runs, parts, strict=True):
                key, start = (work.group.id, run.owner.id), lineage.offset(run.owner)
                if key not in found:
                    found[key] = torch.full((run.owner.tokens,), math.nan, dtype=torch.float64)
                found[key][run.start - start : run.end - start] = values
    return found


def _rounded_otherwise(model: Any) -> RemovableHandle:
    """Within this context the model's passes round the embeddings of their tokens once more, up or
    down at random (seeded), so that everything after them is rounded in another way."""

    def shake(_module: Any, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(out.device).manual_seed(0)
        signs = torch.randint(0, 2, out.shape, generator=generator, device=out.device) * 2 - 1
        return out + out * signs.to(out.dtype) * (torch.finfo(out.dtype).eps / 2)

    return family_of(model.config).decoder(model).embed_tokens.register_forward_hook(shake)


def _picture(group: Group, digest: str) -> Image.Image:
    if digest not in group.pictures:
        raise TreeError(f"group {group.id}: a segment shows picture {digest}, which it lacks")
    return group.pictures[digest]
