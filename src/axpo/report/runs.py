"""A run's folder as the report reads it: settings, metrics, evaluation and trajectory trees."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from axpo.errors import UserError
from axpo.folder import RunFolder, read_json
from axpo.report.metrics import read_metrics
from axpo.report.provenance import read_provenance
from axpo.training.monitor import VALIDATION
from axpo.tree import Group


@dataclass(slots=True)
class RunView:
    """One run to show. `validation` is what its evaluations while training found. `trees` maps a
    step to its file, which `groups` reads; `held_out` are the files of the evaluation's groups,
    which `held_out_groups` reads without their pictures."""

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluation: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] | None = None
    trees: Mapping[int, Path] = field(default_factory=dict)
    held_out: Sequence[Path] = ()
    provenance: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> RunView:
        """Read a run's folder; what is missing is left empty. `name` is by default the method's."""
        if not folder.is_dir():
            raise UserError(f"no run at {folder}: expected a folder with metrics.jsonl")
        own = RunFolder(folder)
        own.check()
        config = _json(own.settings) or {}
        metrics = read_metrics(folder)
        return cls(
            name or _method(config, metrics) or folder.name,
            folder, config, metrics, _json(own.evaluation), _json(own.validation),
            own.saved_trees(), own.evaluated.files(), read_provenance(folder),
        )  # fmt: skip

    def kinds(self) -> list[str]:
        """The kinds of steps that the run has metrics of, in order of appearance."""
        return list(dict.fromkeys(str(line.get("kind", "")) for line in self.metrics))

    def lines(self, kind: str) -> list[Mapping[str, Any]]:
        """The metrics of the steps of one `kind`."""
        return [line for line in self.metrics if line.get("kind") == kind]

    def names(self, kind: str) -> set[str]:
        """The names of the metrics of the steps of one `kind`."""
        return {name for line in self.lines(kind) for name in line}

    def series(self, metric: str, kind: str) -> list[tuple[int, float]]:
        """`(step, value)` of a metric, finite values only."""
        return [
            (int(line["step"]), float(line[metric]))
            for line in self.lines(kind)
            if isinstance(line.get(metric), int | float) and math.isfinite(line[metric])
        ]

    def groups(self, step: int) -> list[Group]:
        """The trees saved at `step`."""
        from axpo.store import load_groups

        return load_groups(self.trees[step], RunFolder(self.folder).pictures)

    def held_out_groups(self) -> list[Group]:
        """The groups of the evaluation, without pictures: there are hundreds, and few are shown."""
        from axpo.store import load_groups

        return [group for file in self.held_out for group in load_groups(file)]


def main_kind(runs: Sequence[RunView]) -> str:
    """The kind of step that the curves show: RL if any run has it, else the first kind found."""
    kinds = [kind for run in runs for kind in run.kinds() if kind != VALIDATION]
    return "rl" if "rl" in kinds or not kinds else kinds[0]


def distinct_names(runs: Sequence[RunView]) -> list[str]:
    """The runs' names; if two runs share a name, the folder is added."""
    names = [run.name for run in runs]
    return [
        name if names.count(name) == 1 else f"{name} ({run.folder.name})"
        for name, run in zip(names, runs, strict=True)
    ]


def _method(config: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> str | None:
    kinds = {line.get("kind") for line in metrics}
    if "rl" in kinds:
        name = config.get("algorithm", {}).get("name")
        return str(name).upper() if name else None
    return "SFT" if "sft" in kinds else None


def _json(path: Path) -> dict[str, Any] | None:
    value = read_json(path) if path.is_file() else None
    return value if isinstance(value, dict) else None
