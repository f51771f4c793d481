"""An evaluation that is killed again and again, against servers that fail: nothing is lost, nothing
is taken twice, and its figures are those of an unbroken one."""

from __future__ import annotations

import asyncio
import math
import random
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from axpo.engines.base import Engine, Request
from axpo.engines.scripted import ScriptedEngine
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.errors import DamagedWarning, EngineError, GradingError, ShelfError
from axpo.evaluation import shelf as shelves
from axpo.evaluation.driver import GroupSampler, sample_examples
from axpo.evaluation.shelf import Shelf
from axpo.evaluation.summary import summarize
from axpo.folder import GroupsFolder
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import new_group
from axpo.store import load_groups, save_groups
from axpo.tasks.base import Example
from axpo.tasks.grading import Verdict
from axpo.tree import Group, Trajectory
from tests.support.fake_vllm import FakeVllm
from tests.support.rollouts import CHECKPOINT, GRADE, LIMITS, encode, example, make_rendering, zoom
from tests.support.tiny import tiny_picture

QUESTIONS, SAMPLES, SLOTS = 500, 4, 64
PICTURE = tiny_picture(1, 64)
SAYS = [encode(f"</think>{text}<|im_end|>") for text in ("7", "0", zoom())]


def say(request: Request) -> Sequence[int]:
    """What the seed decides: right, wrong, or first a look at the picture."""
    choice = request.sampling.seed % 8
    return SAYS[2 if choice < 2 and request.id.endswith("/t1") else choice % 2]


class FailingVllm(FakeVllm):
    """Says what its script says; of 20 requests one fails: status 500, an answer that breaks off,
    or one that takes its time."""

    chances = random.Random(0)

    def make_engine(self) -> Any:
        return ScriptedEngine(say)

    async def _generate(self, body: dict[str, Any], *rest: Any) -> tuple[int, Any] | None:
        if self.chances.random() < 0.05:
            what = self.chances.randrange(3)
            if what == 0:
                return 500, {"error": {"message": "out of order"}}
            if what == 1:
                self.faults.append(lambda answer: None)
            else:
                await asyncio.sleep(0.1)
        return await super()._generate(body, *rest)


class Killed(Exception):
    """The process ends here."""


class Disk:
    """Takes so many more files, of a whole number perhaps only half of the last one, and no other:
    a process that is killed while it writes."""

    def __init__(self, files: float, chances: random.Random) -> None:
        self.left, self.chances = files, chances

    def save(self, file: Path, groups: Iterable[Group], pictures: Path) -> None:
        self.left -= 1
        if self.left < 0:
            raise Killed
        save_groups(file, groups, pictures)
        if self.left == 0 and self.chances.random() < 0.5 and file.parent.name == "parts":
            file.write_bytes(file.read_bytes()[: self.chances.randrange(file.stat().st_size)])


class CountingAgent(Agent):
    """Keeps the ids of what it began and of what it graded."""

    def __init__(self, engine: Engine, grade: Any = GRADE) -> None:
        rendering = make_rendering()
        super().__init__(engine, rendering, rendering.tools, LIMITS, grade)
        self.began: list[str] = []
        self.graded: list[str] = []

    async def run(self, path: Any, id: str, seed: int) -> Trajectory:
        self.began.append(id)
        return await super().run(path, id, seed)

    async def score(self, path: Any, trajectory: Trajectory) -> None:
        self.graded.append(trajectory.id)
        await super().score(path, trajectory)


