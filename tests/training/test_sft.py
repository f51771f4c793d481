"""Supervised training keeps its tools open from the first step to the last, or to an error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import UserError
from axpo.tasks.lab import BASE
from axpo.tools.zoom import ZoomTool
from tests.support.runs import Lines, config, train_sft

SHORT = {"steps": 3, "batch": 4}


class Life:
    """Notes what happens to the zoom tool, and on which event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.loops: set[asyncio.AbstractEventLoop] = set()
        self.refused = "none"
        call = ZoomTool.__call__

        async def start(tool: ZoomTool) -> None:
            self.log.append("start")

        async def close(tool: ZoomTool) -> None:
            self.log.append("close")

        async def note(tool: ZoomTool, arguments: Any, context: Any) -> Any:
            self.loops.add(asyncio.get_running_loop())
            if context.trajectory.startswith(self.refused):
                raise UserError("spent")
            return await call(tool, arguments, context)

        monkeypatch.setattr(ZoomTool, "start", start, raising=False)
        monkeypatch.setattr(ZoomTool, "close", close, raising=False)
        monkeypatch.setattr(ZoomTool, "__call__", note)


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch) -> Life:
    return Life(monkeypatch)


def replay_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("replays")]


def test_tools_open_once_and_close_once(life: Life, tmp_path: Path) -> None:
    train_sft(config(sft=SHORT), BASE, tmp_path, Lines())
    assert life.log == ["start", "close"]
    assert len(life.loops) == 1 and next(iter(life.loops)).is_closed()
    assert replay_threads() == []


def test_an_error_of_the_training_closes_the_tools(life: Life, tmp_path: Path) -> None:
    class Stop(Lines):
        def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_sft(config(sft=SHORT), BASE, tmp_path, Stop())
    assert life.log == ["start", "close"]
    assert replay_threads() == []


def test_a_tool_that_stops_the_run_keeps_what_was_trained(life: Life, tmp_path: Path) -> None:
    life.refused = "s2/"
    settings = config(sft=SHORT | {"batch": 16}, run={"checkpoint_every": 100})
    with pytest.raises(UserError, match="spent"):
        train_sft(settings, BASE, tmp_path, Lines())
    assert life.log == ["start", "close"]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-000002"]
