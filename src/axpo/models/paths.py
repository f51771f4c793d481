"""Where a model lies: a run's newest checkpoint, a folder, a Hub id, the shipped base. No torch."""

from __future__ import annotations

import json
from pathlib import Path

from axpo.errors import ConfigError
from axpo.folder import CheckpointFolder, RunFolder, saved_checkpoints
from axpo.tasks.lab import BASE

EXPECTED = (
    "expected a run, a checkpoint, a model's folder, a Hub id such as Qwen/Qwen3-VL-4B-Thinking, "
    'or "lab-base"'
)
_RUNS = "runs"
"""The folder that recipes and documentation write runs to."""
_SHOWN = 8


def model_path(model: str) -> str:
    """The folder of the model that `model.path` names, or its Hub id.

    That is a run's newest checkpoint, a checkpoint's model, a model's own folder or the shipped
    base. Raises `ConfigError` for a folder that holds none of these, and for a name of a folder
    that is not there: it is not looked for on the Hub.
    """
    if model == "lab-base":
        return str(BASE)
    path = Path(model).expanduser()
    if not path.is_dir():
        if is_local(model):
            raise ConfigError(f"model.path: {absent(model)}; {EXPECTED}")
        return model
    found = saved_checkpoints(RunFolder(path).checkpoints)
    newest_first = [checkpoint.model_config for checkpoint in reversed(found)]
    for config in [path / "config.json", CheckpointFolder(path).model_config, *newest_first]:
        kind = _model_type(config)
        if kind == "qwen3_vl":
            return str(config.parent)
        if kind is not None:
            raise ConfigError(
                f"model.path: {config} says model_type {kind!r}; expected 'qwen3_vl' "
                "(Qwen3VLForConditionalGeneration)"
            )
    raise ConfigError(f"model.path: {model}: no checkpoint in it; {EXPECTED}")


def show_path(model: str) -> str:
    """As `model_path`, but what is not there is given back as it is."""
    path = Path(model).expanduser()
    return model_path(model) if path.is_dir() or model == "lab-base" else model


def is_local(model: str) -> bool:
    """Whether a name can only mean a folder: Hub ids are OWNER/NAME, and no folder's."""
    first, slash, name = model.partition("/")
    hub_id = bool(first and slash and name) and "/" not in name and "\\" not in model
    return not hub_id or first in (".", "..", "~", _RUNS) or Path(first).is_dir()


def absent(model: str) -> str:
    """Says that a local folder is not there, and what lies beside it."""
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


def _model_type(config: Path) -> str | None:
    """What a model's config.json says it is; None for another file, such as a run's settings."""
    try:
        return json.loads(config.read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
