"""Ranks and servers in a line: what a glance at a run on many GPUs needs."""

from __future__ import annotations

from collections.abc import Mapping


def parallel_text(values: Mapping[str, float]) -> str:
    """What a step's metrics say of ranks and servers; empty for one process and one server."""
    said: list[str] = []
    if "ranks" in values:
        said.append(f"{values['ranks']:.0f} ranks, imbalance {values['imbalance']:.2f}")
        for name, what in (("passes_idle", "idle pass"), ("restarts", "restart")):
            if count := round(values.get(name, 0)):
                many = "es" if what.endswith("s") else "s"
                said[-1] += f", {count} {what}{many if count > 1 else ''}"
    up, down = (round(values.get(name, 0)) for name in ("servers_up", "servers_down"))
    if up + down > 1:
        said.append(f"{up} of {up + down} servers up" if down else f"{up} servers up")
    if said and "seconds_sync" in values:
        said.append(f"weights sent in {values['seconds_sync']:.1f} s")
    if said and "loop_lag_max" in values:
        said.append(f"lag {values['loop_lag_max']:.2f} s")
    return " · ".join(said)
