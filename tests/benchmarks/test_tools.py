"""The tools benchmark compares equal work: slow tools change when, never what."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from axpo.sandbox import levels
from axpo.tools.toolbox import Toolbox
from axpo.tree import CallStatus, StopReason
from benchmarks import tools
from benchmarks.pages import render
from benchmarks.targets import targets_of

pytestmark = pytest.mark.skipif(
    all(levels.obstacle(level) for level in ("bubblewrap", "landlock")),
    reason="no level of the sandbox works here",
)
CASE = replace(tools.TINY, questions=2, rollouts=4, tool_turns=2)


def test_waiting_changes_nothing_that_is_sampled_or_seen(tmp_path: Path) -> None:
    with asyncio.Runner() as runner:
        found = tools.real_tools(tmp_path)
        toolbox = Toolbox(found)
        runner.run(toolbox.start())
        checkpoint = tools.calling_checkpoint(found, CASE.thinking)
        sides = [tools.Trajectories(runner, checkpoint, found, CASE, s) for s in (0.0, 0.05)]
        figures = [side() for side in sides]
        runner.run(toolbox.close())
    instant, slow = (tools.sampled(side.groups) for side in sides)
    assert instant == slow
    rollouts = [rollout for group in sides[1].groups for rollout in group.rollouts]
    assert {rollout.stop for rollout in rollouts} == {StopReason.MAX_TURNS}
    calls = [call for rollout in rollouts for call in rollout.calls]
    assert {call.name for call in calls} == set(tools.ARGUMENTS)
    ran = [call for call in calls if call.status is CallStatus.OK]
    assert len(ran) == 2 * len(rollouts) == figures[0]["calls"] == figures[1]["calls"]
    for key in ("tokens", "turns", "samples"):
        assert figures[0][key] == figures[1][key]


def test_a_quick_run_gives_rows_and_a_page(tmp_path: Path) -> None:
    rows = list(tools.run(quick=True))
    assert [row["against"] for row in rows] == ["instant tools", *["empty call"] * 3]
    assert [len(targets_of(row)) for row in rows] == [2, 0, 0, 0]
    machine = {"processor": "p", "cores": 1, "threads": 1, "versions": {}}
    result = {"rows": rows, "machine": machine, "command": "c", "date": "d", "seconds": 1}
    page = render(json.loads(json.dumps({"tools": result})), tmp_path / "page.md").read_text()
    assert "| 4 | 16-48 |" in page and "| web_search | 1 |" in page
