"""What a model's name means: a run's newest or best checkpoint, a folder, a Hub id or the shipped
base. This module does not import torch."""

from __future__ import annotations

from pathlib import Path

from axpo.errors import ConfigError
from axpo.folder import (
    CheckpointFolder,
    RunFolder,
    checkpoint_of,
    read_json,
    saved_checkpoints,
)
from axpo.models.families import refusal
from axpo.models.gguf import SUFFIX, converted
from axpo.models.intact import read_object
from axpo.tasks.lab import BASE

EXPECTED = (
    "expected a run, a checkpoint, a model's folder, a GGUF file, a Hub id such as "
    'Qwen/Qwen3-VL-4B-Thinking, or "lab-base"'
)
_RUNS = "runs"
"""The folder that recipes and documentation write runs to."""
_SHOWN = 8


def model_path(model: str) -> str:
    """The folder of the model that `model.path` names, or its Hub id.

    The folder is that of a run's newest checkpoint, its best one by its evaluations while training
    (RUN/best), a checkpoint's model, a model's own, what a GGUF file was converted to
    (`axpo.models.gguf`), or the shipped base's. Raises `ConfigError` for a folder that holds none
    of these, and for the name of a folder or GGUF file that does not exist: it is not looked for on
    the Hub. Raises `CheckpointError` for a config.json or a GGUF file that cannot be read.
    """
    if model == "lab-base":
        return str(BASE)
    path = Path(model).expanduser()
    if path.suffix == SUFFIX:
        if not path.is_file():
            raise ConfigError(f"model.path: there is no file {model}; {EXPECTED}")
        return str(converted(path))
    if not path.is_dir():
        if _names_best(path):
            return _best_model(RunFolder(path.parent))
        if is_local(model):
            raise ConfigError(f"model.path: {absent(model)}; {EXPECTED}")
        return model
    found = saved_checkpoints(RunFolder(path).checkpoints)
    newest_first = [checkpoint.model_config for checkpoint in reversed(found)]
    for config in [path / "config.json", CheckpointFolder(path).model_config, *newest_first]:
        kind = _model_type(config)
        if kind is None:
            continue
        if (why := refusal(kind)) is not None:
            raise ConfigError(f"model.path: {config}: {why}")
        return str(config.parent)
    raise ConfigError(f"model.path: {model}: no checkpoint in it; {EXPECTED}")


def show_path(model: str) -> str:
    """As `model_path`, but a name that is nothing here is returned unchanged."""
    path = Path(model).expanduser()
    there = path.exists() or _names_best(path) or model == "lab-base"
    return model_path(model) if there else model


def is_local(model: str) -> bool:
    """Whether a name can only mean a folder: a Hub id is OWNER/NAME, and OWNER is no folder."""
    first, slash, name = model.partition("/")
    hub_id = bool(first and slash and name) and "/" not in name and "\\" not in model
    return not hub_id or first in (".", "..", "~", _RUNS) or Path(first).is_dir()


def absent(model: str) -> str:
    """A message that a local folder does not exist, with what lies beside it."""
    path = Path(model).expanduser()
    if path.is_file():
        return f"{model} is a file"
    above = next((folder for folder in path.parents if folder.is_dir()), Path())
    beside = sorted(p.name for p in above.iterdir() if p.is_dir() and not p.name.startswith("."))
    if above == Path() or not beside:
        return f"there is no folder {model}"
    more = ", ..." if len(beside) > _SHOWN else ""
    held = f"{above} holds {', '.join(beside[:_SHOWN])}{more}"
    return f"there is no folder {model} ({held}; what begins with a folder is no Hub id)"


def _names_best(path: Path) -> bool:
    """Whether a path that is no folder names the best checkpoint of a run."""
    run = RunFolder(path.parent)
    return path == run.best and run.validation.is_file()


def _best_model(run: RunFolder) -> str:
    """The model of the run's best checkpoint; what the run began with where no step was better."""
    best = read_json(run.validation)["best"]
    if best is None:
        raise ConfigError(
            f"model.path: {run.best}: none of the run's evaluations could be scored "
            f"({run.validation}); expected model.path={run.path} for its newest checkpoint"
        )
    if best["step"] == 0:
        return model_path(read_json(run.settings)["model"]["path"])
    config = checkpoint_of(run.checkpoints, best["step"]).model_config
    if not config.is_file():
        raise ConfigError(
            f"model.path: {run.best} is the checkpoint of step {best['step']} "
            f"({run.validation}), and {config} is not there: put it back, or take "
            f"model.path={run.path} for the newest checkpoint"
        )
    return str(config.parent)


def _model_type(config: Path) -> str | None:
    """The `model_type` of a model's config.json; None for other files, such as a run's settings.
    Raises `CheckpointError` for a file that is broken."""
    return read_object(config).get("model_type") if config.is_file() else None
