"""Whether what a finished stage was made with is still what it would be made with. Nothing here
imports torch, unless an evaluation's data has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axpo.build.tools import rl_files, run_files
from axpo.config import Config
from axpo.evaluation.identity import DATA, FILES
from axpo.folder import RunFolder, read_json, saved_checkpoints
from axpo.training.data import RunData, changed_files


def changed_since(kind: str, out: Path, config: Config) -> list[str]:
    """What is different today, in words, from the data and the files that a finished stage of this
    kind ("sft", "rl", "eval") was made with in the folder `out`; empty where that is not known, and
    for another kind."""
    if kind == "eval":
        return _evaluated(RunFolder(out), config)
    saved = saved_checkpoints(RunFolder(out).checkpoints)
    states = [checkpoint.state for checkpoint in saved if not checkpoint.missing]
    if kind not in ("sft", "rl") or not states:
        return []
    split, files = (
        ("sft", run_files(config, "sft")) if kind == "sft" else ("train", rl_files(config))
    )
    changes = RunData(out, config.task, split, files).changes(read_json(states[-1])["data"])
    return [*changes.order, *changes.content]


def _evaluated(folder: RunFolder, config: Config) -> list[str]:
    if not folder.evaluated.identity.is_file():
        return []
    task, settings = config.task, config.eval
    noted: dict[str, Any] = read_json(folder.evaluated.identity)
    changed = changed_files(noted[FILES], run_files(config, settings.split))
    if noted.get(DATA, "") != task.fingerprint(settings.split):
        from axpo.evaluation.shelf import changed_questions

        size = task.size(settings.split)
        count = settings.questions if size is None else min(size, settings.questions)
        examples = (task.example(settings.split, index) for index in range(count))
        changed += changed_questions(folder.evaluated, examples)
    return changed
