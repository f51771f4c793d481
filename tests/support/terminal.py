"""`axpo` commands as processes, on a terminal or off it, and what a person sees of them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from typer.testing import CliRunner

from axpo.cli.commands import app
from axpo.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "src" / "axpo" / "recipes" / "lab.toml"
_CODE = re.compile(r"\x1b\[\??([0-9;]*)([A-Za-z])|\x1b\][^\x07]*\x07")


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / name) for name in ("src",))
    return (
        os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"} | more
    )


def here(*args: str, code: int = 0) -> str:
    """What a command prints in this process: it loads PyTorch, which takes a new one 3 s."""
    found = CliRunner(env={"COLUMNS": "100", "NO_COLOR": "1"}).invoke(app, args)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        assert isinstance(found.exception, UserError), found.exception
        assert code == 1
        return f"{found.output}axpo: {found.exception}"
    assert found.exit_code == code, found.output
    return found.output


def start(*args: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """The command with its output in pipes, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "axpo", *map(str, args)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env=environment() if env is None else env,
        process_group=0,
    )  # fmt: skip


class Terminal:
    """A command on a terminal of `width` columns; what is typed reaches it as from a keyboard."""

    def __init__(self, *args: str | Path, width: int = 80, **env: str) -> None:
        self.width = width
        self.sent = ""
        """All that the command has written."""
        self.pid, self._end = pty.fork()
        if self.pid == 0:
            command = [sys.executable, "-m", "axpo", *map(str, args)]
            os.execve(sys.executable, command, environment(**env))
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def read(self, until: Callable[[], bool], seconds: float = 120.0) -> None:
        """Read on until something holds; fails where it does not within `seconds`."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.sent[-2000:]
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    self.sent += os.read(self._end, 65536).decode(errors="replace")
                except OSError:  # it is about to end
                    time.sleep(0.05)

    def wait(self, seconds: float = 120.0) -> int:
        """The command's exit status, negative for a signal."""
        found: list[int] = []

        def over() -> bool:
            if not found:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    found.append(os.waitstatus_to_exitcode(status))
            return bool(found)

        self.read(over, seconds)
        with contextlib.suppress(OSError):  # nothing is left
            while select.select([self._end], [], [], 0.1)[0]:
                self.sent += os.read(self._end, 65536).decode(errors="replace")
        os.close(self._end)
        return found[0]

    @property
    def screen(self) -> list[str]:
        """The lines as they stand there in the end, as far as a terminal scrolls back."""
        return screen(self.sent, self.width)


def screen(sent: str, width: int) -> list[str]:
    """What a terminal shows after `sent`: it knows what rich uses, and breaks long lines."""
    lines: list[list[str]] = [[]]
    row = column = at = 0
    while at < len(sent):
        if code := _CODE.match(sent, at):
            at = code.end()
            count = int(code[1] or 1) if (code[1] or "1").isdigit() else 1
            if code[2] == "A":
                row = max(0, row - count)
            elif code[2] == "K":
                lines[row] = [] if code[1] == "2" else lines[row][:column]
            continue
        letter, at = sent[at], at + 1
        if letter == "\r":
            column = 0
        elif letter == "\n":
            row += 1
        elif letter == "\b":
            column = max(0, column - 1)
        elif letter >= " ":
            if column == width:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            lines[row] += [" "] * (column + 1 - len(lines[row]))
            lines[row][column] = letter
            column += 1
        while len(lines) <= row:
            lines.append([])
    return ["".join(line).rstrip() for line in lines]


def metrics(folder: Path) -> int:
    """Lines of the run's metrics so far."""
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.is_file() else 0


SMALL = (
    "model.threads=1", "rollout.max_turns=2", "rollout.max_turn_tokens=24", "rollout.max_tokens=96",
    "task.families=['find']", "rollout.tools=['image_zoom_in_tool']", "run.checkpoint_every=1000",
    "sft.steps=60", "sft.batch=2", "sft.optimizer.decay=constant",
    "rl.steps=60", "rl.questions=2", "rl.updates=2", "rl.optimizer.decay=constant",
    "algorithm.rollouts=4", "eval.questions=40", "eval.samples=4", "eval.k=2",
)  # fmt: skip
