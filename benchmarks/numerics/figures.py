"""What two logprobs of every sampled token say: sizes, outliers, importance weights, limits.

Pure functions on arrays. A difference is engine minus trainer, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from axpo.training import parity, probe
from axpo.training.parity import Limits, vote

Figures = dict[str, Any]
"""Figures as plain data, for JSON."""
EDGES = (0.0, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0)
"""Classes of probability, by the engine."""
PLACES = (0, 1, 8, 32, 64, 128, 1 << 30)
"""Classes of places in a turn, from 0."""
CHECKED = parity.QUESTIONS * parity.ROLLOUTS
"""The rollouts of one check of parity."""
QUANTILES = {"median": 0.5, "q90": 0.9, "q99": 0.99, "q999": 0.999}
OUTLIERS, BEFORE = 20, 8
"""The number of outliers that are listed, and of the tokens shown before each."""
CAP = 2.0
"""TRL's cap of importance weights, which axpo's recipes take (`rl.importance_cap`)."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Sampled tokens, in the order of their rollouts; each field is [T].

    `rollout` numbers the trajectories, `turn` a trajectory's turns and `place` a turn's tokens, all
    from 0; `call` marks tokens inside a tool call, and `text` is what the token says. The logprobs
    are the `engine`'s and the `trainer`'s; where they were asked for, NaN elsewhere, the trainer's
    rounded `again` in another way, those of the same weights computed `exact`ly (in float32), and
    those of the weights `before` the updates.
    """

    rollout: NDArray[np.int64]
    turn: NDArray[np.int64]
    place: NDArray[np.int64]
    call: NDArray[np.bool_]
    text: NDArray[np.str_]
    engine: NDArray[np.float64]
    trainer: NDArray[np.float64]
    again: NDArray[np.float64]
    exact: NDArray[np.float64]
    before: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.engine)

    @property
    def difference(self) -> NDArray[np.float64]:
        """Engine minus trainer."""
        return self.engine - self.trainer

    def save(self, file: Path) -> None:
        """Write the arrays to `file` (.npz)."""
        arrays: Any = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(file, **arrays)

    @classmethod
    def read(cls, file: Path) -> Tokens:
        """What `save` wrote."""
        with np.load(file) as found:
            return cls(**{field.name: found[field.name] for field in fields(cls)})


def figures(found: Tokens, limits: Limits, low: float, high: float) -> Figures:
    """All figures of the tokens. `limits` are those of the dtype, `low` and `high` the clip's."""
    sizes = np.abs(found.difference)
    rollouts = np.unique(found.rollout)
    told: Figures = {
        "tokens": len(found),
        "rollouts": len(rollouts),
        "size": spread(sizes),
        "deviation": float(sizes.std()),
        "signed": float(found.difference.mean()),
        "bits": float((sizes == 0).mean()),
        "rounding": spread(np.abs(found.again - found.trainer)),
        "tail": tail(sizes),
        "probability": classes(sizes, np.exp(found.engine), EDGES),
        "place": classes(sizes, found.place, PLACES),
        "calls": [spread(sizes[found.call == inside]) for inside in (False, True)],
        "outliers": outliers(found),
        "weights": importance(found),
        "limits": touched(found, limits, low, high),
    }
    if not np.isnan(found.exact).all():
        told["exact"] = {
            "engine": spread(np.abs(found.engine - found.exact)),
            "trainer": spread(np.abs(found.trainer - found.exact)),
        }
    if not np.isnan(found.before).all():
        told["change"] = spread(np.abs(found.before - found.trainer))
        told["votes"] = votes(found)
    return told


def spread(sizes: NDArray[np.float64]) -> Figures:
    """Mean, quantiles and maximum of those that are not NaN; of none, their number alone."""
    sizes = sizes[~np.isnan(sizes)]
    if not len(sizes):
        return {"tokens": 0}
    quantiles = {name: float(np.quantile(sizes, q)) for name, q in QUANTILES.items()}
    return {"tokens": len(sizes), "mean": float(sizes.mean()), **quantiles,
            "max": float(sizes.max())}  # fmt: skip


def tail(sizes: NDArray[np.float64], points: int = 80) -> list[tuple[float, float]]:
    """(size, share of tokens that differ by at least it), from all of them to the largest one."""
    ordered = np.sort(sizes)
    places = np.unique(len(sizes) - np.geomspace(1, len(sizes), points).round().astype(int))
    return [(float(ordered[i]), (len(sizes) - int(i)) / len(sizes)) for i in places]


def classes(
    sizes: NDArray[np.float64], values: NDArray[Any], edges: Sequence[float]
) -> list[Figures]:
    """The sizes by the class of their value: from an edge on, below the next one; the last class
    has its upper edge too."""
    of = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return [
        {"from": edges[i], "to": edges[i + 1], **spread(sizes[of == i])}
        for i in range(len(edges) - 1)
    ]


