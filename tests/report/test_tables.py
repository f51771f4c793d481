"""Tables in a terminal say names as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from axpo.report import tables
from axpo.report.tables import print_evaluation


def test_brackets_in_a_name_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"pass_at_1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    by = {"family": {"o[red]x": {"metrics": metrics}}}
    found = {"metrics": metrics, "by": by, "questions": 2, "split": "t[/b]", "samples": 4}
    print_evaluation(found | {"unscored": 0})
    said = capsys.readouterr().out
    assert "o[red]x" in said and "2 t[/b] questions" in said


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_interval_is_broken(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is too wide is told in several."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(tables, "output_console", lambda: console)
    names = ("pass@1", "pass@4", "tool_rate", "all_wrong_no_tool")
    value = {"value": 0.5, "low": 0.25, "high": 0.75}
    metrics = dict.fromkeys(names, value)
    by = {"family": {name: {"metrics": metrics} for name in ("calculate", "find", "look_up")}}
    found = {"metrics": metrics, "by": by, "questions": 2, "split": "test", "samples": 4}
    print_evaluation(found | {"unscored": 0})
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert max(map(len, said.splitlines())) <= width and "…" not in said
    assert said.count("0.500 [0.250, 0.750]") == 4 * len(names)
    assert said.count("All-wrong no-tool subgroups") == {60: 4, 80: 2, 100: 2, 200: 1}[width]


def test_off_a_terminal_lines_are_as_long_as_they_have_to_be(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    metrics = {"pass@1": {"value": 0.5, "low": 0.25, "high": 0.75}}
    by = {"family": {str(i): {"metrics": metrics} for i in range(8)}}
    found = {"metrics": metrics, "by": by, "questions": 2, "split": "test", "samples": 4}
    print_evaluation(found | {"unscored": 0})
    said = capsys.readouterr().out
    assert said.count("Pass@1") == 1 and said.count("0.500 [0.250, 0.750]") == 9
    assert "\x1b" not in said
