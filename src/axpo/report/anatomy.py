"""Where a training step's time and tokens go, from the numbers that the loop writes about it.

The phases of a step follow each other and add up to the step; what no phase counts is "other".
Inside sampling the work of many trajectories overlaps, so its parts are shares of the work and not
of the clock. Any metric may be missing: SFT and older runs write fewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from axpo.wording import percent

SAMPLING, LEARNING = "sampling", "learning"
PREFIX = "seconds_"
BAND = 0.02
"""A phase with a smaller share of the step has no band of its own."""
LARGE = 0.2
"""A family of phases with a larger share of the step is told in its parts."""
WARM_UP = 1
"""How many first steps are not counted, as they allocate, compile and open things."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A kind of work: its metric `seconds_<key>`, its name and description, and its tokens.

    Its tokens are the metric `tokens` minus the metric `less`; `rated` says that they were made in
    these seconds alone. Phases of one `family` are one answer to "what bounds my step?".
    """

    key: str
    label: str
    note: str
    colour: str
    family: str = ""
    tokens: str = ""
    less: str = ""
    rated: bool = True


PHASES = (
    Phase("demonstrate", "demonstrations", "replayed through the real tools", "#2ba39b",
         "replaying demonstrations"),
    Phase("sample", "sampling", "until the last rollout is done", "#2ba39b", SAMPLING,
         "tokens_sampled", less="tokens_resampled"),
    Phase("resample", "resampling", "from then until the last continuation is done", "#93d8cf",
         SAMPLING, "tokens_resampled", rated=False),  # most of them are made while sampling
    Phase("plan", "planning", "which prefixes are grown", "#d8c58a", "bookkeeping"),
    Phase("credit", "credit", "from rewards to advantages", "#b9a765", "bookkeeping"),
    Phase("old_logprobs", "old logprobs", "the sampling policy's, by the trainer", "#f0b6d8",
         LEARNING, "tokens_packed"),
    Phase("pack", "packing", "trees to micro-batches", "#e7c9f5", LEARNING, "tokens_packed"),
    Phase("reference", "reference", "the frozen model's logprobs, for the KL term", "#cdbcf6",
         LEARNING, "tokens_packed"),
    Phase("forward", "forward", "logprobs and loss", "#b096f2", LEARNING, "tokens_packed"),
    Phase("backward", "backward", "gradients", "#8d6cea", LEARNING, "tokens_packed"),
    Phase("optimizer", "optimizer", "clipping and the weights' update", "#e08fc4", LEARNING),
    Phase("sync", "weight sync", "new weights to the engine", "#e0b04f", "bookkeeping"),
    Phase("write", "writing", "trees to disk", "#c9b48a", "bookkeeping"),
)  # fmt: skip
OTHER = Phase("other", "other", "what no phase counts", "#aab2bc", "bookkeeping")
REST = Phase("rest", "the rest", "small phases and what no phase counts", OTHER.colour)
INSIDE = (
    Phase("engine_decode", "decoding", "one token per step", "#2ba39b", tokens="tokens_decoded"),
    Phase("engine_prefill", "prefill", "prompts and observations", "#5cbdb3",
         tokens="tokens_prefilled"),
    Phase("engine_vision", "pictures", "the vision tower", "#93d8cf"),
    Phase("tools", "tools", "all calls, overlapping", "#e0b04f"),
    Phase("grade", "grading", "all answers, overlapping", "#d8c58a"),
    Phase("waited", "waiting", "for places and turns, overlapping", "#c9c9c9"),
)  # fmt: skip
ENGINE = "engine_"


@dataclass(frozen=True, slots=True)
class Count:
    """A number of tokens or events per step; `of` names the metrics whose sum it is a part of."""

    metric: str
    label: str
    of: tuple[str, ...] = ()
    whole: str = ""


COUNTS = (
    Count("tokens_sampled", "sampled by the policy"),
    Count("tokens_resampled", "of these in continuations", ("tokens_sampled",), "sampled"),
    Count("tokens_decoded", "decoded by the engine"),
    Count("tokens_prefilled", "prefilled by the engine"),
    Count("tokens_reused", "reused, not prefilled again", ("tokens_reused", "tokens_prefilled"),
          "reused and prefilled"),
    Count("tokens_path", "on the paths that are trained"),
    Count("tokens_packed", "packed, shared prefixes once", ("tokens_path",), "the paths"),
    Count("tokens_trained", "with a loss", ("tokens_packed",), "packed"),
    Count("pictures_encoded", "pictures encoded"),
    Count("kv_evictions", "KV evictions"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """A phase over the steps: typical, least and most seconds, its share, its tokens per step."""

    part: Phase
    seconds: float
    low: float
    high: float
    share: float
    tokens: float | None

    @property
    def rate(self) -> float | None:
        """Tokens per second; None where they are not known."""
        if not self.part.rated or not self.tokens or self.seconds <= 0:
            return None
        return self.tokens / self.seconds


@dataclass(frozen=True, slots=True)
class Anatomy:
    """The phases of a typical one of `steps` steps.

    `busy` is the share of sampling and resampling during which the engine computed. `counts` are
    (what, how many per step, the share of their whole).
    """

    steps: int
    seconds: float
    low: float
    high: float
    phases: list[PhaseTime]
    inside: list[PhaseTime]
    busy: float | None
    counts: list[tuple[Count, float, float | None]]


Middle = Callable[[Sequence[float]], float]


def dissect(lines: Sequence[Mapping[str, Any]], middle: Middle = fmean) -> Anatomy | None:
    """The anatomy of the steps whose metrics are `lines`; None if none of them was timed.

    `middle` makes one number of the numbers of the steps: the mean keeps sums (a rare phase counts
    at its rate), the median forgives one slow step.
    """
    steps = [phase_seconds(line) for line in lines]
    phases = _rows((*PHASES, OTHER), steps, lines, middle)
    if not phases:
        return None
    whole = [math.fsum(step.values()) for step in steps]
    parts = [_seconds(line, INSIDE) for line in lines]
    inside = _rows(INSIDE, parts, lines, middle)
    sampling = math.fsum(row.seconds for row in phases if row.part.family == SAMPLING)
    computed = math.fsum(row.seconds for row in inside if row.part.key.startswith(ENGINE))
    known = {c.metric: v for c in COUNTS if (v := _typical(lines, c.metric, middle)) is not None}
    return Anatomy(
        len(lines),
        middle(whole),
        min(whole),
        max(whole),
        phases,
        inside,
        computed / sampling if computed and sampling else None,
        [(c, known[c.metric], _part_of(c, known)) for c in COUNTS if c.metric in known],
    )


def phase_seconds(line: Mapping[str, Any]) -> dict[str, float]:
    """Key -> seconds of a step's phases; what `seconds_step` has beyond them is "other"."""
    seconds = _seconds(line, PHASES)
    whole = _number(line, PREFIX + "step")
    if whole is None:
        return seconds
    return seconds | {OTHER.key: max(0.0, whole - math.fsum(seconds.values()))}