def asked(index: int) -> Example:
    return example(id=f"q{index}", images=(PICTURE,), cluster=str(index // 2))


def unbroken(questions: int) -> list[Group]:
    """The groups of an evaluation that nothing disturbs."""

    async def sampled() -> list[Group]:
        agent = CountingAgent(ScriptedEngine(say))
        sampler = GroupSampler(agent, SAMPLES, 0, SLOTS)
        new = (new_group(agent.rendering, asked(i), f"eval/q{i}") for i in range(questions))
        return [await sampler.grow(group) for group in new]

    return asyncio.run(sampled())


def measure(agent: Agent, folder: Path, questions: int, **settings: Any) -> list[Group]:
    """The groups of an evaluation in the folder, which goes on there."""

    async def sampled() -> list[Group]:
        sampler = GroupSampler(agent, SAMPLES, 0, SLOTS)
        shelf = Shelf(GroupsFolder(folder / "evaluation", folder / "pictures"), {}, **settings)
        shelf.reopen()
        wanted = ((None, lambda i=i: asked(i)) for i in range(questions))
        try:
            return await sample_examples(sampler, wanted, shelf)
        finally:
            await agent.close()

    return asyncio.run(sampled())


def kept_in(folder: Path) -> set[str]:
    """Ids of the scored rollouts that are whole on disk."""
    found: set[str] = set()
    for file in (folder / "evaluation").rglob("*.parquet"):
        try:
            found |= {r.id for group in load_groups(file) for r in group.rollouts if r.scored}
        except pa.ArrowException:
            assert file.parent.name == "parts"  # the half file
    return found


def plain(groups: list[Group]) -> list[Group]:
    """The groups without what may differ: times and pictures."""
    return [
        replace(g, pictures={}, rollouts=[replace(r, seconds=0.0) for r in g.rollouts])
        for g in groups
    ]


@pytest.mark.filterwarnings("ignore::axpo.errors.DamagedWarning")
def test_two_thousand_samples_of_failing_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six kills, each while something is written; at most what is in flight is lost."""
    chances, began = random.Random(1), list[str]()
    fakes = [FailingVllm(CHECKPOINT) for _ in range(2)]
    kills, groups = (1, 300, 37, 500, 90, 650), list[Group]()
    try:
        for files in (*kills, math.inf):
            servers = [Server(Client(fake.url, 30.0, 10.0)) for fake in fakes]
            trained = TrainedModel.of(CHECKPOINT)
            agent = CountingAgent(VllmEngine(trained, servers, tmp_path / "vllm", room=4096))
            there = kept_in(tmp_path)
            monkeypatch.setattr(shelves, "save_groups", Disk(files, chances).save)
            try:
                groups = measure(agent, tmp_path, QUESTIONS)
            except Killed:
                assert files in kills
            assert not there & set(agent.began)
            began += agent.began
    finally:
        for fake in fakes:
            fake.stop()
    wanted = unbroken(QUESTIONS)
    assert plain(groups) == plain(wanted)
    assert summarize(groups, 4, 0) == summarize(wanted, 4, 0)
    assert set(began) == {r.id for group in wanted for r in group.rollouts}
    assert QUESTIONS * SAMPLES < len(began) <= QUESTIONS * SAMPLES + len(kills) * (SLOTS + 1)
    assert not (tmp_path / "evaluation" / "parts").exists()
    saved = [g for f in (tmp_path / "evaluation").glob("*.parquet") for g in load_groups(f)]
    assert sorted(g.id for g in saved) == sorted(g.id for g in wanted)


def test_a_damaged_sample_is_named_and_taken_again(tmp_path: Path) -> None:
    kept, folder = interrupted(tmp_path)
    files = sorted((folder / "parts").iterdir())
    assert len(files) == len(kept) == 6
    whole = files[2].read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", bytes(len(whole))):
        files[2].write_bytes(damaged)
        with pytest.warns(DamagedWarning, match=rf"{files[2].name} is damaged .* taken again"):
            shelf = Shelf(GroupsFolder(folder, tmp_path / "pictures"), {})
        assert sum(map(len, shelf._kept.values())) == 5
    agent = CountingAgent(ScriptedEngine(say))
    with pytest.warns(DamagedWarning):
        groups = measure(agent, tmp_path, 4)
    assert len(agent.began) == 16 - 5
    assert plain(groups) == plain(unbroken(4))


def test_an_unfinished_group_of_other_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path)
    right = asked
    monkeypatch.setitem(globals(), "asked", lambda i: replace(right(i), answer="8"))
    with pytest.raises(ShelfError, match=r"was another: question q\d \(answers: it holds \('7',\)"):
        measure(CountingAgent(ScriptedEngine(say)), tmp_path, 4)


def interrupted(folder: Path) -> tuple[list[str], Path]:
    """An evaluation of four questions that ended after six samples: their ids, and its folder."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shelves, "save_groups", Disk(6.5, random.Random(0)).save)
        measure(CountingAgent(ScriptedEngine(say)), folder, 4)
    return sorted(kept_in(folder)), folder / "evaluation"


class TestFaults:
    """What a new start takes up of an evaluation that was finished, but for two samples that a
    fault left unscored."""

    def test_what_the_engine_failed_is_sampled_again_and_nothing_else(self, tmp_path: Path) -> None:
        failing = {"eval/q0/r1/t1", "eval/q2/r3/t1"}

        def fails(request: Request) -> Any:
            return EngineError("no card") if request.id in failing else say(request)

        first = measure(CountingAgent(ScriptedEngine(fails)), tmp_path, 10)
        lost = [r.id for g in first for r in g.rollouts if not r.scored]
        assert lost == ["eval/q0/r1", "eval/q2/r3"]
        failing.discard("eval/q0/r1/t1")
        second, third = (CountingAgent(ScriptedEngine(s)) for s in (fails, say))
        groups = measure(second, tmp_path, 10)
        assert second.began == lost
        assert [r.id for g in groups for r in g.rollouts if not r.scored] == lost[1:]
        groups = measure(third, tmp_path, 10)
        assert third.began == lost[1:]
        assert plain(groups) == plain(unbroken(10))
        idle = CountingAgent(ScriptedEngine(say))
        assert plain(measure(idle, tmp_path, 10)) == plain(groups)
        assert not idle.began

    def test_an_answer_whose_grading_failed_is_graded_again(self, tmp_path: Path) -> None:
        async def down(of: Example, rollout: Trajectory) -> Verdict:
            if rollout.id in ("eval/q0/r1", "eval/q2/r3"):
                raise GradingError("the judge is down")
            return await GRADE(of, rollout)

        first = measure(CountingAgent(ScriptedEngine(say), down), tmp_path, 10)
        assert sum(not r.scored for g in first for r in g.rollouts) == 2
        again = CountingAgent(ScriptedEngine(say))
        groups = measure(again, tmp_path, 10)
        assert not again.began
        assert sorted(again.graded) == ["eval/q0/r1", "eval/q2/r3"]
        assert plain(groups) == plain(unbroken(10))

    def test_a_kill_while_it_is_taken_up(self, tmp_path: Path) -> None:
        """The chunk stays whole, as it was, and what was sampled meanwhile counts."""
        failing = {f"eval/q{i}/r0/t1" for i in range(10)}

        def fails(request: Request) -> Any:
            return EngineError("no card") if request.id in failing else say(request)

        measure(CountingAgent(ScriptedEngine(fails)), tmp_path, 10)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            patch.setattr(shelves, "save_groups", Disk(3.5, random.Random(0)).save)
            measure(CountingAgent(ScriptedEngine(say)), tmp_path, 10)
        saved = [g for f in (tmp_path / "evaluation").glob("*.parquet") for g in load_groups(f)]
        assert len(saved) == 10
        kept = kept_in(tmp_path)
        last = CountingAgent(ScriptedEngine(say))
        groups = measure(last, tmp_path, 10)
        assert not kept & set(last.began) and len(last.began) < 10
        assert plain(groups) == plain(unbroken(10))


def test_pictures_are_held_for_the_groups_in_flight_alone(tmp_path: Path) -> None:
    """And those on disk are loaded by nobody who goes on."""
    made: list[weakref.ref[Any]] = []
    held: list[int] = []
    engine = ScriptedEngine(say)

    def opened(index: int) -> Example:
        image = Image.new("RGB", (64, 64), (index, 0, 0))
        made.append(weakref.ref(image))
        return example(id=f"q{index}", images=(image,))

    def progress(done: Sequence[Group], _: int) -> None:
        engine.requests.clear()  # which are kept for tests
        held.append(sum(picture() is not None for picture in made))

    async def sampled() -> list[Group]:
        sampler = GroupSampler(CountingAgent(engine), SAMPLES, 0, 2 * SAMPLES)
        shelf = Shelf(GroupsFolder(tmp_path / "evaluation", tmp_path / "pictures"), {})
        wanted = ((f"q{i}", partial(opened, i)) for i in range(30))
        return await sample_examples(sampler, wanted, shelf, progress)

    first = asyncio.run(sampled())
    assert len(made) == 30 and max(held) <= 2 + 2  # and those that are about to be sampled
    assert not any(group.pictures for group in first)
    assert plain(asyncio.run(sampled())) == plain(first)
    assert len(made) == 30
