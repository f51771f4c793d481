"""Ctrl-C, SIGTERM and readers that leave: what is done is kept, and the same command goes on."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from axpo import stopping
from axpo.cli.commands import app
from axpo.errors import Stopped
from axpo.stages import Stage, run_stages
from tests.support.terminal import RECIPE, SMALL, Terminal, environment, metrics, start

STEP = re.compile(r"^axpo: stopped at (\w+) (\d+) of (\d+); the same command goes on from there$")


def stopped_at(text: str, what: str) -> int:
    """The step of the one line that says where a command stopped."""
    assert "Traceback" not in text
    said = [line for line in text.splitlines() if line.startswith("axpo: ")]
    assert len(said) == 1, text
    found = STEP.match(said[0])
    assert found is not None and found[1] == what, said
    return int(found[2])


def wait_for(process: subprocess.Popen[str], folder: Path, lines: int) -> None:
    deadline = time.monotonic() + 120
    while metrics(folder) < lines:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)


def stopped(process: subprocess.Popen[str], number: int, what: str) -> int:
    """Send a signal; how many steps or samples the command says that it has done by then."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    return stopped_at(errors, what)


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(p / "model" / "model.safetensors") for p in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def unbroken(folder: Path, command: str, steps: int) -> Path:
    """A run of so many steps that nothing stopped; returns its last checkpoint."""
    kind = {"sft": "sft", "train": "rl"}[command]
    said = here(command, f"{kind}.steps={steps}", "--out", str(folder))
    return Path(said.rpartition("Checkpoint: ")[2].strip())


def here(command: str, *arguments: str) -> str:
    """What a command says that runs to its end in this process, where PyTorch is loaded."""
    done = CliRunner().invoke(app, [command, str(RECIPE), *SMALL, *arguments])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output


class TestRuns:
    """Whole commands with real signals, whose runs go on to the same bits."""

    def test_ctrl_c_on_a_terminal(self, tmp_path: Path) -> None:
        """SFT: the step that was begun is finished and saved, the panel stands there once."""
        out = tmp_path / "run"
        terminal = Terminal("sft", RECIPE, *SMALL, "--out", out, width=80)
        terminal.read(lambda: metrics(out) >= 2)
        terminal.type("\x03")
        assert terminal.wait() == 130
        screen = terminal.screen
        text = "\n".join(screen)
        assert text.count("SFT run") == 1 and "stopped" in text and "\x1b[?25h" in terminal.sent
        step = stopped_at(text, "step")
        assert metrics(out) == step
        kept = out / "checkpoints" / f"step-{step:06d}"
        assert kept.is_dir()
        again = start("sft", RECIPE, *SMALL, "--out", out)
        wait_for(again, out, step + 2)
        later = stopped(again, signal.SIGTERM, "step")
        assert later >= step + 2 and metrics(out) == later
        assert same_weights(
            out / "checkpoints" / f"step-{later:06d}", unbroken(tmp_path / "whole", "sft", later)
        )

    def test_sigterm_in_rl(self, tmp_path: Path) -> None:
        out = tmp_path / "run"
        first = start("train", RECIPE, *SMALL, "--out", out)
        wait_for(first, out, 2)
        step = stopped(first, signal.SIGTERM, "step")
        assert metrics(out) == step
        assert [p.name for p in (out / "checkpoints").iterdir()] == [f"step-{step:06d}"]
        again = start("train", RECIPE, *SMALL, "--out", out)
        wait_for(again, out, step + 2)
        later = stopped(again, signal.SIGINT, "step")
        assert same_weights(
            out / "checkpoints" / f"step-{later:06d}", unbroken(tmp_path / "whole", "train", later)
        )

    def test_an_evaluation_and_its_diagnosis(self, tmp_path: Path) -> None:
        """Finished samples are kept; what they end in is what an unbroken command finds."""
        out = tmp_path / "run"
        first = start("eval", RECIPE, *SMALL, "--out", out)
        wait_for(first, out, 3)
        done = stopped(first, signal.SIGINT, "sample")
        assert done >= 3 and len(list((out / "evaluation").rglob("*.parquet"))) > 0
        results: list[object] = []
        for folder in (out, tmp_path / "whole"):
            here("eval", "--out", str(folder))
            results.append(json.loads((folder / "evaluation.json").read_text()))
        assert results[0] == results[1]

    def test_a_quickstart_on_a_terminal(self, tmp_path: Path) -> None:
        """Its stages save before it ends, nobody is left, and the table stands there once."""
        out = tmp_path / "run"
        terminal = Terminal("quickstart", RECIPE, *SMALL, "--out", out, width=80)
        terminal.read(lambda: metrics(out / "sft") >= 2)
        terminal.type("\x03")
        assert terminal.wait() == 130
        text = "\n".join(terminal.screen)
        assert text.count("axpo quickstart") == 1 and "stopped at" in text
        assert "axpo: stopped with 0 of 10 stages done; the same command goes on from there" in text
        step = stopped_at((out / "logs" / "sft.log").read_text(), "step")
        assert (out / "sft" / "checkpoints" / f"step-{step:06d}").is_dir()
        assert not still_running(out)


def still_running(out: Path) -> list[str]:
    """Processes that name the folder."""
    found: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(out) in line:
            found.append(line)
    return found


SLOW = "import time, os, pathlib\npathlib.Path(os.environ['AT']).touch()\ntime.sleep(60)\n"


