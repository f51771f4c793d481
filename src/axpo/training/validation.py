"""Evaluation while training: when it happens, which weights are the best, and when to stop.

The weights after 0, `eval.every`, 2 `eval.every`, ... and all steps are evaluated, each once their
checkpoint is written and before the next batch is asked for. So a run that was killed goes on from
the last evaluated weights or later ones, and no evaluation is done again, but for one that was cut
short. Where rollouts are sampled ahead, their sampling goes on beside it; no new weights come
before it is done, so all its tokens are of one version.

What measures is handed over, for it lives above the loop. It draws with seeds of its own, so the
training is the same to the bit whether it is evaluated or not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from axpo import stopping
from axpo.config import Config
from axpo.errors import ConfigError
from axpo.folder import RunFolder, read_json, write_whole
from axpo.training.monitor import VALIDATION, Monitor

Measure = Callable[[int], Awaitable[Mapping[str, float]]]
"""Figures of the current weights, those after so many steps; `unscored_share` is one of them."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The `figures` of the weights after `step` steps. It took `seconds`; `since` are those from
    the end of the evaluation before it (or from the start of the command) to its own."""

    step: int
    seconds: float
    since: float
    figures: Mapping[str, float]


class Validation:
    """The evaluations of the run in `folder`, on disk in its `validation.json`.

    `made_with` (plain JSON) says what they are of; a folder with evaluations of something else is
    refused with `ConfigError`. Without `eval.every` nothing is evaluated, and the checkpoint that
    was the best before is still kept.
    """

    def __init__(
        self, config: Config, folder: RunFolder, made_with: Mapping[str, Any], measure: Measure
    ) -> None:
        self._config, self._folder, self._measure = config, folder, measure
        self._made_with = dict(made_with)
        self._done: list[Evaluated] = []
        self._last = time.perf_counter()
        self._noted_best: int | None = None
        if folder.validation.is_file():
            self._read()

    @property
    def best(self) -> int | None:
        """The steps of the best weights so far; None where there are none."""
        place = best_of(self._values())
        return self._noted_best if place is None else self._done[place].step

    def due(self, step: int) -> bool:
        """Whether the weights after `step` steps are evaluated."""
        every = self._config.eval.every
        return every > 0 and (step % every == 0 or step == self._config.rl.steps)

    async def steps(self, first: int, monitor: Monitor) -> AsyncIterator[int]:
        """The steps to train from `first` on, each after the evaluation of the weights before it;
        they end where `eval.patience` is used up, which `monitor` hears."""
        total = self._config.rl.steps
        self._begin(first, monitor)
        for step in range(first, total + 1):
            if self.due(step) and not (self._done and self._done[-1].step == step):
                stopping.check()
                await self._evaluate(step, monitor)
            if reason := self._reason_to_end():
                monitor.ended(reason)
                return
            if step < total:
                yield step

    def _begin(self, first: int, monitor: Monitor) -> None:
        """Forget what was evaluated of weights that are trained again."""
        if not self._config.eval.every:
            return
        self._done = [one for one in self._done if one.step <= first]
        monitor.start(
            VALIDATION, self._done[-1].step + 1 if self._done else 0, self._config.rl.steps
        )
        if self._done:
            self._write()
        self._last = time.perf_counter()

    async def _evaluate(self, step: int, monitor: Monitor) -> None:
        monitor.phase("validating")
        began = time.perf_counter()
        figures = await self._measure(step)
        now = time.perf_counter()
        self._done.append(Evaluated(step, now - began, now - self._last, figures))
        self._last = now
        metrics = {f"validation_{name}": value for name, value in figures.items()}
        # The line before the file: a kill between them has both made again, none counts twice.
        monitor.step(VALIDATION, step, metrics | self._standing())
        self._write()

    def _standing(self) -> dict[str, float]:
        """Metrics of all evaluations so far."""
        spent = math.fsum(one.seconds for one in self._done)
        standing = {
            "validation_seconds": self._done[-1].seconds,
            "validation_share": spent / math.fsum(one.since for one in self._done),
        }
        values, place = self._values(), best_of(self._values())
        if (value := values[-1]) is not None:
            standing["validation_value"] = value
        if place is not None and (best := values[place]) is not None:
            standing |= {"validation_best": best, "validation_best_step": self._done[place].step}
        return standing

    def _reason_to_end(self) -> str:
        """Why training ends before its last step; empty where it does not."""
        patience, passed = self._config.eval.patience, without_better(self._values())
        over = bool(self._done) and self._done[-1].step == self._config.rl.steps
        if over or patience is None or passed < patience:
            return ""
        times = "evaluation" if passed == 1 else "evaluations"
        return f"no better {self._metric} in {passed} {times} since step {self.best}"

    @property
    def _metric(self) -> str:
        settings = self._config.eval
        return f"pass@{settings.k}" if settings.metric == "pass@k" else settings.metric

    def _values(self) -> list[float | None]:
        """The metric of each evaluation; None where too much of it could not be scored."""
        limit = self._config.run.unscored_stop
        return [
            one.figures.get(self._metric) if one.figures["unscored_share"] <= limit else None
            for one in self._done
        ]

    def _write(self) -> None:
        place = best_of(self._values())
        best = None if place is None else {
            "step": self._done[place].step, "metric": self._metric, "value": self._values()[place]
        }  # fmt: skip
        content = {
            "best": best,
            "ended": self._reason_to_end() or None,
            "made_with": self._made_with,
            "evaluations": [asdict(one) for one in self._done],
        }
        write_whole(self._folder.validation, json.dumps(content, indent=1))

    def _read(self) -> None:
        file = self._folder.validation
        content = read_json(file)
        self._noted_best = (content["best"] or {}).get("step")
        if not self._config.eval.every:
            return
        self._done = [Evaluated(**one) for one in content["evaluations"]]
        noted = content["made_with"]
        changed = [
            f"{key}: {noted.get(key)!r} -> {value!r}"
            for key, value in self._made_with.items()
            if noted.get(key) != value
        ]
        if changed:
            raise ConfigError(
                f"{file} has evaluations of other questions or samples ({'; '.join(changed)}), "
                "which cannot be compared with new ones: give what they were made with, or remove "
                "the file to begin them anew"
            )


def best_of(values: Sequence[float | None]) -> int | None:
    """The place of the highest value, of equal ones the first; None without any."""
    known = [(value, -place) for place, value in enumerate(values) if value is not None]
    return -max(known)[1] if known else None


def without_better(values: Sequence[float | None]) -> int:
    """How many values there are after the best; those that are None say nothing."""
    best = best_of(values)
    return 0 if best is None else sum(value is not None for value in values[best + 1 :])
