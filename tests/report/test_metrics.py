"""Metrics files: one line a step, resumed without duplicates, tolerant to a killed writer."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from axpo.errors import ConfigError, MetricsError
from axpo.report.metrics import MetricsWriter, read_metrics
from axpo.report.monitor import run_monitor


def steps(run: Path, kind: str | None = None) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in read_metrics(run, kind)]


def test_lines_are_on_disk_at_once_and_read_back(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path / "run") as writer:
        writer.write("rl", 0, {"loss": 0.5, "kl": math.nan})
        (line,) = read_metrics(tmp_path / "run")
    assert (line["kind"], line["step"], line["loss"]) == ("rl", 0, 0.5)
    assert math.isnan(line["kl"])
    raw = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(raw)["kl"] is None
    assert line["time"] > 1e9


def test_resume_drops_only_what_is_written_again(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer:
        for step in range(4):
            writer.write("rl", step, {"loss": 1.0})
        writer.write("eval", 3, {"loss": 1.0})
    with MetricsWriter(tmp_path) as writer:
        writer.resume("rl", 2)
        writer.write("rl", 2, {"loss": 2.0})
    assert steps(tmp_path) == [("rl", 0), ("rl", 1), ("eval", 3), ("rl", 2)]
    assert read_metrics(tmp_path, "rl")[-1]["loss"] == 2.0


@pytest.mark.parametrize("torn", ['{"kind": "rl", "ste', '{"kind": "rl", "step": 1}', "\x00\x00"])
def test_a_torn_last_line_is_left_out_and_removed(tmp_path: Path, torn: str) -> None:
    with MetricsWriter(tmp_path) as writer:
        writer.write("rl", 0, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + torn)
    assert steps(tmp_path)[0] == ("rl", 0)
    with MetricsWriter(tmp_path) as writer:
        writer.write("rl", 1, {"loss": 1.0})
    assert steps(tmp_path) == [("rl", 0), ("rl", 1)]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "rl", "step": 0}\nbroken\n{"step": 1}\n')
    with pytest.raises(MetricsError, match=r"metrics\.jsonl:2"):
        read_metrics(tmp_path)


def test_a_metric_cannot_take_a_name_of_the_line(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path) as writer, pytest.raises(MetricsError, match="'step'"):
        writer.write("rl", 0, {"step": 1.0})


def test_no_file_is_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsWriter(tmp_path, tensorboard=True) as writer:
        for step in range(3):
            writer.write("rl", step, {"loss": step / 2})
    events = EventAccumulator(str(tmp_path / "tensorboard" / "rl")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 0.5), (2, 1.0)]


def test_missing_tensorboard_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    refused = pytest.raises(ConfigError, match=r"pip install 'axpo\[tracking\]'")
    with refused, run_monitor(tmp_path / "run", "SFT", tensorboard=True):
        raise AssertionError("it began")
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_before_the_start(tmp_path: Path) -> None:
    claimed: list[str] = []
    with run_monitor(tmp_path, "SFT", claim=lambda: claimed.append("claimed")) as monitor:
        monitor.phase("loading the model")
        assert not list(tmp_path.iterdir()) and not claimed
        monitor.start("sft", 0, 3)
        assert claimed == ["claimed"]
        monitor.step("sft", 0, {"nll": 1.0})
    assert [line["nll"] for line in read_metrics(tmp_path)] == [1.0]
