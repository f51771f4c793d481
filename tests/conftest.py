"""What every test starts from."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator

# Before anything imports torch. Its threads wait for one another by spinning, which costs the
# tiny models here more than it gains, and workers of pytest-xdist would take each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports Ray: its nodes are at 127.0.0.1, which another machine cannot reach.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

import pytest

from axpo.sandbox import levels


def pytest_collection_finish() -> None:
    """What is imported stays: no collection of garbage looks through it again (0.3 s each)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """A shell has what it runs in the background ignore Ctrl-C, `nohup` a hang-up, and programs
    hand that on to what they start: commands that tests interrupt would never hear of it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)


@pytest.fixture
def no_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine with Linux before 6.12 and no bwrap; forgotten after the test."""
    monkeypatch.setattr(levels, "programs", list)
    monkeypatch.setattr(levels.landlock, "abi", lambda: 4)
    levels.obstacle.cache_clear()
    yield
    levels.obstacle.cache_clear()
