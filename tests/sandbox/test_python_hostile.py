"""The hostile suite: every snippet harms unsandboxed (where that is harmless), at no level else.

After each snippet the host, a neighbouring session and the next trajectory are looked at too.
"""

from __future__ import annotations

import asyncio
import os
import resource
import secrets
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from axpo.sandbox import LEVELS, SessionBounds
from axpo.sandbox.levels import obstacle
from axpo.tools.base import Observation, ToolContext
from axpo.tools.python import PythonTool
from tests.sandbox.hostile import PRELUDE, SNIPPETS, Snippet

BOUNDS = SessionBounds(seconds=1.0, grace=0.4)
HIGHEST = 8.0
"""Seconds that a call may take on a busy machine: both stages and the cleaning up."""
NOTE_TEXT = "the neighbour's own"
CONTAINED: Counter[str] = Counter()
TRIED: Counter[str] = Counter()


class World:
    """A host with something to steal and to break, and one tool a level with a neighbour."""

    def __init__(self, folder: Path) -> None:
        self.mark = "HARM-" + secrets.token_hex(8)
        self.folder = folder
        self.secret, self.victim = folder / "secret", folder / "victim"
        self.secret.write_text("secret-" + self.mark)
        self.runner = asyncio.Runner()
        self.tools: dict[str, PythonTool] = {}
        self.unix = str(folder / "socket")
        self.abstract = "\0axpo-" + self.mark
        self.listeners = [socket.create_server(("127.0.0.1", 0))]
        self.listeners += [socket.socket(socket.AF_UNIX) for _ in range(2)]
        for listener, name in zip(self.listeners[1:], (self.unix, self.abstract), strict=True):
            listener.bind(name)
            listener.listen()
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        for quiet in (*self.listeners, self.udp):
            quiet.setblocking(False)
        environment = {"AXPO_TEST_SECRET": "1"}
        self.sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(999)"],
                                        env=environment, start_new_session=True)  # fmt: skip
        self.restore()

    def restore(self) -> None:
        """As before the first snippet: files as they were, nobody at the doors."""
        for path in self.folder.iterdir():
            if path not in (self.secret, self.victim, Path(self.unix)):
                path.rmdir() if path.is_dir() else path.unlink()
        self.victim.write_text("untouched")
        self.victim.chmod(0o600)
        os.utime(self.victim, (1e9, 1e9))
        self.visits()
        self.before = self.state()

    def state(self) -> object:
        """Everything of the host's files that a snippet could have changed."""
        status = self.victim.stat()
        return (
            sorted(path.name for path in self.folder.iterdir()),
            self.victim.read_text(),
            (status.st_mode, status.st_uid, status.st_mtime, status.st_nlink),
        )

    def visits(self) -> int:
        """Connections and packets that arrived."""
        count = 0
        for listener in self.listeners:
            while True:
                try:
                    listener.accept()[0].close()
                except BlockingIOError:
                    break
                count += 1
        try:
            self.udp.recv(100)
            return count + 1
        except BlockingIOError:
            return count

    def prelude(self, amount: int, neighbour: str = "") -> str:
        """The names that a snippet's code may use."""
        names = {
            "MARK": self.mark,
            "SECRET": str(self.secret),
            "VICTIM": str(self.victim),
            "HOST": str(self.folder),
            "TCP": self.listeners[0].getsockname()[1],
            "UDP": self.udp.getsockname()[1],
            "UNIX": self.unix,
            "ABSTRACT": self.abstract,
            "PID": self.sleeper.pid,
            "NEIGHBOUR": neighbour,
            "AMOUNT": amount,
        }
        return "".join(f"{name} = {value!r}\n" for name, value in names.items()) + PRELUDE

    def call(self, level: str, code: str, trajectory: str) -> Observation:
        """One call of a level's tool."""
        context = ToolContext((), trajectory)
        return self.runner.run(self.tools[level]({"code": code}, context))

    def tool(self, level: str) -> str:
        """Start a level's tool and a neighbour once; answers with the neighbour's folder."""
        if level not in self.tools:
            tool = PythonTool(level, packages="current", bounds=BOUNDS)
            self.runner.run(tool.start())
            self.tools[level] = tool
            code = f"kept = open('note', 'w').write({NOTE_TEXT!r})"
            assert self.call(level, code, "neighbour").text == "(no output)"
        return str(self.tools[level]._sessions["neighbour"].folder)

    def close(self) -> None:
        for tool in self.tools.values():
            self.runner.run(tool.close())
        self.runner.close()
        self.sleeper.kill()
        self.sleeper.wait()
        for opened in (*self.listeners, self.udp):
            opened.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    os.environ["AXPO_TEST_SECRET"] = "1"
    world = World(tmp_path_factory.mktemp("host"))
    yield world
    world.close()
    del os.environ["AXPO_TEST_SECRET"]


