"""Passes, idle passes and traffic of 2 to 64 ranks, by the code that ranks share trees with.

Nothing is computed and no process is started: trees of the sizes of long rollouts are packed, and
`shared`, `micro_batches`, `passes_of` and `rounds` decide what each rank would do with them. What
moves between ranks follows from the passes and from a model's shapes. Real ranks make the same
passes and move the same bytes (`tests/benchmarks/test_cluster.py`).

Trees are made: rollouts of a question, and continuations of one of them, cut in its middle. A
question's mean length is log-normal around the distribution's, and its paths' are log-normal around
that, because hard questions take long answers. With `trees`, the folder of a run, its recorded
trees are dealt out as well, by their sizes alone, in passes of the run's own budget.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from axpo.folder import RunFolder, read_json
from axpo.models.families import family_of
from axpo.models.shapes import published, without_weights
from axpo.store import load_groups
from axpo.training.batches import Work, micro_batches, passes_of, prepare, shared
from axpo.training.objective import Objective
from axpo.training.ranks import Kind, rounds
from axpo.tree import Credit, Group, Origin, Segment, Stream, Trajectory
from benchmarks.harness import Row
from benchmarks.models import training_checkpoint

TREES, BUDGET, DRAWS = 64, 16_384, 5
"""Trees an update and tokens a pass; how often trees are drawn."""
RANKS = (2, 4, 8, 16, 32, 64)
LONGEST = 16_384
"""Tokens of the longest path without its prompt."""
MODEL = "qwen3-vl-8b"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Trees of about `tokens` on average; `questions` and `paths` are the standard deviations of
    the logarithms of a question's mean length and of a path's."""

    tokens: int
    prompt: int
    questions: float = 0.0
    paths: float = 0.0
    rollouts: int = 8
    continuations: int = 4


DISTRIBUTIONS = {
    "12K": Lengths(12_000, 1_024, 0.7, 0.4),
    "60K": Lengths(60_000, 3_072, 0.6, 0.4),
    "100K": Lengths(100_000, 3_072, 0.4, 0.3),
    "12 rollouts of 8K": Lengths(3_072 + 12 * 8_192, 3_072, rollouts=12, continuations=0),
}


@dataclass(frozen=True, slots=True)
class Figures:
    """What all ranks make of one update.

    `passes` without the `idle` ones; `trained` of them have a gradient. `filled` is the share of
    the room of all training passes, idle ones included, that holds tokens; `trunk` counts rounds of
    passes over a trunk per round of training passes. Of held weights, for which there are no
    rounds, `filled` is the mean rank's tokens over the fullest's. `gathered` and `reduced` are the
    bytes that a rank receives from others, and sends to them.
    """

    passes: int
    trained: int
    idle: int
    filled: float
    trunk: float
    imbalance: float
    gathered: int
    reduced: int


@dataclass(frozen=True, slots=True)
class Weights:
    """Padded numbers of a model's weights in its text layers and in the rest (the root)."""

    layers: int
    root: int
    trained_layers: int
    trained_root: int

    @classmethod
    def of(cls, model: Any, ranks: int) -> Weights:
        layers = list(family_of(model.config).decoder(model).layers.parameters())
        inside = {id(parameter) for parameter in layers}
        root = [p for p in model.parameters() if id(p) not in inside]
        counts = (
            sum(_padded(p, ranks) for p in part if p.requires_grad or not trained)
            for trained in (False, True)
            for part in (layers, root)
        )
        return cls(*counts)


