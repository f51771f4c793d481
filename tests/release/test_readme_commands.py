"""The commands of README and docs: the stand-in without weights, data, GPU or servers runs as it is
printed, and the others name commands, recipes and settings that there are."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.testing import CliRunner

from axpo import recipes
from axpo.cli.commands import app
from axpo.config import load_config
from axpo.report.metrics import read_metrics
from tests.support.terminal import environment

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def printed() -> list[str]:
    """The commands of the block, each on one line."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    block = re.search(r"without weights, data.*?```\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return block[1].replace("\\\n", " ").splitlines()


def commands(page: Path) -> list[list[str]]:
    """The words of every line of a page's blocks that is an `axpo` command, comments left out."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.M)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("axpo ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_names_a_recipe_and_settings_that_there_are(page: Path) -> None:
    for _, command, *words in commands(page):
        known = typer.main.get_command(app)
        assert isinstance(known, TyperGroup) and command in known.commands
        if command in ("show", "profile", "sft", "train", "eval", "diagnose"):
            values = {place + 1 for place, word in enumerate(words) if word in ("--out", "--steps")}
            given = [
                word
                for place, word in enumerate(words)
                if place not in values and not word.startswith("-")
            ]
            if given[0] in recipes.names():
                load_config(*given)


def test_readme_leads_from_a_recipe_to_a_report() -> None:
    named = [command for _, command, *_ in commands(PAGES[0])]
    assert named == [
        "quickstart",
        "show",
        "sft",
        "train",
        "train",
        "eval",
        "eval",
        "compare",
        "report",
    ]


def test_the_stand_in_trains_is_evaluated_and_fine_tuned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands run here, where PyTorch is loaded."""
    monkeypatch.chdir(tmp_path)
    commands = printed()
    assert [shlex.split(c)[:2] for c in commands] == [
        ["python", "-m"], ["axpo", "train"], ["axpo", "eval"], ["axpo", "sft"],
    ]  # fmt: skip
    first, *others = (shlex.split(command)[1:] for command in commands)
    subprocess.run([sys.executable, *first], check=True, env=environment())
    for arguments in others:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
    assert [line["kind"] for line in read_metrics(tmp_path / "runs/try")][:2] == ["rl", "rl"]
    evaluation = json.loads((tmp_path / "runs/try/evaluation.json").read_text())
    assert (evaluation["questions"], evaluation["unscored"]) == (6, 0)
    losses = [line["nll"] for line in read_metrics(tmp_path / "runs/try-sft", "sft")]
    assert len(losses) == 2
