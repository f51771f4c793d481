"""README's block "without weights, data, GPU or servers" runs as it is printed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

from axpo.report.metrics import read_metrics
from tests.support.terminal import environment

README = Path(__file__).parents[2] / "README.md"


def printed() -> list[str]:
    """The commands of the block, each on one line."""
    block = re.search(
        r"without weights, data.*?```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    assert block is not None
    return block[1].replace("\\\n", " ").splitlines()


def test_the_stand_in_trains_is_evaluated_and_fine_tuned(tmp_path: Path) -> None:
    commands = printed()
    assert [shlex.split(c)[:2] for c in commands] == [
        ["python", "-m"], ["axpo", "train"], ["axpo", "eval"], ["axpo", "sft"],
    ]  # fmt: skip
    names = {"python": [sys.executable], "axpo": [sys.executable, "-m", "axpo"]}
    for command in commands:
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [*names[program], *arguments], cwd=tmp_path, capture_output=True, text=True,
            env=environment(), check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert [line["kind"] for line in read_metrics(tmp_path / "runs/try")][:2] == ["rl", "rl"]
    evaluation = json.loads((tmp_path / "runs/try/evaluation.json").read_text())
    assert (evaluation["questions"], evaluation["unscored"]) == (6, 0)
    losses = [line["nll"] for line in read_metrics(tmp_path / "runs/try-sft", "sft")]
    assert len(losses) == 2
