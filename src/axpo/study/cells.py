"""The cells of a study: the commands that make them, their folders, and their settings.

The folder `out` holds `start/seed-S` (SFT and its evaluation), `VARIANT/seed-S` (training and its
evaluation), `logs/`, and `recipe.toml`, the recipe that the cells read. Beside the `done.json` of a
stage lies the `settings.json` that it was started with, which has only what the stage depends on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.config import Config
from axpo.errors import StudyError
from axpo.evaluation.identity import OUTCOME, changes, outcome_settings
from axpo.folder import RunFolder, read_json, write_whole
from axpo.stages import Stage, begun
from axpo.study.settings import START, Study

COMMANDS = {"sft": "sft", "rl": "train", "eval": "eval", "diagnose": "diagnose"}
"""The command of each stage, by the kind of its metrics."""
GUESSES = {"sft": 1.4, "rl": 2.5, "eval": 0.25, "diagnose": 1.0}
"""Seconds per step, question or prefix of the lab on one core, guessed until a stage has
finished."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model of the study: the start or a variant, with one seed."""

    variant: str
    seed: int

    def folder(self, out: Path) -> Path:
        """The cell's folder in the study's folder `out`."""
        return out / self.variant / f"seed-{self.seed}"

    @property
    def trained(self) -> str:
        """The name of the stage that makes the model."""
        return f"{'sft' if self.variant == START else 'train'} {self.variant} {self.seed}"


def cells(study: Study) -> list[Cell]:
    """The starts, then the variants seed by seed, so that comparisons are complete early."""
    starts = [Cell(START, seed) for seed in study.starts]
    return starts + [
        Cell(v.name, seed)
        for seed in study.settings.seeds
        for v in study.variants.values()
        if seed in v.seeds
    ]


def copies(study: Study, out: Path) -> list[Path]:
    """The files of the recipes that the cells read: `recipe.toml`, `recipe-2.toml` and so on."""
    first = RunFolder(out).recipe
    return [first, *(first.with_stem(f"recipe-{n}") for n in range(2, len(study.recipes) + 1))]


def stages(study: Study, out: Path) -> list[Stage]:
    """Every command of the study, each after the commands that it needs."""
    return [stage for cell in cells(study) for stage in _cell_stages(study, cell, out)]


def _cell_stages(study: Study, cell: Cell, out: Path) -> Iterator[Stage]:
    config, folder = study.config(cell.variant, cell.seed), cell.folder(out)
    sft, is_start = study.settings.sft != "none", cell.variant == START
    name = f"{cell.variant} {cell.seed}"

    def stage(kind: str, total: int, model: Path | None, after: str | None) -> Stage:
        command = COMMANDS[kind]
        args = [command, *map(str, copies(study, out)), *study.overrides(cell.variant, cell.seed)]
        args += [f"model.path={model}"] if model else []
        return Stage(
            f"{command} {name}", [*args, "--out", str(folder)], folder, kind, total,
            GUESSES[kind] * total, (after,) if after else (),
        )  # fmt: skip

    if not is_start:
        start = Cell(START, study.start_of(cell.seed))
        of = (start.folder(out), start.trained) if sft else (None, None)
        yield stage("rl", config.rl.steps, *of)
    elif sft:
        yield stage("sft", config.sft.steps, None, None)
    own, made = (None, None) if is_start and not sft else (folder, cell.trained)
    yield stage("eval", config.eval.questions, own, made)
    variants = study.variants.values() if is_start else [study.variants[cell.variant]]
    if any(variant.diagnose for variant in variants):
        yield stage("diagnose", config.eval.prefixes, own, f"eval {name}")


def check_made(study: Study, out: Path, planned: list[Stage]) -> None:
    """Raise `StudyError` if finished or begun stages were made with other settings.

    The message names the stages, what differs and what to remove.
    """
    problems: list[str] = []
    defaults = outcome_settings(Config().model_dump(mode="json"), tuple(Config.model_fields))
    for stage in planned:
        file = settings_file(stage)
        if not file.is_file() or not begun([stage]):
            continue
        RunFolder(stage.folder).check()
        noted, now = read_json(file), stage_settings(study, stage)
        if said := changes(noted, now, defaults):
            made = stage.kind in ("sft", "rl")
            remove = stage.folder if made else f"{stage.folder}/{stage.name}.*.json"
            problems.append(f"{stage.name}: {said} (remove {remove})")
    if problems:
        raise StudyError(
            f"{out} holds cells with other settings:\n  " + "\n  ".join(problems) + "\n"
            "give another --out, the settings that they were made with, or remove what is named "
            "to have it made again"
        )


def made_stages(study: Study, planned: Iterable[Stage]) -> Iterator[tuple[str, str, Path, Config]]:
    """The finished stages with their kind, folder and settings (`axpo.checks.check_unchanged`); all
    have the same task, whose rows are read once."""
    for stage in planned:
        if stage.done.is_file():
            _, variant, seed = stage.name.rsplit(" ", 2)
            config = study.config(variant, int(seed))
            task = {"task": study.shared.task}
            yield stage.name, stage.kind, stage.folder, config.model_copy(update=task)


def write_settings(study: Study, stage: Stage) -> None:
    """Write the settings of a stage just before it is started."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_whole(settings_file(stage), json.dumps(stage_settings(study, stage), indent=1))


def settings_file(stage: Stage) -> Path:
    """The file of the settings that the stage was started with."""
    return RunFolder(stage.folder).stage_settings(stage.name)


def stage_settings(study: Study, stage: Stage) -> dict[str, Any]:
    """The settings on which a stage's outcome depends: plain JSON values by "section.key".

    A stage after SFT depends on the settings of SFT too.
    """
    _, variant, seed = stage.name.rsplit(" ", 2)
    values = study.config(variant, int(seed)).model_dump(mode="json")
    after_sft = study.settings.sft != "none" and stage.kind != "sft"
    sections = OUTCOME[COMMANDS[stage.kind]] + (("sft",) if after_sft else ())
    found = outcome_settings(values, sections)
    if after_sft:
        found["start"] = f"{study.settings.sft} {study.start_of(int(seed))}"
        if stage.kind == "rl":
            del found["model.path"]  # It is the start's folder, which may be anywhere.
    elif stage.kind != "sft":
        found["start"] = "model.path"
    unused = {"eval": ("eval.prefixes", "eval.prefix_samples"), "diagnose": ("eval.by",)}
    for key in unused.get(stage.kind, ()):
        del found[key]
    return found
