"""The whole pipeline as one command: SFT, then GRPO and AXPO beside each other, then the report.

Every stage is an `axpo` command (`axpo.stages` runs them), so the command itself can be killed and
repeated at any time. Stages that need nothing of each other share the machine's cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from axpo.config import Config, UserError
from axpo.stages import Stage, run_stages


class StageError(UserError):
    """A stage's process failed; the message holds the end of its log."""


def quickstart(config: Config, recipe: Path, overrides: Sequence[str], out: Path) -> Path:
    """Run every stage that `out` lacks; returns the report's path. Raises `StageError`.

    `config` is what `recipe` and `overrides` say.
    """
    stages = _stages(config, recipe, overrides, out)
    if failed := run_stages(stages, out / "logs", "axpo quickstart"):
        raise StageError(failed[0].failure)
    return out / "report.html"


def _stages(config: Config, recipe: Path, overrides: Sequence[str], out: Path) -> list[Stage]:
    sizes = {
        "sft": config.sft.steps,
        "rl": config.rl.steps,
        "eval": config.eval.questions,
        "diagnose": config.eval.prefixes,
    }

    def stage(
        name: str, command: str, kind: str, guess: float, *args: str, after: tuple[str, ...]
    ) -> Stage:
        folder = out / name.split()[-1]
        parts = [command, str(recipe), *overrides, *args, "--out", str(folder)]
        return Stage(name, parts, folder, kind, sizes[kind], guess, after)

    grpo, start = "algorithm.name=grpo", f"model.path={out / 'sft'}"
    stages = [
        stage("sft", "sft", "sft", 180, after=()),
        stage("grpo", "train", "rl", 240, grpo, start, after=("sft",)),
        stage("axpo", "train", "rl", 330, start, after=("sft",)),
    ]
    runs = [s.name for s in stages]
    for name in runs:
        model = f"model.path={out / name}"
        stages.append(stage(f"evaluate {name}", "eval", "eval", 60, model, after=(name,)))
    for name in runs:
        model = f"model.path={out / name}"
        stages.append(
            stage(
                f"diagnose {name}", "diagnose", "diagnose", 30, model, after=(f"evaluate {name}",)
            )
        )
    folders = [str(out / name) for name in runs]
    report = Stage(
        "report",
        ["report", *folders, "--out", str(out / "report.html")],
        out,
        "report",
        1,
        15,
        tuple(s.name for s in stages),
    )
    return [*stages, report]
