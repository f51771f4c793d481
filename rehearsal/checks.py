"""What must hold after a rehearsal, read from the runs' metrics and trees alone."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console
from safetensors.torch import load_file

from axpo.folder import CheckpointFolder, RunFolder
from axpo.models.lora import WEIGHTS
from axpo.store import load_groups
from axpo.training import probe
from axpo.training.parity import limit
from axpo.tree import Group, Origin, Trajectory

SAMPLED = 64
"""Tokens that a rollout may sample."""


@dataclass(frozen=True, slots=True)
class Check:
    """`claim`, what was `found`, and whether it `holds`."""

    claim: str
    found: str
    holds: bool


def command(
    about: str | None,
    out: str,
    rehearse: Callable[[Path, str, Console], object],
    checks: Callable[[Path], Sequence[Check]],
) -> NoReturn:
    """The command of a rehearsal: rehearse in a folder, `out` by default, with vLLM's python, and
    print the `checks` of what is there. The process ends with status 1 where one fails."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--vllm-python", default=".venv-vllm/bin/python")
    parser.add_argument("--check-only", action="store_true", help="check what --out holds")
    given = parser.parse_args()
    console, folder = Console(highlight=False), given.out.absolute()
    if not given.check_only:
        rehearse(folder, str(Path(given.vllm_python).absolute()), console)
    found = checks(folder)
    for check in found:
        mark = "[green]ok[/green]    " if check.holds else "[red]FAILED[/red]"
        console.print(f"{mark} {check.claim}: {check.found}")
    sys.exit(not all(check.holds for check in found))


def all_checks(folder: Path, checkpoint: Path) -> list[Check]:
    """Of a rehearsal in `folder`; `checkpoint` is the killed run's last one, inside a run."""
    few, many = folder / "places-4", folder / "places-32"
    trees = [_groups(run) for run in (few, many)]
    return [
        *_start(trees[0][0]),
        *_run(few, trees[0]),
        *_run(many, trees[1]),
        _tool_rates(*trees),
        _resumed(folder / "unbroken" / checkpoint, folder / "resumed" / checkpoint),
    ]


def _start(groups: Sequence[Group]) -> list[Check]:
    """That the first step's rollouts, the demonstrations' model's own, have something to learn."""
    rollouts = [t for group in groups for t in group.rollouts]
    tools = sum(t.uses_tool for t in rollouts) / len(rollouts)
    mixed = sum(len({t.reward for t in group.rollouts}) > 1 for group in groups) / len(groups)
    return [
        Check("a quarter of the first rollouts calls a tool", f"{tools:.2f}", tools >= 0.25),
        Check("a fifth of the first groups has mixed rewards", f"{mixed:.2f}", mixed >= 0.2),
    ]


def _run(run: Path, steps: Sequence[Sequence[Group]]) -> list[Check]:
    metrics = [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]
    trajectories = [t for groups in steps for g in groups for t in g.trajectories()]
    unscored = sum(not t.scored for t in trajectories)
    longest = max(_sampled(t) for groups in steps for g in groups for t in g.rollouts)
    branches = sum(m["branches"] for m in metrics) / len(metrics)
    served = min(m["served_share"] for m in metrics)
    margin = max(_of_limit(m) for m in metrics)
    name = run.name
    return [
        Check(f"{name}: nothing is unscored", f"{unscored} of {len(trajectories)}", not unscored),
        Check(
            f"{name}: a rollout samples at most {SAMPLED} tokens", str(longest), longest <= SAMPLED
        ),
        Check(
            f"{name}: parity is below its limit at every step",
            f"at most {margin:.2f} of it",
            margin <= 1,
        ),
        Check(f"{name}: served_share is at least 0.99", f"{served:.5f}", served >= 0.99),
        Check(f"{name}: a step has a branch on average", f"{branches:.2f}", branches >= 1),
    ]


def _of_limit(metrics: Mapping[str, float]) -> float:
    """How much of the parity limits a step's figures take, the largest share of the three."""
    step = limit(torch.bfloat16, int(metrics["tokens_trained"]))
    asked = limit(torch.bfloat16, probe.TOKENS)
    return max(
        metrics["mismatch_mean"] / step.mean,
        abs(metrics["mismatch_ratio"] - 1) / step.ratio,
        metrics["probe_difference"] / asked.mean,
    )


def _tool_rates(few: Sequence[Sequence[Group]], many: Sequence[Sequence[Group]]) -> Check:
    """Over the steps that both runs have, as the policy learns to call or not."""
    rates, sizes = [], []
    for steps in (few[: len(many)], many):
        rollouts = [t for groups in steps for g in groups for t in g.rollouts]
        rates.append(sum(t.uses_tool for t in rollouts) / len(rollouts))
        sizes.append(len(rollouts))
    error = math.sqrt(sum(p * (1 - p) / n for p, n in zip(rates, sizes, strict=True)))
    apart = abs(rates[0] - rates[1])
    return Check(
        "4 places give the tool rate of 32 within three standard errors",
        f"{rates[0]:.3f} and {rates[1]:.3f}, standard error {error:.3f}",
        apart <= 3 * error,
    )


def _resumed(unbroken: Path, resumed: Path) -> Check:
    whole, broken = (
        load_file(CheckpointFolder(path).adapter / WEIGHTS) for path in (unbroken, resumed)
    )
    same = whole.keys() == broken.keys() and all(
        torch.equal(tensor, broken[name]) for name, tensor in whole.items()
    )
    moved = any(bool(tensor.any()) for name, tensor in whole.items() if "lora_B" in name)
    return Check(
        "killed and resumed, the weights are those of the unbroken run",
        "the same to the bit" if same else "they differ",
        same and moved,
    )


def _groups(run: Path) -> list[list[Group]]:
    return [load_groups(file) for file in RunFolder(run).saved_trees().values()]


def _sampled(trajectory: Trajectory) -> int:
    return sum(len(s) for s in trajectory.segments if s.origin is Origin.POLICY)
