"""No command is silent: help takes no time, and a first line comes before anything heavy."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from axpo.report import live
from axpo.report.live import LiveView
from axpo.report.monitor import working
from tests.support.terminal import RECIPE, Terminal, environment, screen

HEAVY = (
    "torch", "transformers", "numpy", "pydantic", "rich", "pyarrow", "PIL", "httpx", "matplotlib",
    "scipy", "jinja2", "tokenizers", "sklearn",
)  # fmt: skip
COMMANDS = (
    "quickstart", "study", "show", "profile", "sft", "train", "eval", "diagnose", "serve",
    "compare", "report", "index", "recipes",
)  # fmt: skip
LISTED = """
import sys
sys.argv[0] = "axpo"
from axpo.cli import main
try:
    main()
finally:
    print(*sorted(name for name in sys.modules if "." not in name), file=sys.stderr)
"""


@pytest.mark.parametrize("args", [(), *((command,) for command in COMMANDS)])
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LISTED, *args, "--help"], capture_output=True, text=True,
        env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "Usage: axpo" in done.stdout
    ours = set(HEAVY) - ({"pydantic"} if args else set())  # typer reads a command's options with it
    assert ours & set(done.stderr.split()) == set()


def test_help_shows_brackets_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "axpo", "serve", "--help"], capture_output=True, text=True,
        env=environment(), check=True,
    )  # fmt: skip
    assert "as [engine] says" in " ".join(done.stdout.split())


MARK = "HEAVY IMPORT"
FAKE = f"import sys\nprint('{MARK}', file=sys.stderr, flush=True)\nsys.exit(7)\n"


@pytest.fixture
def fakes(tmp_path: Path) -> str:
    """A path on which every heavy module says so and ends the command."""
    folder = tmp_path / "fakes"
    folder.mkdir()
    for name in ("torch", "transformers", "numpy", "matplotlib", "scipy", "pyarrow", "PIL"):
        (folder / f"{name}.py").write_text(FAKE)
    return f"{folder}{os.pathsep}{environment()['PYTHONPATH']}"


def arguments(command: str, folder: Path) -> list[str]:
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("a text")
    others = {
        "compare": ["a", "b"],
        "report": ["a"],
        "index": [str(folder / "texts"), "--out", str(folder / "texts.db")],
        "study": ["study", "--out", str(folder), "--outcomes"],
    }
    plain = [str(RECIPE)]
    if command in ("sft", "train", "eval", "diagnose"):
        plain += ["--out", str(folder / "run")]
    return [command, *others.get(command, plain)]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c not in ("quickstart", "index", "recipes")]
)
def test_a_first_line_comes_before_heavy_imports(command: str, tmp_path: Path, fakes: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "axpo", *arguments(command, tmp_path)], capture_output=True,
        text=True, env=environment(PYTHONPATH=fakes), check=False,
    )  # fmt: skip
    assert done.returncode == 7, done.stderr
    before, mark, _ = done.stderr.partition(MARK)
    assert mark and before.splitlines()[0].split(":")[0].split()[0] in (
        "study", "show", "profile", "SFT", "AXPO", "evaluate", "diagnose", "serve", "compare",
        "report",
    )  # fmt: skip
    assert "\x1b" not in done.stdout + done.stderr
    assert not (tmp_path / "run").exists()


def test_on_a_terminal_too(tmp_path: Path, fakes: str) -> None:
    terminal = Terminal(*arguments("train", tmp_path), PYTHONPATH=fakes)
    assert terminal.wait() == 7
    before, mark, _ = terminal.sent.partition(MARK)
    assert mark and "AXPO run" in before and "checking data and tools" in before
    assert "AXPO run" not in "\n".join(terminal.screen)  # it came to nothing: what is said stays


def test_lines_come_while_an_import_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "blocks_for_a_while.py").write_text("import time\ntime.sleep(0.5)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    console = Console(file=io.StringIO(), width=80)
    monkeypatch.setattr(live, "INTERVAL", 0.05)
    with LiveView("SFT", "loading PyTorch", console=console):
        __import__("blocks_for_a_while")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert len(lines) >= 5
    assert all(line.startswith("SFT: loading PyTorch | 0:0") for line in lines)


def test_a_passing_view_leaves_nothing_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with working("report", "reading the runs") as say:
        say("drawing")
    assert "report: reading the runs | 0:00" in capsys.readouterr().err
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    with LiveView("report", "reading", passing=True, console=console):
        time.sleep(0.05)
    assert isinstance(console.file, io.StringIO)
    sent = console.file.getvalue().replace("\n", "\r\n")
    assert "report" in sent and not any(screen(sent, 80))


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, fakes: str) -> None:
    terminal = Terminal(*arguments("train", tmp_path), PYTHONPATH=fakes, TERM="dumb")
    assert terminal.wait() == 7
    assert "\x1b" not in terminal.sent and "AXPO run: checking data and tools" in terminal.sent
