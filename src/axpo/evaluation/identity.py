"""The settings that something on disk was made with, compared with those of today."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from axpo.config import LimitSettings
from axpo.config.secrets import masked

OUTCOME = {
    "sft": ("model", "task", "rollout", "tools", "sft"),
    "train": ("model", "task", "rollout", "tools", "judge", "algorithm", "rl"),
    "eval": ("model", "task", "rollout", "tools", "judge", "eval"),
    "diagnose": ("model", "task", "rollout", "tools", "judge", "eval"),
    "bench": ("model", "rollout", "tools", "judge"),
}
"""Command -> the sections of the settings that its outcome depends on. `engine` is none of them:
it says where tokens are sampled, and how fast, and may change when a run goes on."""
FILES, DATA, SERVED = "tool files", "data", "served model"
"""Keys of an evaluation's identity: digests of own code and indexes, and two that are not compared
as settings are: the data's fingerprint, and the model that an engine outside says it serves."""
_MAY_CHANGE = re.compile(
    r"tools\.search\.budget"
    r"|tools\.limits\..*\.(timeout|concurrency|calls_per_second|retries|max_stuck)"
    r"|model\.(device|memory_gb|threads|gradient_checkpointing)"
    r"|judge\.(url|vllm.*|record|key|budget|concurrency|retries|timeout|deadline)"
    r"|rollout\.max_seconds"
    r"|task\.(against|contaminated)"
    r"|(rl|sft)\.optimizer\.max_tokens_per_micro_batch"
)
"""Settings that may change when a run goes on: more paid calls, more time, less memory, another
card, benchmarks that data are compared with. None of them changes what is meant to be computed,
although sums may round differently."""
_LIMITS = LimitSettings().model_dump(mode="json")


def outcome_settings(values: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """Flat "section.key" -> plain JSON value of these sections, and `run.seed`.

    `values` are a config's, dumped as JSON; sections that it lacks are left out. Secrets are
    masked, and of the limits only those are included that somebody set.
    """
    found: dict[str, Any] = {"run.seed": values.get("run", {}).get("seed")}
    for section in sections:
        found |= flattened(masked(values.get(section) or {}), f"{section}.")
    found.pop("tools.limits", None)
    for key in [key for key in found if key.startswith("tools.limits.")]:
        if found[key] == _LIMITS[key.rpartition(".")[2]]:
            del found[key]  # nobody set it
    return {key: value for key, value in found.items() if not _MAY_CHANGE.fullmatch(key)}


def changed_settings(
    noted: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(key, value noted, value now) of the settings that differ, all plain JSON values.

    If the values were noted before a setting existed (the key is missing or null), the setting's
    default is assumed.
    """
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*noted, *now}):
        was, wanted = noted.get(key, defaults.get(key)), now.get(key)
        unset = was is None and wanted == defaults.get(key)
        if was != wanted and not unset:
            found.append((key, was, wanted))
    return found


def changes(noted: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """`changed_settings` as text: "key: was -> now; ..."; empty if nothing differs."""
    changed = changed_settings(noted, now, defaults)
    return "; ".join(f"{key}: {was!r} -> {wanted!r}" for key, was, wanted in changed)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping from "section.key" to a value; an empty one stays a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
