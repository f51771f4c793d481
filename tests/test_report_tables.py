"""Tables in a terminal say names as they are."""

from __future__ import annotations

import pytest

from axpo.report.tables import print_evaluation


def test_brackets_in_a_name_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"pass_at_1": {"value": 0.5, "low": 0.4, "high": 0.6}}
    by = {"family": {"o[red]x": {"metrics": metrics}}}
    found = {"metrics": metrics, "by": by, "questions": 2, "split": "t[/b]", "samples": 4}
    print_evaluation(found | {"unscored": 0})
    said = capsys.readouterr().out
    assert "o[red]x" in said and "2 t[/b] questions" in said
