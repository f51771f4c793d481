"""What every test starts from."""

from __future__ import annotations

import signal

import pytest


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """A shell has what it runs in the background ignore Ctrl-C, `nohup` a hang-up, and programs
    hand that on to what they start: commands that tests interrupt would never hear of it."""
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
