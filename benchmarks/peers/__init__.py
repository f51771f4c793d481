"""The packed tree beside other ways not to compute, or not to hold, a shared prefix again.

One question's tree (`models`) goes through the real `LocalLearner.update` and through the same
update by each peer: PrefixGrouper (`grouper`), sequence packing without padding (`sequences`),
depth-first execution as in AReaL-DTA (`depth_first`), and padded rows with pictures encoded once
(`padded`; what TRL and verl train, but for that). Before anything is timed, all sides must have the
same loss and the same gradient. The learning rate is 0, so that each round repeats the same work.

The floor is what any way has to compute: every token of the tree once, the pairs of query and key
that are needed, the LM head on trained tokens, each picture once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from axpo.costs.flops import ForwardPass, forward_flops
from axpo.models.families import family_of
from axpo.models.families.base import Dimensions
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.packing import PackedTree
from axpo.tree import Group
from benchmarks.flops import QWEN3_VL_8B, TRAINING, packed_work, padded_work
from benchmarks.harness import Row, Side, Timing, interleave, matmul_peak, means, peak_bytes, ratio
from benchmarks.models import Shape, training_checkpoint, training_group, with_logprobs
from benchmarks.padded import PaddedTrainer, Rows, padded_rows
from benchmarks.peers.depth_first import DepthFirst
from benchmarks.peers.grouper import Grouped, group_a_prefix, missing, one_group
from benchmarks.peers.sequences import Sequences
from benchmarks.peers.side import Peer, Task, peer_trainer
from benchmarks.trainer import Trainer
from benchmarks.training_step import LOSS, PACKED, SETTINGS, differences, packed_layout

GROUPER, SEQUENCES, DEPTH_FIRST = "PrefixGrouper", "packed sequences", "depth first"
PADDED = "padded rows, pictures once"
ONE, EACH = "PrefixGrouper, one group", "PrefixGrouper, a group a prefix"
TEXT = {
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "rope_parameters": {
        "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10],
        "mrope_interleaved": True,
    },
}  # fmt: skip
"""Heads of the family's proportions: small ones would make softmax a larger part than it is."""
PADDED_TOKENS = 24_000
"""Padded rows of more tokens are left out: they take minutes a round, and lose by as much."""
ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Case:
    """A tree, and the layers of the model that trains it."""

    name: str
    shape: Shape
    layers: int = 4

    def row(self) -> dict[str, Any]:
        return {"group": self.name, **asdict(self.shape), "layers": self.layers}


def _grpo(words: int, response: int, **more: Any) -> Case:
    return Case("GRPO", Shape(0, response, continuations=0, words=words, **more))


def _axpo(words: int, response: int, **more: Any) -> Case:
    return Case("AXPO", Shape(0, response, words=words, **more))


def _nested(image: int, sources: int) -> Case:
    """Four continuations of each of several sources, 0.8 of whose responses are frozen."""
    shape = Shape(image, 1024, words=4096 - image, sources=sources, frozen=0.8)
    return Case(f"AXPO, {sources} sources", shape, layers=2)


CASES = (
    *(_grpo(words, 256) for words in (128, 256, 1024, 4096)),
    _grpo(256, 64),
    Case("GRPO, tools", Shape(256, 256, turns=2, continuations=0)),
    *(_axpo(words, 256) for words in (256, 1024, 4096)),
    _axpo(256, 64),
    _axpo(1024, 1024),
    Case("AXPO, tools", Shape(256, 256, turns=1)),
    Case("AXPO, tools", Shape(1024, 64, turns=1)),
    *(_nested(image, sources) for image in (0, 1024) for sources in (4, 8)),
)
TINY = Case("AXPO, 2 sources", Shape(16, 12, turns=1, rollouts=3, continuations=2, sources=2))


@dataclass(frozen=True, slots=True)
class Bench:
    """One tree and everything that trains it."""

    group: Group
    packed: LocalLearner
    tree: PackedTree
    pictures: tuple[int, ...]
    peers: Mapping[str, Peer]
    padded: tuple[PaddedTrainer, Rows] | None

    def sides(self) -> dict[str, tuple[torch.optim.Optimizer, Side]]:
        """One optimizer step of each side, with the optimizer that it uses."""

        def ours() -> dict[str, float]:
            return self.packed.update([self.group], Objective(LOSS, "question_mean"))

        found: dict[str, tuple[torch.optim.Optimizer, Side]] = {
            PACKED: (self.packed.optimizer, ours),
            **{name: (peer.trainer.optimizer, peer.update) for name, peer in self.peers.items()},
        }
        if self.padded is not None:
            trainer, rows = self.padded
            found[PADDED] = (
                trainer.optimizer,
                lambda: trainer.update(rows, LOSS, vision_once=True),
            )
        return found

    def flops(self, sizes: Dimensions) -> dict[str, float]:
        """Operations of an update of each side; ours are the floor's."""
        shown = ForwardPass(tokens=0, pairs=0, rows=0, pictures=self.pictures)
        pictures = TRAINING * forward_flops(sizes, shown)
        floor = TRAINING * forward_flops(sizes, packed_work(self.tree, ()))
        found = {PACKED: floor + pictures}
        found |= {name: peer.flops(sizes, pictures) for name, peer in self.peers.items()}
        if self.padded is not None:
            rows = self.padded[1]
            work = padded_work(*rows.tokens.shape, rows.prompt, ())
            found[PADDED] = TRAINING * forward_flops(sizes, work) + pictures
        return found