def outliers(found: Tokens) -> list[Figures]:
    """The tokens that differ most, with what stands before them in their turn."""
    worst = np.argsort(-np.abs(found.difference))[:OUTLIERS]

    def one(i: int) -> Figures:
        first = max(i - BEFORE, i - int(found.place[i]))
        return {
            "difference": float(found.difference[i]),
            "probability": float(np.exp(found.engine[i])),
            "trainer": float(np.exp(found.trainer[i])),
            "turn": int(found.turn[i]),
            "place": int(found.place[i]),
            "call": bool(found.call[i]),
            "text": str(found.text[i]),
            "before": "".join(found.text[first:i]),
        }

    return [one(int(i)) for i in worst]


def importance(found: Tokens) -> Figures:
    """The importance weights trainer over engine, by token and by sequence (a rollout), with the
    share that a cap of `CAP` cuts.

    `effective` is (sum of w)^2 / (n sum of w^2): the share of samples that equal weights would
    need for the same variance.
    """
    sums = np.array([part.sum() for part in _rollouts(found, -found.difference)])
    lengths = np.array([len(part) for part in _rollouts(found, found.engine)])
    return {
        "token": _weights(-found.difference),
        "sequence": _weights(sums)
        | {"tokens": float(lengths.mean()), "longest": int(lengths.max())}
        | {"deviation_of_log": float(sums.std())},
    }


def _weights(logs: NDArray[np.float64]) -> Figures:
    weights = np.exp(logs)
    return {
        "count": len(weights),
        "mean": float(weights.mean()),
        "deviation": float(weights.std()),
        "min": float(weights.min()),
        "q001": float(np.quantile(weights, 0.001)),
        "q01": float(np.quantile(weights, 0.01)),
        "q99": float(np.quantile(weights, 0.99)),
        "q999": float(np.quantile(weights, 0.999)),
        "max": float(weights.max()),
        "effective": float(weights.sum() ** 2 / (len(weights) * (weights**2).sum())),
        "capped": float((weights > CAP).mean()),
        "below_inverse": float((weights < 1 / CAP).mean()),
    }


def touched(found: Tokens, limits: Limits, low: float, high: float) -> Figures:
    """How near each limit comes: shares of a limit for means (above 1: refused), shares of tokens
    for what cuts tokens.

    `start` are checks of parity of so many rollouts, `step` of all tokens at once, and `probe` of
    the tokens that a server is asked for after an update, any so many in a row of a rollout.
    """
    ratios = np.exp(-found.difference)
    parts = {
        "step": [np.ones(len(found), bool)],
        "start": list(_checks(found)),
        "probe": [_mask(len(found), i, probe.TOKENS) for i in _windows(found)],
    }
    told: Figures = {"clip": float(((ratios < 1 - low) | (ratios > 1 + high)).mean())}
    for name, masks in parts.items():
        if not masks:
            continue
        sizes = np.abs(found.difference)
        means = [sizes[m].mean() / limits(int(m.sum())).mean for m in masks]
        told[name] = {"checks": len(masks), "mean": max(means), "over": _over(means)}
        if name != "probe":  # It compares means alone.
            off = [abs(ratios[m].mean() - 1) / limits(int(m.sum())).ratio for m in masks]
            told[name] |= {"ratio": max(off), "ratio_over": _over(off)}
    return told


def votes(found: Tokens) -> Figures:
    """The probe's votes against the weights before the updates, one per window.

    `right` is the share that the engine loses although it has the new weights. `stale` is the share
    that an engine would lose that has the old ones and rounds as this one does.
    """
    stale = found.before + found.difference
    lost = {"right": 0, "stale": 0}
    windows = [i for i in _windows(found) if not np.isnan(found.before[i : i + probe.TOKENS]).any()]
    for i in windows:
        part = slice(i, i + probe.TOKENS)
        model, again, before = (
            torch.from_numpy(x[part]) for x in (found.trainer, found.again, found.before)
        )
        for name, engine in (("right", found.engine), ("stale", stale)):
            theirs = torch.from_numpy(engine[part])
            lost[name] += vote(theirs, model, again, before, probe.DECISIVE).lost
    return {name: count / max(1, len(windows)) for name, count in lost.items()}


def _rollouts(found: Tokens, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    borders = np.flatnonzero(np.diff(found.rollout)) + 1
    return np.split(values, borders)


def _checks(found: Tokens) -> Iterator[NDArray[np.bool_]]:
    """The tokens of each `CHECKED` rollouts in a row."""
    for first in range(0, int(found.rollout.max()) + 2 - CHECKED, CHECKED):
        chosen = (found.rollout >= first) & (found.rollout < first + CHECKED)
        if chosen.any():
            yield chosen


def _windows(found: Tokens) -> Iterator[int]:
    """The first places of runs of `probe.TOKENS` tokens of one rollout, none of which overlap."""
    first = 0
    for part in _rollouts(found, found.engine):
        yield from range(first, first + len(part) - probe.TOKENS + 1, probe.TOKENS)
        first += len(part)


def _mask(size: int, first: int, length: int) -> NDArray[np.bool_]:
    mask = np.zeros(size, bool)
    mask[first : first + length] = True
    return mask


def _over(shares: Sequence[float]) -> float:
    return sum(share > 1 for share in shares) / len(shares)