def aligned(tables: Sequence[Sequence[PhaseTime]]) -> list[tuple[Phase, list[PhaseTime | None]]]:
    """The phases of several runs beside each other, in the order of a step."""
    found = [{row.part: row for row in rows} for rows in tables]
    every = (*PHASES, OTHER, *INSIDE)
    used = [part for part in every if any(part in rows for rows in found)]
    return [(part, [rows.get(part) for rows in found]) for part in used]


def bands(anatomies: Sequence[Anatomy]) -> list[Phase]:
    """The phases with a band of their own in a chart of these runs, then `REST` for all others."""
    rows = aligned([anatomy.phases for anatomy in anatomies])
    large = [part for part, cells in rows if any(row and row.share >= BAND for row in cells)]
    return [*(part for part in large if part is not OTHER), REST]


def sentence(anatomy: Anatomy) -> str:
    """What bounds the step: the share of every family, largest first, then the parts of the large
    families (of sampling, in which much overlaps, the parts of its work)."""
    families: dict[str, float] = {}
    for row in anatomy.phases:
        families[row.part.family] = families.get(row.part.family, 0.0) + row.share
    ordered = sorted(families.items(), key=lambda item: -item[1])
    shares = [f"{name} {percent(share)}" for name, share in ordered if share >= 0.005]
    largest = shares[0].replace(ordered[0][0], f"{ordered[0][0]} takes", 1) + " of the step"
    said = ", ".join([largest, *shares[1:]])
    inside = [text for name, whole in ordered if (text := _inside(anatomy, name, whole))]
    said = f"{said}; {'; '.join(inside)}" if inside else said
    return said[0].upper() + said[1:] + "."


def _inside(anatomy: Anatomy, family: str, whole: float) -> str:
    """The largest parts of a family; empty if the family is small or has one part."""
    rows, of = [row for row in anatomy.phases if row.part.family == family], family
    if family == SAMPLING and anatomy.inside:
        rows, of = anatomy.inside, "sampling's work"
    everything = math.fsum(row.share for row in rows)
    shares = sorted(((row.share / everything, row.part.label) for row in rows), reverse=True)
    named = [f"{label} {percent(share)}" for share, label in shares if share >= 0.005]
    return f"of {of} {', '.join(named[:4])}" if whole >= LARGE and len(named) > 1 else ""


def _rows(
    parts: Sequence[Phase],
    steps: Sequence[Mapping[str, float]],
    lines: Sequence[Mapping[str, Any]],
    middle: Middle,
) -> list[PhaseTime]:
    """The phases that took any time; a step that does not name a phase spent none on it."""
    found: list[tuple[Phase, list[float]]] = []
    for part in parts:
        values = [step.get(part.key, 0.0) for step in steps]
        if any(values):
            found.append((part, values))
    whole = math.fsum(middle(values) for _, values in found)
    return [
        PhaseTime(part, middle(values), min(values), max(values),
            middle(values) / whole if whole else 0.0, _tokens(part, lines, middle))
        for part, values in found
    ]  # fmt: skip


def _tokens(part: Phase, lines: Sequence[Mapping[str, Any]], middle: Middle) -> float | None:
    if not part.tokens:
        return None
    whole = _typical(lines, part.tokens, middle)
    less = _typical(lines, part.less, middle) if part.less else 0.0
    return None if whole is None or less is None else whole - less


def _typical(lines: Sequence[Mapping[str, Any]], metric: str, middle: Middle) -> float | None:
    values = [value for line in lines if (value := _number(line, metric)) is not None]
    return middle(values) if values else None


def _part_of(count: Count, known: Mapping[str, float]) -> float | None:
    if not count.of or any(metric not in known for metric in count.of):
        return None
    whole = math.fsum(known[metric] for metric in count.of)
    return known[count.metric] / whole if whole else None


def _seconds(line: Mapping[str, Any], parts: Sequence[Phase]) -> dict[str, float]:
    values = {part.key: _number(line, PREFIX + part.key) for part in parts}
    return {key: value for key, value in values.items() if value is not None}


def _number(line: Mapping[str, Any], metric: str) -> float | None:
    value = line.get(metric)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
