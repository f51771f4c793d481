"""What something on disk was made with, against what it would be made with now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
