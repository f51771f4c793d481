"""The programs of reasoning-gym's demonstrations: each is run in the sandbox and shows the entry's
answer; demonstrations are what the task says they are."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter

import pytest
import reasoning_gym
from pydantic import ValidationError

from axpo.config import load_config
from axpo.errors import ConfigError, DataError, UserError
from axpo.sandbox import levels
from axpo.tasks.grading import Graders
from axpo.tasks.gym.programs import CALENDAR, PROGRAMS, program
from axpo.tasks.gym.task import GymSet, GymTask
from axpo.tools.base import ToolContext
from axpo.tools.python import PythonTool

ENTRIES = 60
WORKS = [level for level in ("landlock", "bubblewrap") if levels.obstacle(level) is None]


@pytest.mark.skipif(not WORKS, reason="no level of the sandbox works here")
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_show_the_answers(name: str) -> None:
    entries = list(reasoning_gym.create_dataset(name, seed=8, size=ENTRIES))
    if name == "calendar_arithmetic":
        assert {entry["metadata"]["task"] for entry in entries} == set(CALENDAR)

    async def all_run() -> int:
        tool = PythonTool(WORKS[0], packages="current")
        await tool.start()
        run = 0
        try:
            for entry in entries:
                if (made := program(name, entry)) is None:
                    assert entry["metadata"]["task_type"] == "time_ms"
                    continue
                context = ToolContext(trajectory=name)
                seen = await tool({"code": made.code}, context)
                assert (seen.text, made) == (entry["answer"], made)
                run += 1
        finally:
            await tool.close()
        return run

    assert asyncio.run(all_run()) > ENTRIES / 2


def test_there_is_no_program_for_other_sets() -> None:
    (entry,) = reasoning_gym.create_dataset("syllogism", seed=8, size=1)
    assert program("syllogism", entry) is None


def shipped() -> GymTask:
    """The task of the shipped recipe."""
    found = load_config("smollm2").task
    assert isinstance(found, GymTask)
    return found


def test_demonstrations_of_the_recipe_call_or_answer() -> None:
    """The shares of sets and calls, and that every last turn is right."""
    task, sets, calls = shipped(), Counter[str](), Counter[str]()
    number, graders = 300, Graders()
    for index in range(number):
        example = task.example("sft", index)
        name = example.meta["family"]
        sets[name] += 1
        first, last = example.demonstration[0], example.demonstration[-1]
        verdict = asyncio.run(graders.grade_answer(example, last))
        assert verdict.reward == 1.0, (example, verdict)
        if name in PROGRAMS:
            assert first.count("\n") and not first.startswith("<")
        if len(example.demonstration) == 2:
            calls[name] += 1
            _, _, call = first.partition("\n<tool_call>\n")
            said = json.loads(call.removesuffix("\n</tool_call>"))
            assert said["name"] == "python" and list(said["arguments"]) == ["code"]
    taught = {one.name for one in task.sets if one.demonstrations}
    assert set(sets) == taught and len(taught) == 7 < len(task.sets)
    for count in sets.values():
        assert abs(count / number - 1 / 7) < 4 * math.sqrt(6 / 49 / number)
    callable_ = sum(sets[name] for name in PROGRAMS)
    assert set(calls) == taught & set(PROGRAMS)
    assert abs(sum(calls.values()) / callable_ - 0.3) < 4 * math.sqrt(0.21 / callable_)
    assert all(not task.example("train", index).demonstration for index in range(20))


def test_the_set_that_is_drawn_says_nothing_of_the_entry() -> None:
    """Both come from the same number."""
    mixed = GymTask(sets=(GymSet(name="chain_sum", settings={"max_terms": 9}), GymSet(name="gcd")))
    made = [mixed.example("train", index) for index in range(120)]
    terms = Counter(len(m.question.split(" + ")) for m in made if m.meta["family"] == "chain_sum")
    assert len(terms) > 4


def test_a_demonstration_of_either_form() -> None:
    taught = GymSet(name="lcm", demonstrations=2.0, calls=1.0, kind="easy")
    task = GymTask(sets=(GymSet(name="gcd"), taught), instruction="Say it.")
    example = task.example("sft", 5)
    (entry,) = reasoning_gym.create_dataset("lcm", seed=(2 << 30) + 5, size=1)
    numbers = ", ".join(map(str, entry["metadata"]["numbers"]))
    assert example.question == entry["question"] + "\nSay it."
    assert example.meta["kind"] == "easy"
    call = {"name": "python", "arguments": {"code": f"import math\nmath.lcm({numbers})"}}
    assert example.demonstration == (
        f"The numbers are {numbers}.\n<tool_call>\n{json.dumps(call)}\n</tool_call>",
        f"<answer>{entry['answer']}</answer>",
    )
    direct = GymTask(sets=(GymSet(name="lcm", demonstrations=1.0),)).example("sft", 5)
    assert direct.demonstration == (
        f"The numbers are {numbers}.\n<answer>{entry['answer']}</answer>",
    )


def test_a_wrong_answers_part_counts_only_where_it_may() -> None:
    def reward(task: GymTask, answer: str) -> tuple[float, str]:
        example = task.example("train", 0)
        verdict = asyncio.run(Graders().grade_answer(example, answer))
        return verdict.reward, verdict.rule

    one = GymSet(name="gsm_symbolic")
    assert reward(GymTask(sets=(one,)), "<answer>-7</answer>") == (0.01, "gsm_symbolic's scorer")
    whole = GymTask(sets=(one,), partial=False)
    rule = "gsm_symbolic's scorer, at least 1"
    assert reward(whole, "<answer>-7</answer>") == (0.0, rule)
    assert reward(whole, f"<answer>{whole.example('train', 0).answer}</answer>") == (1.0, rule)
    lenient = GymTask(sets=(one,), partial=False, solved=0.01)
    assert reward(lenient, "<answer>-7</answer>") == (1.0, "gsm_symbolic's scorer, at least 0.01")


def test_what_cannot_be_demonstrated_is_refused() -> None:
    with pytest.raises(ValidationError, match="calls: no effect with demonstrations = 0"):
        GymSet(name="gcd", calls=0.5)
    with pytest.raises(ConfigError, match=r"task.sets.0.calls: there are no programs for syllog"):
        GymTask(sets=(GymSet(name="syllogism", demonstrations=1, calls=0.5),)).check()
    with pytest.raises(UserError, match=r"task.sets: none has demonstrations"):
        GymTask(sets=(GymSet(name="gcd"),)).size("sft")
    silent = GymTask(sets=(GymSet(name="graph_color", demonstrations=1),))
    with pytest.raises(DataError, match="graph_color has a scorer and no answers"):
        silent.example("sft", 0)
