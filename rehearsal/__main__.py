"""`python -m rehearsal`: make the model and the rows, run the stages by the command line, check.

Every stage is `axpo` itself in a process of its own, so what is killed is what a user would lose.
Exit status 1 where a check fails; the folder keeps every run, log and tree.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from axpo.folder import RunFolder, checkpoint_of
from rehearsal.checks import Check, all_checks, command
from rehearsal.data import write_data
from rehearsal.model import write_model

HERE = Path(__file__).parent
STEPS, STEPS_AT_ONCE = 8, 3
"""Of the run with four places for 32 rollouts, and of the one with a place for each; a step takes
most of a minute on two cores."""
KILLED_STEPS, KILLED_AFTER = 2, 1
"""Of the run that is killed, and the checkpoint after which that happens."""
SHORT = (
    f"rl.steps={KILLED_STEPS}", "run.checkpoint_every=1", "engine.slots=1", "rl.questions=1",
    "rl.updates=1", "algorithm.rollouts=4", "algorithm.extra_budget=1.0",
)  # fmt: skip
"""Settings of that run. One place, for a server's bfloat16 rounds otherwise in a batch of another
shape: only so is a step sampled twice the same to the bit."""


@dataclass(frozen=True)
class Stages:
    """Runs `axpo` in `folder`, one command after another; `python` is that of vLLM."""

    folder: Path
    python: str
    console: Console

    def run(self, name: str, command: str, settings: Sequence[str] = ()) -> None:
        """One command to its end; the end of its log is the message where it fails."""
        began = time.monotonic()
        process = self._start(name, command, settings)
        if status := process.wait():
            log = (self.folder / f"{name}.log").read_text(errors="replace")
            sys.exit(f"rehearsal: {name} ended with status {status}:\n{log[-3000:]}")
        self.console.print(f"{name}: {time.monotonic() - began:.0f} s")

    def kill(self, name: str, command: str, settings: Sequence[str], checkpoint: Path) -> None:
        """Kill it (SIGKILL) while it samples the step after `checkpoint` was written."""
        began = time.monotonic()
        process = self._start(name, command, settings)
        while not checkpoint.is_dir() and process.poll() is None:
            time.sleep(0.1)
        time.sleep(5)
        process.kill()
        if process.wait() != -signal.SIGKILL:
            sys.exit(f"rehearsal: {name} ended before it could be killed; see its log")
        self.console.print(f"{name}, killed: {time.monotonic() - began:.0f} s")

    def _start(self, name: str, command: str, settings: Sequence[str]) -> subprocess.Popen[bytes]:
        recipe = HERE / ("sft.toml" if command == "sft" else "axpo.toml")
        arguments = [sys.executable, "-m", "axpo", command, recipe, "--out", self.folder / name]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*arguments, *self._places(command), *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},  # vLLM's too
            )  # fmt: skip

    def _places(self, command: str) -> list[str]:
        """Where the model, the rows and vLLM are."""
        if command == "sft":
            files = self.folder / "data" / "{split}.jsonl"
            return [f"model.path={self.folder / 'base'}", f"task.path={files}"]
        rows = self.folder / "data" / "train.parquet"
        return [
            f"model.path={self.folder / 'sft'}", f"task.path={rows}",
            f"engine.python={self.python}",
        ]  # fmt: skip


def rehearse(folder: Path, python: str, console: Console) -> None:
    """All stages in `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    write_model(folder / "base")
    write_data(folder / "data")
    stages = Stages(folder, python, console)
    stages.run("sft", "sft")
    stages.run("places-4", "train", [f"rl.steps={STEPS}"])
    stages.run("places-32", "train", [f"rl.steps={STEPS_AT_ONCE}", "engine.slots=32"])
    stages.run("unbroken", "train", SHORT)
    stages.kill("resumed", "train", SHORT, _checkpoint(folder / "resumed", KILLED_AFTER))
    stages.run("resumed", "train", SHORT)
    console.print(f"all of it: {time.monotonic() - began:.0f} s")


def _checks(folder: Path) -> list[Check]:
    return all_checks(folder, _checkpoint(Path(), KILLED_STEPS))


def _checkpoint(run: Path, step: int) -> Path:
    return checkpoint_of(RunFolder(run).checkpoints, step).path


if __name__ == "__main__":
    command(__doc__, "runs/rehearsal", rehearse, _checks)
