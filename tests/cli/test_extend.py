"""The files of docs/extend run as they are printed."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import axpo
from axpo.algorithms.base import Algorithm
from axpo.algorithms.unscored import unscored_figures
from axpo.build.tools import recipe_tools
from axpo.engines.base import Engine
from axpo.errors import ConfigError, GradingError
from axpo.folder import RunFolder
from axpo.models.loading import Checkpoint
from axpo.plugins import load
from axpo.rollout.sampling import new_group, sample_group
from axpo.store import load_groups
from axpo.tasks.grading import Graders
from axpo.tasks.lab import BASE
from axpo.tools.base import ToolContext
from axpo.tools.runner import run_call
from axpo.tree import Call, CallStatus, Origin, Trajectory
from tests.support.engine_contract import EngineBehaviour
from tests.support.groups import plain_rollout, tools_and_plain
from tests.support.rollouts import FakeEngine, example, make_agent

PAGES = Path(__file__).parents[2] / "docs" / "extend"
LINES = {
    "algorithm": 60, "grader": 60, "task": 60, "environment": 60, "tool": 60, "engine": 150,
}  # fmt: skip


def printed(page: str) -> tuple[str, str]:
    """Name and text of a page's file."""
    (text,) = re.findall(r"```python\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.S)
    return re.match(r'"""(\w+)\.py: ', text)[1], text  # pyright: ignore[reportOptionalSubscript]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with every page's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for page in LINES:
        name, text = printed(page)
        (tmp_path / f"{name}.py").write_text(text)
    yield tmp_path


def module(name: str) -> ModuleType:
    return __import__(name)


def commands(page: str) -> list[list[str]]:
    """The arguments of the commands that a page prints, without the program."""
    import shlex

    blocks = re.findall(r"```\n(.*?)```", (PAGES / f"{page}.md").read_text(), re.S)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("page", LINES)
def test_a_page_s_file_is_short(page: str) -> None:
    assert len(printed(page)[1].splitlines()) < LINES[page]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("page", LINES)
def test_a_page_s_commands_load(page: str) -> None:
    for words in commands(page):
        recipe, overrides = words[1], [w for w in words[2:] if "=" in w]
        if recipe == "recipe.toml":
            recipe, overrides = "lab", ["task={name='data', path='sample'}", *overrides]
        axpo.load_config(recipe, *overrides)


@pytest.mark.usefixtures("here")
def test_the_algorithm_by_hand() -> None:
    config = axpo.load_config("lab", "algorithm.name=rloo:Rloo", "algorithm.scale=0.5")
    credit = config.algorithm.credit(tools_and_plain("q", [1, None], [0, 0, 1]))
    # Others of a right one: 1 of 3 is right; of a wrong one 2 of 3.
    assert {id: items[0].advantage for id, items in credit.items()} == {
        "q/t0": pytest.approx(0.5 * (1 - 1 / 3)), "q/p2": pytest.approx(0.5 * (1 - 1 / 3)),
        "q/p0": pytest.approx(-0.5 * 2 / 3), "q/p1": pytest.approx(-0.5 * 2 / 3),
    }  # fmt: skip
    assert {items[0].weight for items in credit.values()} == {1 / 4}
    with pytest.raises(ConfigError, match=r"algorithm\.scael: .*did you mean 'scale'"):
        axpo.load_config("lab", "algorithm.name=rloo:Rloo", "algorithm.scael=1")
    with pytest.raises(ConfigError, match="has no 'Rlo'; its classes of the section 'algorithm'"):
        axpo.load_config("lab", "algorithm.name=rloo:Rlo")


SMALL = (
    f"model.path={BASE}", "rl.steps=1", "rl.questions=2", "rl.updates=1", "algorithm.rollouts=2",
    "rollout.tools=['image_zoom_in_tool']", "rollout.max_turns=2", "tools.search={}",
    "rollout.max_turn_tokens=16", "rollout.max_tokens=64",
)  # fmt: skip


def test_a_run_of_one_s_own_parts_and_its_resumption(here: Path) -> None:
    """Algorithm, task, grader and engine together; the folder knows them by name."""
    (here / "graded.py").write_text(
        "from counting import Counting\n"
        "class Graded(Counting):\n"
        "    def example(self, split, index):\n"
        "        from dataclasses import replace\n"
        "        return replace(super().example(split, index), grading='my_graders:short')\n"
    )
    parts = (
        "algorithm.name=rloo:Rloo", "task={name='graded:Graded', most=3}",
        "engine={name='uniform:Uniform', slots=4}",
    )  # fmt: skip
    run = axpo.train(axpo.load_config("lab", *SMALL, *parts), out="runs/own")
    (line,) = run.metrics
    assert line["rollouts"] == 4 and line["unscored"] == 0
    assert run.checkpoint == Path("runs/own/checkpoints/step-000001")
    again = axpo.train(axpo.load_config("lab", *SMALL, *parts), out="runs/own")
    assert again.metrics == run.metrics
    with pytest.raises(axpo.UserError, match=r"task\.most: 3 -> 4"):
        other = parts[1].replace("most=3", "most=4")
        axpo.train(axpo.load_config("lab", *SMALL, parts[0], other, parts[2]), out="runs/own")


@pytest.mark.usefixtures("here")
def test_an_evaluation_of_the_engine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the weights is loaded, and what needs them is refused at the start."""
    uniform = "engine={name='uniform:Uniform', slots=4}"
    alone = axpo.load_config(
        "lab", *SMALL, uniform, "eval.load=false", "eval.questions=2", "eval.samples=2", "eval.k=2"
    )

    def load(*_: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("axpo.build.models.load_checkpoint", load)
    assert axpo.evaluate(alone, "runs/alone")["questions"] == 2
    with pytest.raises(ConfigError, match=r"eval\.load.*: a diagnosis measures"):
        axpo.diagnose(alone, "runs/alone")
    monkeypatch.setattr(module("uniform").Uniform, "trains", False)
    with pytest.raises(ConfigError, match=r"^engine\.name: 'uniform:Uniform' serves a model"):
        axpo.train(axpo.load_config("lab", *SMALL, uniform), "runs/rl")
    with pytest.raises(ConfigError, match=r"eval\.load: false needs .*; 'transformers' samples"):
        axpo.load_config("lab", "eval.load=false")


def answered(text: str, calls: int = 0) -> Trajectory:
    rollout = plain_rollout("q/r", None)
    rollout.answer, rollout.calls = text, [Call(0, 1, "t", {}, CallStatus.OK)] * calls
    return rollout


@pytest.mark.usefixtures("here")
def test_the_grader_by_hand() -> None:
    asked = example(answer="Oslo", alternatives=("Bergen",), grading="my_graders:items")
    verdict = asyncio.run(Graders().grade(asked, answered("bergen and Turku")))
    assert verdict == axpo.Verdict(0.5, "items", "named: Bergen")
    short = example(answer="Oslo", alternatives=("Bergen",), grading="my_graders:short")
    found = asyncio.run(Graders().grade(short, answered("bergen and Turku", calls=4)))
    assert (found.reward, found.rule) == (pytest.approx(0.3), "my_graders:short")
    assert module("my_graders").items.timeout == 300
    assert module("my_graders").short.timeout == 30


def test_a_grader_that_cannot_tell_is_never_the_model_s_mistake(here: Path) -> None:
    (here / "judge.py").write_text(
        "import time\nimport axpo\n"
        "def much(example, rollout):\n    return 1.5\n"
        "def none(example, rollout):\n    return None\n"
        "def nan(example, rollout):\n    return float('nan')\n"
        "def text(example, rollout):\n    return '1'\n"
        "def vague(example, rollout):\n    return axpo.Verdict(1.0, detail=['x'])\n"
        "def leaves(example, rollout):\n    raise SystemExit(2)\n"
        "def broken(example, rollout):\n    raise RuntimeError('no judge')\n"
        "def one(rollout):\n    return 1.0\n"
        "@axpo.grader(timeout=0.05)\ndef slow(example, rollout):\n    time.sleep(0.2)\n"
        "async def half(example, rollout):\n    return 0.5\n"
    )
    verdict = asyncio.run(Graders().grade(example(grading="judge:half"), answered("7")))
    assert verdict == axpo.Verdict(0.5, "judge:half")
    for name, words in {
        "much": "judge:much gave 1.5, expected a number",
        "none": "gave None",
        "nan": "gave nan",
        "text": "gave '1'",
        "vague": r"gave Verdict\(.*texts as rule and detail",
        "slow": "judge:slow gave nothing in 0.05 s",
        "one": r"one\(rollout\): expected a function of an example and a rollout",
    }.items():
        with pytest.raises(GradingError, match=words):
            asyncio.run(Graders().grade(example(grading=f"judge:{name}"), answered("7")))
    for thread in threading.enumerate():
        if thread.name == "grader slow":
            thread.join()
    for name, words in {
        "broken": "grading: RuntimeError: no judge",
        "leaves": "grading: RuntimeError: SystemExit: 2",
    }.items():
        agent = make_agent(FakeEngine({"q/r0/t1": "</think>7"}))
        asked = new_group(agent.rendering, example(grading=f"judge:{name}"), "q")
        (trajectory,) = asyncio.run(sample_group(agent, asked, 1, 0)).rollouts
        assert (trajectory.reward, trajectory.fault, trajectory.rule) == (None, words, "")
        assert unscored_figures([asked])["fault_grading"] == 1


def test_a_plain_grader_does_not_hold_up_the_loop(here: Path) -> None:
    """Two that wait for each other: on the loop, or in one thread, neither would ever end."""
    (here / "meet.py").write_text(
        "import threading\nboth = threading.Barrier(2)\n"
        "def wait(example, rollout):\n    both.wait(timeout=20)\n    return 1.0\n"
    )

    async def two() -> list[axpo.Verdict]:
        asked = example(grading="meet:wait")
        return await asyncio.gather(*(Graders().grade(asked, answered("7")) for _ in range(2)))

    assert [verdict.reward for verdict in asyncio.run(two())] == [1.0, 1.0]


def test_a_decorated_grader_is_checked_where_it_is_defined() -> None:
    with pytest.raises(GradingError, match=r"alone\(answer\): expected a function of an example"):

        @axpo.grader
        def alone(answer: str) -> float:  # pyright: ignore[reportArgumentType]
            return 1.0


@pytest.mark.usefixtures("here")
def test_the_environment_by_hand() -> None:
    config = axpo.load_config("lab", "task={name='guessing:Guessing', most=20}")
    task = config.task
    asked = task.example("train", 3)
    secret = int(asked.answer)
    game = module("guessing").Game(task, asked)
    assert game.reply("") == game.reply("seven") == game.reply("9" * 5000)
    words, picture = game.reply(f"I say {secret + 1}")
    assert words == f"{secret + 1} is too high."
    assert picture.size == (320, 32) and (game.low, game.high) == (1, secret)
    assert game.reply(str(secret)) == axpo.Verdict(1.0, "found", "after 5 guesses")
    assert task.environment is module("guessing").Game


@pytest.mark.usefixtures("here")
def test_a_run_with_an_environment() -> None:
    """A model that says anything at all: every rollout is scored, and the run goes on."""
    run = axpo.train(
        axpo.load_config("lab", *SMALL, "task={name='guessing:Guessing'}", "rollout.max_turns=3"),
        out="runs/game",
    )
    (line,) = run.metrics
    assert line["unscored"] == 0 and line["rollouts"] == 4
    groups = load_groups(RunFolder(run.folder).trees(0))
    shown = [s for g in groups for t in g.trajectories() for s in t.segments]
    assert Origin.ENVIRONMENT in {segment.origin for segment in shown}


@pytest.mark.usefixtures("here")
def test_the_tools_by_hand() -> None:
    names = 'rollout.tools=["my_tools:mirror","my_tools:Notes"]'
    tools = recipe_tools(axpo.load_config("lab", names, "tools.own.note.most=2"))
    assert list(tools) == ["mirror", "note"]
    context = ToolContext(trajectory="r")
    for line in "abc":
        result = asyncio.run(run_call(tools, "note", {"line": line}, context))
    assert result.observation.text == "b\nc"  # pyright: ignore[reportPossiblyUnbound]
    with pytest.raises(ConfigError, match=r"tools\.own\.note\.mst: .*did you mean 'most'"):
        axpo.load_config("lab", names, "tools.own.note.mst=2")


@pytest.mark.usefixtures("here")
def test_the_task_by_hand() -> None:
    task = axpo.load_config("lab", "task={name='counting:Counting', most=5}").task
    assert (task.size("test"), task.size("train")) == (200, None)
    examples = [task.example("train", i) for i in range(50)]
    assert {e.answer for e in examples} == {"1", "2", "3", "4", "5"}
    again = task.example("train", 7)
    assert again.answer == examples[7].answer
    assert again.images[0].tobytes() == examples[7].images[0].tobytes()


class TestUniformEngine(EngineBehaviour):
    @pytest.fixture(autouse=True)
    def _file(self, here: Path) -> None:
        """The engine's file is importable."""

    def make(self, checkpoint: Checkpoint, slots: int = 64) -> Engine:
        return module("uniform").UniformEngine(checkpoint.processor, slots)


def test_what_is_no_part_is_refused_by_name(here: Path) -> None:
    (here / "wrong.py").write_text("Nothing = 3\nclass Plain:\n    pass\n")
    for name, words in {
        "wrong:Nothing": "no class of the section 'algorithm'; derive one from axpo.Algorithm",
        "wrong:Plain": "no class of the section 'algorithm'",
        "axpo.tasks.lab.task:LabTask": "no class of the section 'algorithm'",
    }.items():
        with pytest.raises(ConfigError, match=words):
            axpo.load_config("lab", f"algorithm.name={name}")
    with pytest.raises(ConfigError, match=r"task\.grading: 'wrong:Nothing' is a int, expected"):
        axpo.load_config("task={name='data', path='sample', grading='wrong:Nothing'}")


def test_axpo_s_own_parts_are_found_by_the_same_way() -> None:
    found = load("axpo.algorithms.grpo:Grpo", callable, "classes")
    assert isinstance(found(), Algorithm) and found().name == "grpo"
