"""Where the runs come from, for the page: recipe, command, versions, machine, date, duration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from axpo.report.names import capital
from axpo.report.provenance import PACKAGES
from axpo.report.runs import RunView
from axpo.wording import duration

NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact about the runs: a (run's name, text) for each, or one with an empty name for all."""

    label: str
    values: list[tuple[str, str]]


def where_from(runs: Sequence[RunView], names: Sequence[str]) -> list[Fact]:
    """The facts that at least one of the runs has recorded."""
    found = [_facts(run) for run in runs]
    facts: list[Fact] = []
    for label in dict.fromkeys(label for own in found for label in own):
        texts = [own.get(label, NOT_RECORDED) for own in found]
        if len(set(texts)) == 1:
            facts.append(Fact(label, [("", texts[0])]))
        else:
            facts.append(Fact(label, list(zip(names, texts, strict=True))))
    return facts


def in_a_line(facts: Sequence[Fact]) -> str:
    """The date, seed, version and machine that all runs share."""
    shared = {fact.label: fact.values[0][1] for fact in facts if not fact.values[0][0]}
    texts = {"Started": "{}", "Seed": "seed {}", "axpo": "axpo {}", "Machine": "{}"}
    return capital(", ".join(t.format(shared[key]) for key, t in texts.items() if key in shared))


def _facts(run: RunView) -> dict[str, str]:
    facts: dict[str, str] = {}
    if run.provenance:
        facts = _recorded(run.provenance)
    seed = run.config.get("run", {}).get("seed")
    return facts if seed is None else facts | {"Seed": str(seed)}


def _recorded(entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    first = entries[0]
    began, words = datetime.fromisoformat(first["started"]), shlex.split(first["command"])
    changed = [word for word in words if "=" in word and not word.startswith("-")]
    facts = {
        "Recipe": " ".join(word for word in words if word.endswith(".toml")) or "none",
        "Changed settings": " ".join(changed) or "none",
        "Command": first["command"],
        "Started": f"{began.day} {began:%B %Y, %H:%M} UTC",
        "Duration": _durations(entries),
        "axpo": _each(entries, _version),
        "Python": _each(entries, lambda entry: entry["python"]),
    }
    facts |= {name: _each(entries, lambda e, name=name: e[name]) for name in PACKAGES}
    return facts | {"Machine": _each(entries, lambda entry: entry["machine"])}


def _version(entry: Mapping[str, Any]) -> str:
    commit = entry["commit"]
    return entry["axpo"] if commit is None else f"{entry['axpo']} (commit {commit})"


def _each(entries: Sequence[Mapping[str, Any]], of: Any) -> str:
    """The text of all entries if they agree, or their texts in turn."""
    return ", then ".join(dict.fromkeys(of(entry) for entry in entries))


def _durations(entries: Sequence[Mapping[str, Any]]) -> str:
    """The time of each command; a command that was killed did not record its own."""
    spent: dict[str, float] = {}
    for entry in entries:
        name = shlex.split(entry["command"])[:2][-1]  # a script of one's own has one word
        spent[name] = spent.get(name, 0.0) + entry.get("seconds", 0.0)
    text = ", ".join(f"{name} {duration(seconds)}" for name, seconds in spent.items())
    killed = sum("seconds" not in entry for entry in entries)
    return text + (f"; {killed} more stopped before the end" if killed else "")
