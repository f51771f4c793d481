"""What a run's folder records of where it came from, and how the page tells it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import axpo
from axpo.config.secrets import MASK
from axpo.folder import RunFolder
from axpo.report.monitor import run_monitor
from axpo.report.provenance import _gpus, read_provenance, recorded, this_process
from axpo.report.runs import RunView
from axpo.report.where import where_from


def test_every_command_that_works_in_a_folder_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for command in ("train", "eval"):
        monkeypatch.setattr(sys, "argv", ["axpo", command, "lab.toml", "rl.steps=3"])
        with run_monitor(run, "title") as monitor:
            monitor.start("rl", 0, 1)
    entries = read_provenance(run)
    assert [entry["command"] for entry in entries] == [
        "axpo train lab.toml rl.steps=3", "axpo eval lab.toml rl.steps=3",
    ]  # fmt: skip
    assert all(entry["seconds"] >= 0 and entry["axpo"] == axpo.__version__ for entry in entries)
    assert all(entry[name] for entry in entries for name in ("torch", "python", "machine"))


def test_a_command_that_is_killed_has_no_duration_and_one_that_fails_has(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), recorded(tmp_path):
        killed = json.loads(RunFolder(tmp_path).provenance.read_text())
        raise RuntimeError
    assert "seconds" not in killed[0] and "seconds" in read_provenance(tmp_path)[0]


def test_secrets_are_not_recorded() -> None:
    arguments = ["train", "a.toml", 'tools.mcp.x.command=["x", "--api-key", "s3cret"]',
                 "engine.urls=http://me:s3cret@host/v1"]  # fmt: skip
    said = this_process(arguments)["command"]
    assert "s3cret" not in said and said.count(MASK) == 2
    assert "me" not in said.partition("urls=")[2]


def test_cards_are_told_as_the_driver_names_them(tmp_path: Path) -> None:
    for card in ("0000:01", "0000:02"):
        (tmp_path / card).mkdir()
        (tmp_path / card / "information").write_text("Model: \t NVIDIA H100 80GB\nIRQ: 7\n")
    assert _gpus(tmp_path) == ["2 × NVIDIA H100 80GB"]
    assert _gpus(tmp_path / "none") == []


def test_what_the_runs_share_is_told_once(tmp_path: Path) -> None:
    entry = this_process([]) | {"started": "2026-11-28T09:05:00+00:00", "seconds": 100.0}
    views = [
        RunView(
            name, tmp_path, {"run": {"seed": 7}},
            provenance=[
                entry | {"command": f"axpo train lab.toml algorithm.name={name} --out runs/{name}"},
                entry | {"command": f"axpo eval lab.toml --out runs/{name}", "torch": "9.9"},
                {k: v for k, v in entry.items() if k != "seconds"} | {"command": "axpo eval x"},
            ],
        )
        for name in ("grpo", "axpo")
    ]  # fmt: skip
    facts = {fact.label: fact.values for fact in where_from(views, ["GRPO", "AXPO"])}
    assert facts["Recipe"] == [("", "lab.toml")] and facts["Seed"] == [("", "7")]
    assert facts["Changed settings"] == [
        ("GRPO", "algorithm.name=grpo"), ("AXPO", "algorithm.name=axpo")
    ]  # fmt: skip
    assert facts["Started"] == [("", "28 November 2026, 09:05 UTC")]
    assert facts["Duration"] == [("", "train 1:40, eval 1:40; 1 more stopped before the end")]
    assert facts["torch"] == [("", f"{entry['torch']}, then 9.9")]
    assert where_from([RunView("x", tmp_path)], ["x"]) == []