def limit() -> None:
    """Bounds of an unsandboxed proof."""
    resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.proof], ids=lambda s: s.name)
def test_unsandboxed_it_harms(world: World, snippet: Snippet, tmp_path: Path) -> None:
    code = world.prelude(64 << 20) + snippet.code
    folder = os.open(world.folder, os.O_RDONLY)
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        cwd=tmp_path,
        pass_fds=(folder,),
        preexec_fn=limit,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if snippet.proof == "harm" else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    os.close(folder)
    try:
        out, errors = process.communicate(timeout=10 if snippet.proof == "harm" else 0.4)
        assert snippet.proof == "harm", errors.decode()
        if world.mark.encode() not in out and b"PermissionError" in errors:
            pytest.skip(f"this host forbids it to everybody: {errors.decode()[-80:]}")
        assert world.mark.encode() in out, errors.decode()
    except subprocess.TimeoutExpired:
        assert snippet.proof == "hangs"
    finally:
        process.kill()
        process.communicate()
        world.restore()


@pytest.mark.parametrize("level", [level for level in LEVELS if level != "unsafe"])
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.name)
def test_contained(world: World, snippet: Snippet, level: str) -> None:
    if reason := obstacle(level):
        pytest.skip(reason)
    neighbour = world.tool(level)
    TRIED[level] += 1
    code = world.prelude(1 << 30, neighbour) + snippet.code
    start = time.monotonic()
    seen = world.call(level, code, snippet.name)
    took = time.monotonic() - start
    again = world.call(level, "2 + 3", snippet.name)  # itself: any answer, but an answer
    tool = world.tools[level]
    world.runner.run(tool.end(snippet.name))
    try:
        for observation in (seen, again):
            assert world.mark not in observation.text
            assert len(observation.text) < BOUNDS.characters + 400
            assert len(observation.views) <= BOUNDS.pictures
            for view in observation.views:
                assert view.image.width * view.image.height <= BOUNDS.pixels
        assert took < HIGHEST
        assert (world.state(), world.visits()) == (world.before, 0)
        assert world.sleeper.poll() is None
        assert world.call(level, "1 + 1", "next").text == "2"
        assert world.call(level, "kept, len(__import__('os').listdir())", "neighbour").text == (
            f"({len(NOTE_TEXT)}, 1)"
        )
        assert Path(neighbour, "note").read_text() == NOTE_TEXT
        assert len(list(Path(neighbour).parent.iterdir())) == len(tool._sessions) == 2
    finally:
        world.restore()
    CONTAINED[level] += 1


def test_at_least_forty_and_each_says_why_it_is_unproven() -> None:
    assert len(SNIPPETS) >= 40
    assert len({snippet.name for snippet in SNIPPETS}) == len(SNIPPETS)
    assert all((snippet.proof is None) == bool(snippet.unproven) for snippet in SNIPPETS)


def test_totals(capsys: pytest.CaptureFixture[str]) -> None:
    """Last: what the report and `docs/security.md` quote."""
    with capsys.disabled():
        for level, tried in TRIED.items():
            print(f'\nlevel "{level}": {CONTAINED[level]}/{tried} contained')
    assert CONTAINED == TRIED
