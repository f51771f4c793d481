"""The cells of a study: which commands make them, where they lie, what they were made with.

Folders of `out`: `start/seed-S` (SFT, and its evaluation) and `VARIANT/seed-S` (training and its
evaluation); `logs/`; `recipe.toml`, the recipe that the cells read. Beside a stage's `done.json`
lies the `settings.json` that it was started with; only what the stage depends on is in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from axpo.config import Config
from axpo.evaluation.identity import OUTCOME, changes, outcome_settings
from axpo.folder import RunFolder, read_json, write_whole
from axpo.stages import Stage, begun
from axpo.study.settings import START, Study, StudyError

COMMANDS = {"sft": "sft", "rl": "train", "eval": "eval", "diagnose": "diagnose"}
"""Kind of a stage's metrics -> its command."""
GUESSES = {"sft": 1.4, "rl": 2.5, "eval": 0.25, "diagnose": 1.0}
"""Seconds of the lab on one core, of a step, question or prefix, until a stage has finished."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A model of the study: the start or a variant, of one seed."""

    variant: str
    seed: int

    def folder(self, out: Path) -> Path:
        return out / self.variant / f"seed-{self.seed}"

    @property
    def trained(self) -> str:
        """Name of the stage that makes the model."""
        return f"{'sft' if self.variant == START else 'train'} {self.variant} {self.seed}"


def cells(study: Study) -> list[Cell]:
    """Starts first, then variants seed by seed, so that whole comparisons are there early."""
    starts = [Cell(START, seed) for seed in study.starts]
    return starts + [
        Cell(v.name, seed)
        for seed in study.settings.seeds
        for v in study.variants.values()
        if seed in v.seeds
    ]


def stages(study: Study, out: Path) -> list[Stage]:
    """Every command of the study, each after what it needs."""
    found: list[Stage] = []
    for cell in cells(study):
        config = study.config(cell.variant, cell.seed)
        found += _cell_stages(study, cell, config, out)
    return found


def _cell_stages(study: Study, cell: Cell, config: Config, out: Path) -> Iterator[Stage]:
    folder = cell.folder(out)
    sft = study.settings.sft != "none"
    name = f"{cell.variant} {cell.seed}"
    own = f"model.path={folder}"

    def stage(kind: str, total: int, model: str | None, after: str | None) -> Stage:
        command = COMMANDS[kind]
        args = [command, str(out / "recipe.toml"), *study.overrides(cell.variant, cell.seed)]
        args += [model] if model else []
        return Stage(
            f"{command} {name}", [*args, "--out", str(folder)], folder, kind, total,
            GUESSES[kind] * total, (after,) if after else (),
        )  # fmt: skip

    if cell.variant != START:
        start = Cell(START, study.start_of(cell.seed))
        model = f"model.path={start.folder(out)}" if sft else None
        yield stage("rl", config.rl.steps, model, start.trained if sft else None)
    elif sft:
        yield stage("sft", config.sft.steps, None, None)
    trained = sft or cell.variant != START
    yield stage(
        "eval", config.eval.questions, own if trained else None, cell.trained if trained else None
    )
    if cell.variant == START:
        wanted = any(variant.diagnose for variant in study.variants.values())
    else:
        wanted = study.variants[cell.variant].diagnose
    if wanted:
        model = own if trained else None
        yield stage("diagnose", config.eval.prefixes, model, f"eval {name}")


def check_made(study: Study, out: Path, planned: list[Stage]) -> None:
    """Refuse a study whose finished or begun stages were made with other settings.

    Raises `StudyError` that names the stages, what differs and what to remove.
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


def write_settings(study: Study, stage: Stage) -> None:
    """Note what a stage is started with, just before it is."""
    stage.folder.mkdir(parents=True, exist_ok=True)
    write_whole(settings_file(stage), json.dumps(stage_settings(study, stage), indent=1))


def settings_file(stage: Stage) -> Path:
    return RunFolder(stage.folder).stage_settings(stage.name)


def stage_settings(study: Study, stage: Stage) -> dict[str, Any]:
    """What a stage's outcome depends on, flat: "section.key" -> plain JSON value.

    What is trained or judged after SFT depends on SFT's settings too.
    """
    _, variant, seed = stage.name.rsplit(" ", 2)
    values = study.config(variant, int(seed)).model_dump(mode="json")
    after_sft = study.settings.sft != "none" and stage.kind != "sft"
    sections = OUTCOME[COMMANDS[stage.kind]] + (("sft",) if after_sft else ())
    found = outcome_settings(values, sections)
    if after_sft:
        found["start"] = f"{study.settings.sft} {study.start_of(int(seed))}"
        if stage.kind == "rl":
            del found["model.path"]  # the start's folder, wherever it lies
    elif stage.kind != "sft":
        found["start"] = "model.path"
    unused = {"eval": ("eval.prefixes", "eval.prefix_samples"), "diagnose": ("eval.by",)}
    for key in unused.get(stage.kind, ()):
        del found[key]
    return found
