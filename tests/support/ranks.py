"""The tiny model trained on several processes and on one, and how far both are apart."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from axpo.algorithms.losses import ClipLoss
from axpo.config import OptimizerSettings
from axpo.models.loading import Checkpoint
from axpo.models.lora import merged_weights
from axpo.training.batches import shared
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import OldLogprobs
from axpo.training.ranks import ALONE, Ranks
from axpo.training.recomputation import recompute_layers
from axpo.training.sharding import WholeWeights
from axpo.tree import Group
from tests.support.families import family_checkpoint
from tests.support.lora import adapted
from tests.support.padded_oracle import Builder, branching_group, credit_all
from tests.support.tiny import in_bfloat16

MIXED = ("small0", "tree0", "text1", "text2", "small3")
"""Trees of all kinds: with 200 tokens at once, one is in pieces; some show no picture."""

UNCLIPPED = {"learning_rate": 1e-3, "max_grad_norm": 1e9}
"""A clipped gradient has the same size where it should be twice as large."""


@dataclass(frozen=True)
class Case:
    """What is trained: names of groups, at most `budget` tokens at once, and how."""

    groups: tuple[str, ...] = MIXED
    budget: int = 200
    kl: bool = False
    rounded: bool = False
    lora: Mapping[str, Any] | None = None
    untied: bool = False
    recompute: bool = False
    """Gradient checkpointing."""
    old: bool = True
    """Whether old logprobs are computed anew before each update."""
    updates: int = 2
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    ranks: Mapping[str, Any] = field(default_factory=dict)
    """`Sharded`'s settings."""
    kind: str = "qwen3_vl"
    """The model's family."""


@dataclass(frozen=True)
class Trained:
    """Each update's metrics, the first one's gradient as it reaches the optimizer, the weights at
    the end, the logprobs before the first update, and the weights that were handed on then."""

    metrics: list[dict[str, float]]
    gradient: torch.Tensor
    weights: torch.Tensor
    logprobs: OldLogprobs
    handed: dict[str, torch.Tensor]


def text_group(checkpoint: Checkpoint, seed: int, id: str) -> Group:
    """Three rollouts without a picture."""
    build = Builder(checkpoint, 100 + seed)
    group = build.group(id, [])
    group.rollouts = [build.rollout(f"{id}r{i}", 10 + 7 * (seed % 10) + i) for i in range(3)]
    for rollout, advantage in zip(group.rollouts, (1.0, -0.5, 0.3), strict=True):
        credit_all(rollout, 0, advantage, 0.25)
    return group


def made(name: str, checkpoint: Checkpoint, update: int) -> Group:
    """The group `name`, with other tokens in each update."""
    kind, seed = name[:-1], int(name[-1]) + 10 * update
    if kind == "text":
        return text_group(checkpoint, seed, name)
    group = branching_group(checkpoint, seed, name)
    if kind == "small":
        group.rollouts = group.rollouts[:2]
        group.branches = group.branches[:1]
    return group


def model(case: Case, seed: int) -> Checkpoint:
    """The tiny model as `case` wants it, without adapters."""
    checkpoint = family_checkpoint(case.kind, seed)
    if case.untied:
        some = checkpoint.model
        some.config.tie_word_embeddings = some.config.text_config.tie_word_embeddings = False
        some.lm_head.weight = torch.nn.Parameter(some.lm_head.weight.detach() * 0.9)
    return in_bfloat16(checkpoint) if case.rounded else checkpoint


def learner(case: Case, ranks: Ranks) -> LocalLearner:
    """A learner of `case`'s model."""
    if case.lora is None:
        policy = model(case, 0)
    else:
        policy = adapted(made=lambda: model(case, 0), **case.lora)
    if case.recompute:
        recompute_layers(policy.model)
    reference = model(case, 1) if case.kl and case.lora is None else None
    values = {"max_tokens_per_micro_batch": case.budget, **UNCLIPPED, **case.optimizer}
    return LocalLearner(
        policy, reference, OptimizerSettings.model_validate(values), 10, ranks=ranks
    )


def train(case: Case, ranks: Ranks = ALONE) -> Trained:
    """`case`'s updates, on this process's share of the groups."""
    torch.set_num_threads(1)
    some = learner(case, ranks)
    handed = handed_on(some.checkpoint, ranks)
    gradients = noted_gradients(some, ranks)
    loss = partial(ClipLoss().of, kl=0.05 if case.kl else 0.0)
    logprobs: list[OldLogprobs] = []
    metrics: list[dict[str, float]] = []
    for update in range(case.updates):
        own = own_share([made(name, some.checkpoint, update) for name in case.groups], ranks)
        old = some.logprobs(own, case.kl) if case.old else None
        logprobs.append(old or {})
        metrics.append(some.update(own, Objective(loss, "question_mean", case.kl, old)))
    first = {key: values for part in ranks.gather(logprobs[0]) for key, values in part.items()}
    return Trained(metrics, gradients[0], flat(some.parameters, ranks), first, handed)


def handed_on(checkpoint: Checkpoint, ranks: Ranks) -> dict[str, torch.Tensor]:
    """The weights as readers of checkpoints and servers get them: adapters merged, tied ones once,
    in the model's dtype."""
    model = checkpoint.model
    if ranks.many:
        weights = WholeWeights(checkpoint)
    else:
        weights = model.state_dict()
        if model.lm_head.weight is model.get_input_embeddings().weight:
            del weights["lm_head.weight"]
    return {name: tensor.clone() for name, tensor in merged_weights(model, weights)}


def own_share(groups: list[Group], ranks: Ranks) -> list[Group]:
    """The groups that this process trains."""
    if not ranks.many:
        return groups
    return shared(groups, distributed.get_world_size())[distributed.get_rank()]


def noted_gradients(some: LocalLearner, ranks: Ranks) -> list[torch.Tensor]:
    """A list to which each update adds the gradient that reaches the optimizer."""
    found: list[torch.Tensor] = []
    step = some.optimizer.step

    def noted() -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in some.parameters]
        found.append(flat(gradients, ranks))
        step()

    some.optimizer.step = noted  # pyright: ignore
    return found


def flat(tensors: list[Any], ranks: Ranks) -> torch.Tensor:
    return torch.cat([ranks.whole(tensor.detach()).flatten() for tensor in tensors])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The relative L2 distance."""
    return ((ours - theirs).norm() / theirs.norm()).item()


# ------------------------------------------------------------------ processes


def _rank(rank: int, count: int, folder: Path, seconds: float, work: Callable, args: tuple) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=seconds),
    )
    found = work(*args)
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    with suppress(RuntimeError):  # Another one may have died.
        distributed.barrier()
    distributed.destroy_process_group()


def on_ranks(
    count: int, folder: Path, work: Callable[..., Any], *args: Any, seconds: float = 120
) -> list[Any]:
    """What `work(*args)` returns on each of `count` new processes; None of one that died.

    None of their collectives may take longer than `seconds`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # So torch and transformers are imported once.
    processes = [
        context.Process(target=_rank, args=(rank, count, folder, seconds, work, args))
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    files = [folder / f"{rank}.pickle" for rank in range(count)]
    return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]
