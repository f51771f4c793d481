"""`python -m benchmarks.gpu [part ...]`: what waits for a GPU, in parts of less than five minutes.

Each part runs its commands one after the other, with a limit of time each, writes their output to
`--out` and goes on where one fails. At the end stands one line per question: the verdicts that
tests and benchmarks print (`VERDICT question: answer`) and, for each command, whether it ran.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

MARK = "VERDICT "


@dataclass(frozen=True, slots=True)
class Command:
    """`arguments` of this python, of which `{out}` is the output folder; `seconds` it may take."""

    name: str
    seconds: int
    arguments: tuple[str, ...]


def _lab(command: str, out: str, *settings: str) -> tuple[str, ...]:
    """A run of the lab on the GPU with the one tool that needs no sandbox and no corpus."""
    chosen = ('task.families=["find"]', 'rollout.tools=["image_zoom_in_tool"]')
    run = ("-m", "axpo", command, "lab", "--out", f"{{out}}/{out}")
    return (*run, "model.device=cuda", *chosen, *settings)


_FILES = ("--out", "{out}/gpu.json", "--page", "{out}/gpu.md")
_BENCH = ("-m", "benchmarks", "--device", "cuda", *_FILES)
PARTS: dict[str, tuple[Command, ...]] = {
    "tests": (Command("tests", 290, ("-m", "pytest", "tests/training/test_gpu.py", "-s", "-rs")),),
    "training": (Command("update", 150, ("-m", "benchmarks.gpu_update")),),
    "speed": (
        Command("step", 120, (*_BENCH, "training_step")),
        Command("rollouts", 150, (*_BENCH, "rollouts")),
    ),
    "lab": (
        Command("sft", 90, _lab("sft", "lab-sft", "sft.steps=10")),
        Command("rl", 90, _lab("train", "lab-rl", "model.path={out}/lab-sft", "rl.steps=3")),
    ),
}


def run(command: Command, out: Path) -> list[str]:
    """Run it, its output shown and written to `out`; returns its verdicts and one on itself."""
    arguments = [argument.replace("{out}", str(out)) for argument in command.arguments]
    print(f"== {command.name}: python {' '.join(arguments)}", flush=True)
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-u", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        os.killpg(process.pid, signal.SIGKILL)

    limit = threading.Timer(command.seconds, stop)
    limit.start()
    verdicts: list[str] = []
    assert process.stdout is not None
    try:
        with (out / f"{command.name}.log").open("w") as log:
            for line in process.stdout:
                log.write(line)
                print(line, end="", flush=True)
                if line.startswith(MARK):
                    verdicts.append(line.removeprefix(MARK).strip())
        status = process.wait()
    finally:
        limit.cancel()
    ended = f"NO, stopped after {command.seconds} s" if expired.is_set() else "yes"
    if status and not expired.is_set():
        ended = f"NO, status {status}"
    took = time.monotonic() - began
    return [*verdicts, f"{command.name} ran to its end: {ended} ({took:.0f} s)"]


def card() -> str:
    """The verdict on the GPU itself."""
    if not torch.cuda.is_available():
        return f"the GPU: NO, torch {torch.__version__} sees none"
    memory = torch.cuda.get_device_properties(0).total_memory / 1e9
    return f"the GPU: {torch.cuda.get_device_name()}, {memory:.0f} GB, torch {torch.__version__}"


def failed(verdict: str) -> bool:
    """Whether the answer is NO or WRONG; a plain "no" is an answer like any other."""
    return verdict.partition(": ")[2].startswith(("NO", "WRONG"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its status is 1 where a verdict says NO or WRONG."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    verdicts = [card()]
    verdicts += [
        verdict
        for part in options.parts or PARTS
        for command in PARTS[part]
        for verdict in run(command, options.out)
    ]
    lines = "\n".join(f"{'FAILED' if failed(v) else 'ok    '} {v}" for v in verdicts)
    (options.out / "verdicts.txt").write_text(lines + "\n")
    print(f"\n{lines}")
    return int(any(map(failed, verdicts)))


if __name__ == "__main__":
    sys.exit(main())