def bench(case: Case) -> Bench:
    """Models with the same weights, a tree whose old logprobs are theirs, and all sides of it."""
    text = {**TEXT, "num_hidden_layers": case.layers}
    checkpoint = training_checkpoint(text=text)
    packed = LocalLearner(checkpoint, None, SETTINGS, total_updates=1)
    group = training_group(checkpoint, case.shape)
    with_logprobs(group, packed.logprobs([group]))
    tree = packed_layout(checkpoint, group)
    processor = checkpoint.processor
    pixels = {digest: processor.pixels(digest, group.pictures[digest]) for digest in tree.pictures}
    task = Task(tree, pixels, LOSS)
    trainer = peer_trainer(SETTINGS, text=text)
    padded = PaddedTrainer(training_checkpoint(stock=True, text=text), SETTINGS)
    rows = padded_rows(padded.checkpoint, group)
    return Bench(
        group,
        packed,
        tree,
        tuple(some.tokens(processor.merge_size) for some in pixels.values()),
        _peers(trainer, task),
        None if rows.tokens.numel() > PADDED_TOKENS else (padded, rows),
    )


def _peers(trainer: Trainer, task: Task) -> dict[str, Peer]:
    found: dict[str, Peer] = {}
    if missing() is None:
        found[ONE] = Grouped(trainer, task, one_group(task.forest))
        if len(groups := group_a_prefix(task.forest)) > 1:
            found[EACH] = Grouped(trainer, task, groups)
    found[SEQUENCES] = Sequences(trainer, task)
    found[DEPTH_FIRST] = DepthFirst(trainer, task)
    return found


def measure(case: Case, rounds: int) -> list[Row]:
    """A row for each peer; PrefixGrouper's faster way comes first and bears its plain name."""
    made = bench(case)
    sides = made.sides()
    others = {name: side for name, side in sides.items() if name != PACKED}
    found = differences(sides[PACKED], others)
    memory = {name: peak_bytes(side) for name, (_, side) in sides.items()}
    matmul = matmul_peak()
    timings = interleave({name: side for name, (_, side) in sides.items()}, rounds, warmup=0)
    config = made.packed.checkpoint.model.config
    flops = made.flops(family_of(config).dimensions(config))
    large = made.flops(QWEN3_VL_8B)
    ways = sorted((name for name in (ONE, EACH) if name in others), key=_median(timings))
    order = [*ways, *(name for name in others if name not in ways)]

    def figures(name: str) -> dict[str, float]:
        seconds = means(timings[name])
        return {
            "cpu_s": seconds["cpu_s"],
            "wall_s": seconds["wall_s"],
            "flops": flops[name],
            "peak_mib": memory[name] / 2**20,
            "share": flops[PACKED] / matmul / seconds["cpu_s"],
        }

    return [
        {
            "benchmark": "peers",
            "case": case.row() | {"tokens": len(made.tree), "paths": made.tree.path_tokens},
            "against": GROUPER if [name] == ways[:1] else name,
            "way": name,
            "ratio_cpu": asdict(ratio(timings[name], timings[PACKED], "cpu")),
            "ratio_wall": asdict(ratio(timings[name], timings[PACKED], "wall")),
            "memory_ratio": memory[PACKED] / memory[name],
            "ratio_flops": flops[name] / flops[PACKED],
            "ratio_flops_8b": large[name] / large[PACKED],
            "share": flops[PACKED] / matmul / means(timings[PACKED])["cpu_s"],
            "ours": figures(PACKED),
            "theirs": figures(name),
            "parity": found[name],
            "rounds": rounds,
        }
        for name in order
    ]


def _median(timings: Mapping[str, Timing]) -> Any:
    return lambda name: ratio(timings[name], timings[PACKED], "cpu").median


def run(quick: bool) -> Iterator[Row]:
    """Every case (about 70 minutes on one CPU thread); `quick` is one tiny tree, one round."""
    if (lack := missing()) is not None:
        yield {"benchmark": "peers", "against": GROUPER, "skipped": lack}
    for case in (TINY,) if quick else CASES:
        yield from measure(case, 1 if quick else ROUNDS)