def _padded(parameter: nn.Parameter, ranks: int) -> int:
    """How many numbers all ranks' shards of `parameter` have: rows are divided, and filled up."""
    rows = parameter.shape[0]
    return -(-rows // ranks) * ranks * (parameter.numel() // rows)


def simulate(
    groups: Sequence[Group],
    prepared: Sequence[Work],
    ranks: int,
    budget: int,
    hold: bool = False,
    kl: bool = False,
    weights: Weights | None = None,
    bytes_each: int = 2,
) -> Figures:
    """An update of `groups`, which `prepare` has made `prepared` of.

    `weights`, of `bytes_each` as they are computed with, are the policy's and the reference's.
    """
    work = {some.group.id: some for some in prepared}
    mine = [
        [work[group.id] for group in part if group.id in work] for part in shared(groups, ranks)
    ]
    plans = [list(passes_of(micro_batches(part, budget), budget, kl)) for part in mine]
    order = [] if hold else rounds(plans)
    tokens = [sum(len(some.tree) for some in part) for part in mine]
    imbalance = max(tokens) * ranks / sum(tokens)
    passes, trains = sum(map(len, plans)), order.count(Kind.TRAIN)
    gathered, reduced = _moved(order, ranks, hold, kl, weights) if weights else (0.0, 0.0)
    return Figures(
        passes=passes,
        trained=sum(plan.count(Kind.TRAIN) for plan in plans),
        idle=0 if hold else len(order) * ranks - passes,
        filled=1 / imbalance if hold else sum(tokens) / (ranks * trains * budget),
        trunk=0.0 if hold else order.count(Kind.TRUNK) / trains,
        imbalance=imbalance,
        gathered=round(gathered * bytes_each),
        reduced=round(reduced * 4),  # in float32
    )


def _moved(
    order: Sequence[Kind], ranks: int, hold: bool, kl: bool, weights: Weights
) -> tuple[float, float]:
    """How many numbers a rank receives in gathering weights, and sends in reducing gradients.

    The root is gathered once and reduced once, and so are held layers. Others are gathered for
    each pass, once more for its backward, and reduced there. The last pass only closes the update.
    """
    models = 1 + kl
    made = Counter(order) + Counter({Kind.TRAIN: 1})
    layers = models if hold else made.total() + made[Kind.TRAIN]
    gathered = models * weights.root + layers * weights.layers
    reduced = weights.trained_root + (1 if hold else made[Kind.TRAIN]) * weights.trained_layers
    others = (ranks - 1) / ranks
    return gathered * others, reduced * others


def made_group(id: str, lengths: Lengths, rng: random.Random) -> Group:
    """A tree of random size with credit; its tokens are all 0."""
    paths: float = lengths.rollouts
    if lengths.continuations:  # Half a path each; the second half of their source is not trained.
        paths += (lengths.continuations - 1) / 2
    mean = math.log((lengths.tokens - lengths.prompt) / paths) - lengths.questions**2 / 2
    question = rng.gauss(mean, lengths.questions)

    def length() -> int:
        drawn = rng.lognormvariate(question - lengths.paths**2 / 2, lengths.paths)
        return max(2, min(LONGEST, round(drawn)))

    group = Group(id, _segment("prompt", Origin.PROMPT, lengths.prompt))
    group.rollouts = [_trajectory(f"r{i}", length(), 0) for i in range(lengths.rollouts)]
    if not lengths.continuations:
        return group
    source = group.rollouts[0]
    cut = source.tokens // 2
    source.credit = [Credit(0, cut, 1.0, Stream.PREFIX, 1.0)]
    branch = group.fork(source, cut)
    branch.continuations += [
        _trajectory(f"c{i}", max(1, length() - cut), cut) for i in range(lengths.continuations)
    ]
    return group


def _segment(id: str, origin: Origin, count: int) -> Segment:
    return Segment(id, origin, (0,) * count, (0.0,) * count if origin is Origin.POLICY else ())


def _trajectory(id: str, count: int, start: int) -> Trajectory:
    trajectory = Trajectory(id, [_segment(id, Origin.POLICY, count)])
    stream = Stream.CONTINUATION if start else Stream.ROLLOUT
    trajectory.credit = [Credit(start, start + count, 1.0, stream, 1.0)]
    return trajectory


def recorded(run: Path) -> list[list[Group]]:
    """The trees of a run, those of successive steps put together to `TREES` a time, without the
    rest; of their content only the sizes are left."""
    files = RunFolder(run).saved_trees().values()
    groups = [_without_content(group) for file in files for group in load_groups(file)]
    if len(groups) < TREES:
        raise SystemExit(f"benchmarks: {run} has {len(groups)} trees, the simulator needs {TREES}")
    return [groups[i : i + TREES] for i in range(0, len(groups) - TREES + 1, TREES)]


def _without_content(group: Group) -> Group:
    for trajectory in group.trajectories():
        trajectory.segments = [_plain(segment) for segment in trajectory.segments]
    return replace(group, prompt=_plain(group.prompt))


def _plain(segment: Segment) -> Segment:
    return _segment(segment.id, segment.origin, len(segment))


def run(quick: bool, trees: Path | None = None) -> Iterator[Row]:
    """Every distribution on every number of ranks (2 minutes), and the run `trees` if there is one;
    `quick` is small trees on 64."""
    processor = training_checkpoint().processor
    model = without_weights(published(MODEL))
    model.requires_grad_(True)
    updates: dict[tuple[str, int], list[list[Group]]] = {}
    for name, lengths in list(DISTRIBUTIONS.items())[: 1 if quick else None]:
        for draw in range(1 if quick else DRAWS):
            rng = random.Random(draw)
            groups = [made_group(f"q{i}", lengths, rng) for i in range(TREES)]
            updates.setdefault((name, BUDGET), []).append(groups)
    if trees:
        optimizer = read_json(RunFolder(trees).settings)["rl"]["optimizer"]
        updates["recorded", optimizer["max_tokens_per_micro_batch"]] = recorded(trees)
    for (name, budget), drawn in updates.items():
        found: dict[tuple[int, bool], list[Figures]] = {}
        for groups in drawn:
            prepared = prepare(processor, groups, Objective())
            for ranks in RANKS[-1:] if quick else RANKS:
                weights = Weights.of(model, ranks)
                for hold in (False, True):
                    figures = simulate(groups, prepared, ranks, budget, hold, weights=weights)
                    found.setdefault((ranks, hold), []).append(figures)
        for (ranks, hold), draws in found.items():
            values = [asdict(figures) for figures in draws]
            yield {
                "benchmark": "cluster_simulator",
                "case": {"trees": name, "ranks": ranks, "layers": "held" if hold else "gathered"},
                "against": None,
                "ours": {key: statistics.fmean(v[key] for v in values) for key in values[0]},
                "rounds": len(draws),
            }
