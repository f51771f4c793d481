"""The task "reasoning_gym": its questions, their places, and what its sets' own scorers give."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from axpo.api import grade
from axpo.config import load_config
from axpo.errors import ConfigError, GradingError, UserError
from axpo.folder import RunFolder
from axpo.store import load_groups
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders, Verdict, check_example
from axpo.tasks.grading import gym as grading
from axpo.tasks.gym.task import GymSet, GymTask
from axpo.tasks.lab import BASE
from tests.support.runs import Lines, train_rl

SILENT = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""The sets whose questions have no answer of their own, only a scorer."""


def task(*sets: GymSet, **settings: str) -> GymTask:
    return GymTask(sets=sets or (GymSet(name="chain_sum"),), **settings)


def verdict(example: Example, answer: str) -> Verdict:
    return asyncio.run(Graders().grade_answer(example, answer))


def test_a_question_is_the_sets_own() -> None:
    small = GymSet(name="chain_sum", settings={"max_terms": 3, "max_digits": 2})
    made = task(small, instruction="Say the number.").example("train", 2005)
    (entry,) = reasoning_gym.create_dataset(
        "chain_sum", max_terms=3, max_digits=2, seed=2005, size=1
    )
    assert made.question == entry["question"] + "\nSay the number."
    assert made.answer == entry["answer"] and made.images == ()
    assert made.id == "chain_sum/2005" and made.meta["family"] == "chain_sum"
    assert made.provenance.startswith("reasoning-gym ")


def test_splits_share_no_question() -> None:
    # Terms of four digits: two equal questions by chance are one in 10^8.
    hard = {"min_digits": 4, "min_terms": 6}
    some = task(GymSet(name="chain_sum", settings=hard, demonstrations=1))
    splits = ("train", "sft", "val", "test")
    asked = [some.example(split, i).question for split in splits for i in
             (*range(60), *range(990, 1010)) if split != "val" or i < 512]  # fmt: skip
    assert len(set(asked)) == len(asked)
    assert [some.size(split) for split in splits] == [None, None, 512, 1024]
    with pytest.raises(UserError, match=r"no split 'dev'; expected one of train, sft, val, test"):
        some.size("dev")
    with pytest.raises(IndexError, match="val has 512 questions, got index 512"):
        some.example("val", 512)


def test_sets_are_drawn_by_their_weights() -> None:
    mixed = task(GymSet(name="chain_sum", weight=3), GymSet(name="gcd"))
    drawn = Counter(mixed.example("train", i).meta["family"] for i in range(1000))
    bound = 4 * math.sqrt(0.75 * 0.25 / 1000)  # four standard deviations
    assert set(drawn) == {"chain_sum", "gcd"}
    assert abs(drawn["chain_sum"] / 1000 - 0.75) < bound
    assert mixed.example("train", 7) == mixed.example("train", 7)


@pytest.mark.parametrize("name", sorted(set(DATASETS) - {"composite"}))
def test_every_set_can_be_asked_and_scored(name: str) -> None:
    made = task(GymSet(name=name)).example("test", 3)
    check_example(made)
    if name in SILENT:
        assert made.answer == ""
        return
    assert made.answer and verdict(made, f"<answer>{made.answer}</answer>").reward == 1.0


def test_partial_rewards_are_kept() -> None:
    made = task().example("train", 0)
    found = verdict(made, f"It is \\boxed{{{made.answer}0000}}")
    # The usual scorer: the truth's share of an answer that contains it.
    assert found.reward == len(made.answer) / (len(made.answer) + 4)
    assert found.rule == "chain_sum's scorer" and made.answer in found.detail


def test_a_question_is_the_same_in_every_process() -> None:
    code = (
        "from axpo.tasks.gym.task import *; print(repr(GymTask(sets=[GymSet(name="
        "'isomorphic_strings')]).example('train', 9).question))"
    )
    asked = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    made = task(GymSet(name="isomorphic_strings")).example("train", 9)
    assert asked == {repr(made.question) + "\n"}


def test_no_answer_is_wrong() -> None:
    made = task().example("train", 0)
    assert verdict(made, "<answer></answer>") == Verdict(
        0.0, "chain_sum: no answer", f"read nothing, expected '{made.answer}'"
    )
    assert verdict(made, "<think>never closed").reward == 0.0


def test_a_scorer_that_raises_leaves_the_rollout_unscored() -> None:
    made = task(GymSet(name="prime_factorization")).example("train", 0)
    with pytest.raises(GradingError, match="scorer of prime_factorization on 'many': ValueError"):
        verdict(made, "many")
    assert verdict(made, made.answer).reward == 1.0


def test_a_scorer_that_does_not_end_leaves_the_rollout_unscored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = task(GymSet(name="knight_swap")).example("train", 0)
    monkeypatch.setattr(grading, "SECONDS", 0.02)
    with pytest.raises(
        GradingError, match=r"scorer of knight_swap on .*: it did not end in 0.02 s"
    ):
        verdict(made, "[]")
    monkeypatch.undo()
    assert verdict(made, made.answer).reward == 1.0


def test_another_version_of_the_package_is_noticed() -> None:
    made = replace(task().example("train", 0), question="Another question.")
    with pytest.raises(GradingError, match="makes another question by now"):
        verdict(made, made.answer)
    with pytest.raises(GradingError, match="its meta lacks 'number'"):
        check_example(replace(made, meta={"family": "gcd", "settings": {}}))


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (GymSet(name="chain_sums"), r"task.sets.0.name: no set 'chain_sums'.*'chain_sum'"),
        (GymSet(name="gcd", settings={"max_nums": 3}), r"gcd has no setting 'max_nums'.*max_num"),
        (GymSet(name="gcd", settings={"seed": 3}), r"gcd has no setting 'seed'"),
        (GymSet(name="gcd", settings={"min_numbers": 0}), r"gcd refuses them: min_numbers must"),
    ],
)
def test_settings_that_the_sets_lack(one: GymSet, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task(one).check()


def test_two_steps_of_training_and_grading_again(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        """
        task.name = "reasoning_gym"
        task.solved = 0.5
        rollout = { tools = [], max_turns = 1, max_turn_tokens = 200, max_tokens = 999 }
        algorithm = { name = "grpo", rollouts = 4 }
        rl = { steps = 2, questions = 2, updates = 1 }
        run.trees_every = 1

        [[task.sets]]
        name = "spell_backward"

        [[task.sets]]
        name = "chain_sum"
        settings = { max_terms = 3 }
        """
    )
    lines = Lines()
    train_rl(load_config(recipe), BASE, tmp_path / "run", lines)
    assert len(lines.steps) == 2
    folder = RunFolder(tmp_path / "run")
    groups = [g for step in range(2) for g in load_groups(folder.trees(step), folder.pictures)]
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    assert len(rollouts) == 16 and all(rollout.scored for rollout in rollouts)
    for group in groups:
        made = Example.of(group)
        assert (
            GymTask.model_validate(load_config(recipe).task.model_dump())
            .example("train", made.meta["number"])
            .question
            == made.question
        )
    assert any(rollout.answer is not None for rollout in rollouts)
    assert grade(tmp_path / "run", training=True)["of"] == "training"
