"""The live view: a panel that fits the terminal, plain lines elsewhere, an ETA that adds up."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from axpo.report import live
from axpo.report.live import LiveView, sparkline
from axpo.report.parallel import parallel_text
from axpo.wording import duration

METRICS = {"tool_rate": 0.34, "all_wrong_tool": 0.42, "accuracy": 0.5, "recovery_rate": 0.13}


def screen(width: int, terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal, color_system=None)


def output(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_panel_fits_and_shows_the_key_figures(width: int) -> None:
    view = LiveView("AXPO", console=screen(width, True))
    view.begin(0, 60)
    for step in range(1, 31):
        view.update(step, METRICS | {"rollouts": 128, "loss": 0.01, "tool_rate": step / 60})
    view.phase("resampling")
    console = screen(width, False)
    console.print(view.render())
    lines = output(console).splitlines()
    assert max(len(line) for line in lines) <= width
    text = " ".join(lines)
    for part in ("step 30/60", "ETA", "resampling", "tool rate", "50 %", "recovery", "13 %"):
        assert part in text
    if width >= 80:
        assert len(lines) == 4 + live.SHOWN


def test_what_was_not_scored_is_shown_while_there_is_any() -> None:
    view = LiveView("AXPO", console=screen(80, False))
    view.begin(0, 9)
    view.update(1, METRICS | {"unscored_share": 0.0})
    assert "not scored" not in view.lines()[0]
    view.update(2, METRICS | {"unscored_share": 0.28})
    assert "not scored 28 %" in view.lines()[0]


def test_ranks_and_servers_are_said_where_there_are_several() -> None:
    one = METRICS | {"servers_up": 1, "servers_down": 0, "seconds_sync": 3.0, "loop_lag_max": 0.1}
    assert parallel_text(one) == ""
    ranks = {"ranks": 8, "imbalance": 1.04, "passes_idle": 2, "restarts": 1}
    said = "8 ranks, imbalance 1.04, 2 idle passes, 1 restart"
    assert parallel_text(ranks) == said
    every = one | ranks | {"servers_up": 3, "servers_down": 1}
    said += " · 3 of 4 servers up · weights sent in 3.0 s · lag 0.10 s"
    view = LiveView("AXPO", console=screen(100, True))
    view.begin(0, 60)
    view.update(1, every)
    console = screen(200, False)
    console.print(view.render())
    assert said in " ".join(output(console).replace("│", " ").split())
    assert view.lines()[0].endswith(said)


def test_an_evaluation_is_shown_with_the_best_so_far() -> None:
    view = LiveView("AXPO", console=screen(80, False))
    view.begin(0, 9)
    view.update(1, METRICS)
    for value, best in ((0.5, 0.5), (0.25, 0.5)):
        view.note({"validation_value": value, "validation_best": best})
    assert view.step == 1
    assert "validation 25 % (best 50 %)" in view.lines()[0]
    console = screen(80, False)
    console.print(view.render())
    assert "best 50 %" in output(console)


def test_what_ends_early_says_why() -> None:
    console = screen(80, False)
    with LiveView("AXPO", console=console) as view:
        view.begin(0, 9)
        view.update(5, METRICS)
        view.end("no better pass@1")
        assert "early" not in view.lines()[0]
    assert "step 5/9 (56 %) | 0:00 in all | done early: no better pass@1 | " in output(console)


def test_terminal_session_draws_and_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    console = screen(80, True)
    with LiveView("AXPO", console=console) as view:
        view.begin(0, 2)
        view.phase("sampling")
        view.update(1, METRICS)
        view.update(2, METRICS)
    assert not view.plain
    assert "done" in output(console) and "step 2/2" in output(console)


def test_plain_lines_come_at_once_and_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "INTERVAL", 0.05)
    console = screen(80, False)
    with LiveView("AXPO", console=console) as view:
        assert "AXPO: starting | 0:00" in output(console)
        view.begin(0, 10)
        assert "step 0/10 (0 %)" in output(console)
        view.phase("sampling")
        view.update(1, METRICS)
        time.sleep(0.2)
    lines = output(console).splitlines()
    assert view.plain
    assert 4 <= len(lines) <= 8
    assert "sampling" in lines[-2] and "ETA" in lines[-2] and "tool rate 34 %" in lines[-2]
    assert "done" in lines[-1]


def test_a_failure_ends_as_stopped() -> None:
    console = screen(80, False)
    with pytest.raises(KeyboardInterrupt), LiveView("AXPO", console=console) as view:
        view.begin(0, 10)
        raise KeyboardInterrupt
    assert "stopped" in output(console).splitlines()[-1]


def test_eta_follows_the_pace_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    view = LiveView("AXPO", console=screen(80, False))
    with view:
        view.begin(30, 60)
        assert view.eta() is None
        now[0] += 20
        view.update(40, {})
        assert view.eta() == pytest.approx(40)
        now[0] += 15
        assert view.eta() == pytest.approx(25)


def test_rates_are_counts_over_the_time_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: now[0])
    view = LiveView("SFT", console=screen(80, False))
    view.begin(0, 5)
    now[0] = 4.0
    view.update(1, {"tokens_sampled": 1000.0, "rollouts": 32.0, "extra_samples": 0.25})
    assert "samples/s 10 | tokens/s 250" in view.lines()[0]


def test_sparkline_and_duration() -> None:
    assert sparkline([0, 1], 10) == "▁█"
    assert sparkline([0.3, 0.3], 10) == "▁▁"
    assert len(sparkline(list(range(1000)), 24)) == 24
    assert [duration(s) for s in (9, 75, 4000)] == ["0:09", "1:15", "1:06:40"]