class TestStart:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_stopped_while_importing(self, tmp_path: Path, number: int) -> None:
        """One line, and no folder."""
        (tmp_path / "torch.py").write_text(SLOW)
        at, out = tmp_path / "at", tmp_path / "run"
        env = environment(AT=str(at))
        env["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{env['PYTHONPATH']}"
        process = start("sft", RECIPE, "--out", out, env=env)
        deadline = time.monotonic() + 30
        while not at.exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == 128 + number
        said = [line for line in errors.splitlines() if line.startswith("axpo: ")]
        assert said == ["axpo: stopped while loading PyTorch; the same command starts again"]
        assert "Traceback" not in errors and not out.exists()

    def test_a_second_one_ends_it_at_once(self, tmp_path: Path) -> None:
        """Even where something is to become whole first."""
        code = (
            "import time; from axpo.stopping import *; listen()\n"
            "with held(), last_act(lambda: print('last', flush=True)):\n"
            "    print('in', flush=True)\n    while True: time.sleep(0.1)"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert process.stdout is not None and process.stdout.readline() == "in\n"
        for _ in range(2):  # two at once, as `timeout` sends them, are one
            process.send_signal(signal.SIGTERM)
        time.sleep(stopping.TOGETHER + 0.1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=10)[0] == "last\n"
        assert process.returncode == -signal.SIGINT


class TestReaders:
    """A command whose output nobody reads ends as programs do, without a word."""

    def test_head(self) -> None:
        done = subprocess.run(
            ["bash", "-c", 'set -o pipefail; "$@" | head -3', "-", sys.executable, "-m", "axpo",
             "show", str(RECIPE)],
            capture_output=True, text=True, env=environment(), check=False,
        )  # fmt: skip
        assert done.returncode == 128 + signal.SIGPIPE
        assert len(done.stdout.splitlines()) == 3
        assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr

    def test_help(self) -> None:
        reading, writing = os.pipe()
        process = subprocess.Popen(
            [sys.executable, "-m", "axpo", "--help"], stdout=writing, stderr=subprocess.PIPE,
            text=True, env=environment(),
        )  # fmt: skip
        os.close(writing)
        os.close(reading)
        assert process.communicate()[1] == "" and process.returncode == -signal.SIGPIPE

    def test_another_pipe_is_no_reader(self) -> None:
        """Writing to a child that is gone is an error where it happens, and ends nothing else."""
        code = (
            "import os; from axpo.stopping import *; listen()\nr, w = os.pipe(); os.close(r)\n"
            "try: os.write(w, b'x')\nexcept BrokenPipeError: print('told')\ncheck()\nprint('on')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment(),
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "told\non\n", "")


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch):
    """Signals ask this process to stop while the test lasts."""
    monkeypatch.setattr(stopping, "_request", stopping._Request())
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, stopping._asked)
    yield
    signal.signal(signal.SIGINT, before)


class TestStopping:
    @pytest.fixture(autouse=True)
    def _listening(self, listening: None) -> None: ...

    def test_at_once(self) -> None:
        with pytest.raises(Stopped) as stop:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("it went on")
        assert stop.value.code == 130

    def test_after_what_must_be_whole(self) -> None:
        done: list[int] = []
        with pytest.raises(Stopped):
            for part in range(3):
                stopping.check()
                with stopping.held():
                    signal.raise_signal(signal.SIGINT)
                    done.append(part)
        assert done == [0]

    def test_a_loop_is_cancelled_and_cleaned_up(self) -> None:
        said: list[str] = []

        async def work() -> None:
            try:
                signal.raise_signal(signal.SIGINT)
                said.append("what does not wait is not cut")
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0)
                said.append("cleaned up")

        with pytest.raises(Stopped):
            stopping.run(work())
        assert said == ["what does not wait is not cut", "cleaned up"]

    def test_what_was_done_in_time_is_done(self) -> None:
        async def work() -> int:
            with stopping.held():
                signal.raise_signal(signal.SIGINT)
                await asyncio.sleep(0)
            return 3

        assert stopping.run(work()) == 3


def test_stages_beside_a_failed_one_may_save(tmp_path: Path) -> None:
    """They are asked to stop; what they were at is not lost with the one that failed."""
    good = Stage("good", ["sft", str(RECIPE), *SMALL, "--out", str(tmp_path / "good")],
                 tmp_path / "good", "sft", 60, 1.0)  # fmt: skip
    wait = Stage("wait", ["--help"], tmp_path / "wait", "sft", 1, 1.0)
    bad = Stage("bad", ["show", "nowhere.toml"], tmp_path / "bad", "sft", 1, 1.0, ("wait",))

    def starting(stage: Stage) -> None:
        if stage is bad:
            deadline = time.monotonic() + 60
            while metrics(good.folder) < 2 and time.monotonic() < deadline:
                time.sleep(0.02)

    failed = run_stages([good, wait, bad], tmp_path / "logs", "t", 2, starting=starting)
    assert [stage.name for stage in failed] == ["bad"]
    assert good.stopped
    step = stopped_at((tmp_path / "logs" / "good.log").read_text(), "step")
    assert (good.folder / "checkpoints" / f"step-{step:06d}").is_dir()


def test_full_collections_leave_out_what_lived_before_the_loop() -> None:
    async def frozen() -> int:
        return gc.get_freeze_count()

    async def outer() -> tuple[int, int]:
        return await asyncio.to_thread(stopping.run, frozen()), gc.get_freeze_count()

    gc.unfreeze()
    assert min(stopping.run(outer())) > 10_000
    assert gc.get_freeze_count() == 0
