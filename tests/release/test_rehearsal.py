"""The rehearsal's checks fail where they should, and its rows are what the recipes read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from axpo.config import load_config
from axpo.folder import CheckpointFolder
from axpo.models.lora import WEIGHTS
from rehearsal import checks, cluster
from rehearsal.__main__ import HERE, SHORT
from rehearsal.data import write_data
from tests.support.groups import tools_and_plain


def test_tool_rates_may_differ_by_three_standard_errors() -> None:
    """32 rollouts each, 16 of one use tools. With 26 of the other the rates are 0.3125 apart, three
    times sqrt((0.25 + 0.1523) / 32) is 0.336; with 27, 0.344 and 0.327."""

    def steps(tools: int) -> list:
        return [[tools_and_plain("g", [0.0] * tools, [1.0] * (32 - tools))]]

    assert checks._tool_rates(steps(16), steps(16)).holds
    assert checks._tool_rates(steps(16), steps(26)).holds
    assert not checks._tool_rates(steps(16), steps(27)).holds
    assert not checks._tool_rates(steps(0), steps(8)).holds
    learnt = steps(32)
    assert checks._tool_rates([*steps(16), *learnt], steps(16)).holds  # one step is in both
    assert not checks._tool_rates([*steps(16), *learnt], [*steps(16), *steps(0)]).holds


def test_the_start_must_act_and_have_something_to_learn() -> None:
    def held(*groups) -> list[bool]:
        return [check.holds for check in checks._start(groups)]

    assert held(tools_and_plain("g", [0.0] * 2, [1.0] * 6)) == [True, True]
    assert held(tools_and_plain("g", [0.0], [1.0] * 7)) == [False, True]
    assert held(tools_and_plain("g", [0.0] * 2, [0.0] * 6)) == [True, False]


def test_resumed_weights_are_the_same_and_have_moved(tmp_path: Path) -> None:
    def run(name: str, up: float) -> Path:
        folder = CheckpointFolder(tmp_path / name).adapter
        folder.mkdir(parents=True)
        save_file({"x.lora_A.weight": torch.ones(2), "x.lora_B.weight": torch.tensor([0.0, up])},
                  folder / WEIGHTS)  # fmt: skip
        return folder.parent

    moved, same = run("moved", 1e-5), run("same", 1e-5)
    assert checks._resumed(moved, same).holds
    assert not checks._resumed(moved, run("other", 2e-5)).holds
    assert not checks._resumed(run("still", 0.0), run("still too", 0.0)).holds


def test_parity_figures_as_a_share_of_their_limits() -> None:
    """1,600 tokens in bfloat16: mean 0.1 + 4 x 0.08 / 40, ratio 0.02 + 4 x 0.1 / 40 from 1."""
    figures = {"tokens_trained": 1600.0, "mismatch_mean": 0.054, "mismatch_ratio": 1.0,
               "probe_difference": 0.0}  # fmt: skip
    assert abs(checks._of_limit(figures) - 0.5) < 1e-9
    assert abs(checks._of_limit(figures | {"mismatch_ratio": 0.97}) - 1.0) < 1e-9
    assert checks._of_limit(figures | {"probe_difference": 1.0}) > 1


def test_rows_and_demonstrations_are_read_by_the_recipes(tmp_path: Path) -> None:
    write_data(tmp_path)
    sft = load_config(HERE / "sft.toml", f"task.path={tmp_path}/{{split}}.jsonl")
    task = sft.task
    turns = [task.example("sft", i).demonstration for i in range(16)]
    assert task.size("sft") == 16 and sum(len(t) == 2 for t in turns) == 8
    assert all("<answer>" in t[-1] and t[-1].endswith("</answer>") for t in turns)
    axpo = load_config(HERE / "axpo.toml", f"task.path={tmp_path}/train.parquet")
    rows = axpo.task
    assert rows.size("train") == 4
    assert rows.example("train", 1).answer == "blue"
    assert load_config(HERE / "axpo.toml", *SHORT).rl.questions == 1


def test_runs_are_compared_question_by_question() -> None:
    def steps(solved: int, tools: int = 4) -> list:
        rewards = [1.0] * solved + [0.0] * (8 - solved)
        return [[tools_and_plain(f"q{i}", rewards[i:tools], rewards[tools + i :]) for i in (0, 1)]
                for _ in range(4)]  # fmt: skip

    def held(one: list, other: list) -> dict[str, bool]:
        found = cluster.compared(one, other, "ranks")
        return {check.claim.split(": ")[1].split(" as ")[0]: check.holds for check in found}

    assert set(held(steps(4), steps(4)).values()) == {True}
    assert not held(steps(2), steps(7))["reward"]
    assert not held(steps(4), steps(4, tools=7))["tool use"]
    other = steps(4)
    other[2][0].example = "another question"
    assert not held(steps(4), other)["the same questions"]
    equal = cluster.compared(steps(4), steps(4), "ranks")[0]
    assert equal.found == "100% of their trees are equal"
