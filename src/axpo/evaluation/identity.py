"""What something on disk was made with, against what it would be made with now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OUTCOME = {
    "sft": ("model", "task", "rollout", "tools", "sft"),
    "train": ("model", "task", "rollout", "tools", "algorithm", "rl"),
    "eval": ("model", "task", "rollout", "tools", "eval"),
    "diagnose": ("model", "task", "rollout", "tools", "eval"),
}
"""Command -> the sections of the settings that its outcome depends on. `engine` is in none: it says
where tokens are sampled, and how fast, and may change when a run goes on."""
_MAY_CHANGE = ("tools.search.budget", "model.memory_gb")
"""A run that has spent its paid calls goes on with more of them, and on another card."""


def outcome_settings(values: Mapping[str, Any], sections: Sequence[str]) -> dict[str, Any]:
    """Flat "section.key" -> plain JSON value of these sections, and `run.seed`.

    `values` are a config's, dumped as JSON; sections that it lacks are left out.
    """
    found: dict[str, Any] = {"run.seed": values.get("run", {}).get("seed")}
    for section in sections:
        found |= _flat(values.get(section, {}), f"{section}.")
    return {key: value for key, value in found.items() if key not in _MAY_CHANGE}


def changed_settings(
    noted: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """(key, value noted, value now) where they differ, all plain JSON values.

    What was noted may be older than a setting: a key that it lacks, or has as null, stands for
    the default.
    """
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*noted, *now}):
        was, wanted = noted.get(key, defaults.get(key)), now.get(key)
        unset = was is None and wanted == defaults.get(key)
        if was != wanted and not unset:
            found.append((key, was, wanted))
    return found


def changes(noted: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """`changed_settings` as text: "key: was -> now; ..."; empty where nothing differs."""
    changed = changed_settings(noted, now, defaults)
    return "; ".join(f"{key}: {was!r} -> {wanted!r}" for key, was, wanted in changed)


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
