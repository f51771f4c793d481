"""The gap's diagnostics on fabricated groups, and the driver that samples them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from axpo.algorithms.axpo import Axpo
from axpo.algorithms.resampling import Candidate
from axpo.errors import ShelfError
from axpo.evaluation import driver
from axpo.evaluation import shelf as shelves
from axpo.evaluation.calls import count_kinds, iou, same_call, same_place
from axpo.evaluation.diagnostics import choose_prefixes, diagnosis
from axpo.evaluation.driver import GroupSampler, Question
from axpo.evaluation.passk import pass_at_k
from axpo.evaluation.prefixes import Fresh, Recovery, prefix_figures, quartiles, recovery_of
from axpo.evaluation.shelf import Shelf
from axpo.folder import GroupsFolder
from axpo.tasks.base import Example
from axpo.tree import Branch, Call, CallStatus, Crop, Group, Trajectory
from tests.support.groups import CUT, group, grow, policy, tool_rollout, tools_and_plain

if TYPE_CHECKING:
    from axpo.rollout.agent import Agent
    from axpo.rollout.sampling import Ended

AXPO = Axpo()


def zoom(
    x: float = 0, name: str | None = "zoom", status: CallStatus = CallStatus.OK, **more
) -> Call:
    """A call on the box x..x+10, 0..10."""
    return Call(3, 7, name, {"bbox_2d": [x, 0, x + 10, 10], "img_idx": 0} | more, status)


def malformed(text: str) -> Call:
    return Call(3, 7, None, text, CallStatus.MALFORMED, "not JSON")


def continuation(id: str, call: Call | None, reward: float | None) -> Trajectory:
    return Trajectory(id, [policy(f"{id}/0", (3, 4))], [call] if call else [], reward=reward)


class TestCalls:
    def test_iou(self) -> None:
        assert iou((0, 0, 10, 10), (0, 0, 10, 10)) == 1.0
        assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
        assert iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0.0
        assert iou((10, 10, 0, 0), (10, 10, 0, 0)) == 0.0

    def test_same_call(self) -> None:
        assert same_call(zoom(1), zoom(1.0))
        a, b = zoom(1), Call(3, 9, "zoom", {"img_idx": 0, "bbox_2d": [1, 0, 11, 10]}, CallStatus.OK)
        assert same_call(a, b)
        assert not same_call(zoom(1), zoom(2))
        assert not same_call(zoom(1), zoom(1, name="crop"))
        assert same_call(malformed("{"), malformed("]"))
        assert not same_call(malformed("{"), zoom(1))
        assert same_call(None, None)
        assert not same_call(None, malformed("{"))

    def test_same_place(self) -> None:
        assert same_place(zoom(0), zoom(3))  # 7 / 13
        assert not same_place(zoom(0), zoom(4))  # 6 / 14
        assert same_place(zoom(0, label="a"), zoom(1, label="b"))
        assert not same_place(zoom(0), zoom(1, img_idx=1))
        assert not same_place(zoom(0), zoom(1, name="crop"))
        assert not same_place(zoom(0), zoom(1, status=CallStatus.MALFORMED))

    @pytest.mark.parametrize(
        "arguments",
        [
            "text", None, [1, 2, 3, 4], {"bbox_2d": [1, 2, 3]}, {"bbox_2d": [1, 2, 3, "4"]},
            {"bbox_2d": [1, 2, 3, True]}, {"bbox_2d": [0, 0, 10**400, 1]},
            {"bbox_2d": [0, 0, float("inf"), 1]}, {"bbox_2d": [0.0, 0.0, 1e308, 1e308]},
        ],
    )  # fmt: skip
    def test_any_arguments_can_be_compared(self, arguments: object) -> None:
        odd = Call(3, 7, "zoom", arguments, CallStatus.MODEL_ERROR)
        assert same_place(odd, odd)
        assert not same_place(odd, zoom(0))

    def test_count_kinds(self) -> None:
        calls = [zoom(0), zoom(3), zoom(0), malformed("a"), malformed("b"), zoom(90), None, None]
        assert count_kinds(calls, same_call) == 5
        # 0 and 3 overlap by more than a half; 6 overlaps with 3 but not with 0, its kind's first.
        assert count_kinds(calls, same_place) == 4
        assert count_kinds([zoom(0), zoom(3), zoom(6)], same_place) == 2
        assert count_kinds([], same_call) == 0


class TestChoosing:
    def groups(self) -> list[Group]:
        """Six triggered questions of two failed prefixes each, and two that are not."""
        triggered = [
            group(
                f"q{i}", [tool_rollout(f"q{i}/t{j}", 0, 0.1 * (j + 1) + i / 100) for j in range(2)]
            )
            for i in range(6)
        ]
        return [*triggered, tools_and_plain("right", [0, 1], []), tools_and_plain("none", [], [0])]

    def test_with_room_for_all_every_failed_prefix_is_drawn_once(self) -> None:
        groups = self.groups()
        probes = choose_prefixes(groups, AXPO, 100, seed=0)
        expected = {c.source for g in groups for c in AXPO.candidates(g)}
        assert sorted(p.prefix.source for p in probes) == sorted(expected)
        assert all(p.drawn for p in probes)
        # floor(0.25 * 8 * 8 / 4) = 4 prefixes: the least confident first calls of the batch.
        chosen = {p.prefix.source for p in probes if p.selected}
        assert chosen == {"q0/t0", "q1/t0", "q2/t0", "q3/t0"}

    @pytest.mark.parametrize("limit", range(13))
    def test_half_is_drawn_and_the_rest_is_axpos(self, limit: int) -> None:
        probes = choose_prefixes(self.groups(), AXPO, limit, seed=1)
        assert len(probes) == limit == len({p.prefix.source for p in probes})
        assert sum(p.drawn for p in probes) >= limit / 2
        selected = sum(p.selected for p in probes)
        assert selected == 4 or selected >= limit // 2
        assert all(p.drawn or p.selected for p in probes)

    def test_the_draw_is_seeded_and_ignores_order(self) -> None:
        groups = self.groups()
        probes = choose_prefixes(groups, AXPO, 6, seed=2)
        assert choose_prefixes(groups[::-1], AXPO, 6, seed=2) == probes
        assert choose_prefixes(groups, AXPO, 6, seed=3) != probes
        counts = dict.fromkeys((c.source for g in groups for c in AXPO.candidates(g)), 0)
        for seed in range(600):
            for probe in choose_prefixes(groups, AXPO, 6, seed):
                counts[probe.prefix.source] += probe.drawn
        # Three of twelve are drawn each time: 150 expected, standard deviation 10.6.
        assert all(abs(n - 150) < 5 * 10.6 for n in counts.values())

    def test_nothing_failed(self) -> None:
        assert choose_prefixes([tools_and_plain("a", [1], [0])], AXPO, 8, seed=0) == []


class TestFigures:
    def test_outcome(self) -> None:
        g = group("q", [tool_rollout("q/t0", 0)])
        branch = g.fork(g.rollouts[0], CUT, confidence=0.3)
        branch.continuations = [
            continuation("c0", zoom(0), 0.0),
            continuation("c1", zoom(1), 1.0),
            continuation("c2", malformed("{"), 0.0),
            continuation("c3", zoom(50), None),
            continuation("c4", None, 0.0),
        ]
        assert recovery_of(g, branch) == Recovery(
            ("question", "q"), "q/t0", 0.3, 4, 1, distinct=4, merged=3
        )
        # Right without a tool counts for nothing, unscored rollouts are no samples.
        again = tools_and_plain("again/q", [1, 0, None], [1, 1])
        found = recovery_of(g, branch, quartile=2, fresh=again)
        assert (found.quartile, found.fresh) == (2, Fresh(samples=4, right=1))

    def test_quartiles_are_ranks_among_all_failed_prefixes(self) -> None:
        confidences = [0.9, 0.1, 0.5, 0.5, 0.3, 0.7]
        failed = [Candidate("q", f"s{i}", CUT, p) for i, p in enumerate(confidences)]
        # Ranked: s1 s4 s2 s3 s5 s0; floor(4 i / 6) is 0 0 1 2 2 3.
        expected = {"s1": 1, "s4": 1, "s2": 2, "s3": 3, "s5": 3, "s0": 4}
        assert quartiles(failed) == quartiles(failed[::-1]) == expected
        assert quartiles([]) == {}

    def test_recovery_by_quartile_and_proposition_1_by_hand(self) -> None:
        outcomes = [
            Recovery("a", "a/0", 0.1, 16, 8, 5, 5, quartile=1, fresh=Fresh(16, 2)),
            Recovery("a", "a/1", 0.2, 16, 2, 5, 5, quartile=1, fresh=Fresh(16, 2)),
            Recovery("b", "b/0", 0.8, 16, 0, 5, 5, quartile=4, fresh=Fresh(8, 1)),
            Recovery(
                ("question", "c"), "c/0", 0.9, 16, 4, 5, 5, quartile=4, fresh=Fresh(3, 0)
            ),  # too few
            Recovery("d", "d/0", 0.9, 8, 1, 5, 5, quartile=4, fresh=Fresh(16, 2)),
        ]
        metrics = prefix_figures(outcomes, 5, k=4, seed=0).metrics
        values = {name: e.value for name, e in metrics.items()}
        one, two, four, eight = (pass_at_k(16, c, 4) for c in (1, 2, 4, 8))
        assert one == 0.25
        assert values["recovery_quartile_1"] == pytest.approx((eight + two) / 2)
        assert values["recovery_quartile_4"] == pytest.approx((0 + four + pass_at_k(8, 1, 4)) / 3)
        assert "recovery_quartile_2" not in values
        fresh = [two, two, pass_at_k(8, 1, 4), two]
        own = [eight, two, 0.0, pass_at_k(8, 1, 4)]
        assert values["fresh_recovery_rate"] == pytest.approx(np.mean(fresh))
        assert values["recovery_gain"] == pytest.approx(np.mean(own) - np.mean(fresh))
        assert values["premise_holds"] == 3 / 4  # 8/16 > 2/16, 2/16 = 2/16, 0 < 1/8, 1/8 = 2/16
        assert values["premise_holds_strictly"] == 1 / 4
        # Drawn by question: a alone has the greatest gain, b alone the least.
        gain = metrics["recovery_gain"]
        assert (gain.low, gain.high) == pytest.approx((-0.5, (eight - two) / 2))

    def test_by_hand(self) -> None:
        outcomes = [
            Recovery("a", "a/0", 0.2, 16, 1, 5, 3),
            Recovery("a", "a/1", 0.4, 16, 0, 1, 1),
            Recovery("b", "b/0", 0.9, 16, 4, 2, 1),
            Recovery("c", "c/0", 0.5, 3, 3, 2, 2),
        ]
        figures = prefix_figures(outcomes, 5, k=4, seed=0)
        assert (figures.prefixes, figures.dropped) == (3, 2)
        values = {name: e.value for name, e in figures.metrics.items()}
        recovery = [0.25, 0.0, 1 - 495 / 1820]  # 1 - C(15,4)/C(16,4), 0, 1 - C(12,4)/C(16,4)
        correlation = np.corrcoef([0.2, 0.4, 0.9], recovery)[0, 1]
        assert values == {
            "recovery_rate": pytest.approx(sum(recovery) / 3),
            "recovery_any": pytest.approx(2 / 3),
            "never_recovered": pytest.approx(1 / 3),
            "distinct_calls": pytest.approx(8 / 3),
            "distinct_calls_merged": pytest.approx(5 / 3),
            "single_call": pytest.approx(1 / 3),
            "single_call_merged": pytest.approx(2 / 3),
            "confidence_correlation": pytest.approx(correlation),
        }
        # Questions are drawn, not prefixes: a alone has 1/8, b alone the rest.
        assert figures.metrics["recovery_rate"].low == pytest.approx(0.125)
        assert figures.metrics["recovery_rate"].high == pytest.approx(recovery[2])

    def test_no_spread_no_correlation(self) -> None:
        outcomes = [
            Recovery("a", "a/0", 0.5, 16, 1, 2, 2),
            Recovery("b", "b/0", 0.5, 16, 0, 2, 2),
        ]
        metrics = prefix_figures(outcomes, 2, k=4, seed=0).metrics
        assert "confidence_correlation" not in metrics
        assert asdict(prefix_figures([], 3, k=4, seed=0)) == {
            "prefixes": 0,
            "dropped": 3,
            "metrics": {},
        }

    def test_diagnosis(self) -> None:
        a = tools_and_plain("a", [0, 0], [1, 0])
        b = tools_and_plain("b", [1, 0], [0, 0])
        c = tools_and_plain("c", [0], [0, 0, 0])
        groups = [a, b, c]
        probes = choose_prefixes(groups, AXPO, 8, seed=0)
        assert len(probes) == 3
        grow(a, "a/t0", [1, 0, 0, 0])
        grow(a, "a/t1", [0, 0, 0, 0])
        grow(c, "c/t0", [None] * 4)
        fresh = {"a": tools_and_plain("again/a", [1, 0], [1, 1, 0, 0])}
        entropies = {"a/t0": 1.0, "a/t1": 1.0, "b/t0": 2.0, "b/t1": 1.0, "c/t0": 1.0}
        found = diagnosis(
            groups, probes, groups, fresh, entropies, AXPO, 0, model="m", split="test"
        )
        assert found.calls == 5
        assert "entropy_correlation" not in found.metrics  # all are as confident
        assert (found.triggered, found.candidates, found.prefix_samples) == (2, 3, 4)
        assert found.metrics["all_wrong_tool"].value == pytest.approx(2 / 3)
        assert found.metrics["tool_rate"].value == pytest.approx(5 / 12)
        every = found.prefixes["all"]
        assert (every.prefixes, every.dropped) == (2, 1)
        assert every.metrics["recovery_rate"].value == 0.5
        # Of six fresh rollouts one used a tool and was right: 1 - C(5,4)/C(6,4).
        assert every.metrics["fresh_recovery_rate"].value == pytest.approx(2 / 3)
        # Of the failed a/t0, a/t1 and c/t0 the first two rank in quarters 1 and 2.
        assert every.metrics["recovery_quartile_1"].value == 1.0
        assert every.metrics["recovery_quartile_2"].value == 0.0
        # floor(0.25 * 3 * 8 / 4) = 1 prefix: a/t0, by its name, as all are as confident.
        selected = found.prefixes["selected"]
        assert (selected.prefixes, selected.metrics["recovery_rate"].value) == (1, 1.0)
        plain = asdict(found)
        assert json.loads(json.dumps(plain)) == plain


def shelf_in(folder: Path, *args: Any) -> Shelf:
    return Shelf(GroupsFolder(folder, folder.parent / "pictures"), *args)


class FakeModel:
    """Samples fabricated groups, counts what it was asked, fails where it is told to.

    The first groups wait until `together` of them are being sampled.
    """

    def __init__(self, fail: str | None = None, together: int = 1) -> None:
        self.together, self.met = together, asyncio.Event()
        self.asked: list[str] = []
        self.running = self.most = 0
        self.released: list[str] = []
        self.fail = fail

    def sampler(self, samples: int = 2, slots: int = 8) -> GroupSampler:
        """A `GroupSampler` with this model as its agent."""
        return GroupSampler(cast("Agent", self), samples, 0, slots)

    @property
    def engine(self) -> FakeModel:
        return self

    @property
    def rendering(self) -> None:
        return None

    async def sample(self, group: Group, n: int) -> None:
        self.asked.append(group.id)
        self.running += 1
        self.most = max(self.most, self.running)
        if self.running >= self.together:
            self.met.set()
        await asyncio.wait_for(self.met.wait(), 20)
        await asyncio.sleep(0.001)
        self.running -= 1
        if group.example == self.fail:
            raise RuntimeError(f"no power for {group.id}")
        group.rollouts = tools_and_plain(group.id, [0.0] * (n - 1), [1.0]).rollouts

    async def resample(self, group: Group, branch: Branch, k: int, seed: int) -> None:
        self.asked.append(branch.source)
        await asyncio.sleep(0)
        group.views[branch.source] = Crop("original", (0, 0, 1, 1))
        branch.continuations += [
            continuation(f"{branch.source}/c{i}", zoom(i), float(i == 0)) for i in range(k)
        ]

    async def release(self, id: str) -> None:
        self.released.append(id)


@pytest.fixture(autouse=True)
def _fabricated(monkeypatch: pytest.MonkeyPatch) -> None:
    """What samples with an agent asks a `FakeModel` instead."""

    def new_group(_: None, example: Example, id: str) -> Group:
        return replace(tools_and_plain(id, [], []), example=example.id)

    async def sample_group(model: FakeModel, group: Group, n: int, seed: int, _: Ended) -> Group:
        await model.sample(group, n)
        return group

    async def resample(model: FakeModel, group: Group, branch: Branch, k: int, seed: int) -> None:
        await model.resample(group, branch, k, seed)

    for name, fake in (("new_group", new_group), ("sample_group", sample_group)):
        monkeypatch.setattr(driver, name, fake)
    monkeypatch.setattr(driver, "resample", resample)


def questions(count: int) -> Iterator[Question]:
    return ((None, lambda i=i: Example(f"e{i}", "?", (), "7")) for i in range(count))


def run(
    model: FakeModel, count: int, folder: Path, slots: int = 8, identity: str = "m", **more
) -> list[Group]:
    shelf = shelf_in(folder, {"model": identity})
    sampler = model.sampler(slots=slots)
    return asyncio.run(driver.sample_examples(sampler, questions(count), shelf, **more))


class TestDriver:
    @pytest.fixture(autouse=True)
    def chunk(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(shelves, "CHUNK", 3)

    def test_order_concurrency_and_progress(self, tmp_path: Path) -> None:
        model, seen = FakeModel(together=4), []
        groups = run(
            model,
            10,
            tmp_path / "eval",
            progress=lambda done, _: seen.append(len(done)),
        )
        assert [g.id for g in groups] == [f"eval/e{i}" for i in range(10)]
        assert model.most == 4
        assert seen == sorted(seen) and set(seen) == set(range(11))
        assert sorted(model.released) == sorted(g.id for g in groups)

    def test_goes_on_where_it_was_stopped(self, tmp_path: Path) -> None:
        broken = FakeModel(fail="e7")
        with pytest.raises(RuntimeError, match="no power for eval/e7"):
            run(broken, 10, tmp_path / "eval", slots=2)
        again = FakeModel()
        groups = run(again, 10, tmp_path / "eval")
        assert sorted(again.asked) == ["eval/e7", "eval/e8", "eval/e9"]
        assert groups == run(FakeModel(), 10, tmp_path / "other")
        more = FakeModel()
        assert len(run(more, 12, tmp_path / "eval")) == 12
        assert more.asked == ["eval/e10", "eval/e11"]

    def test_a_kill_costs_at_most_a_chunk(self, tmp_path: Path) -> None:
        folder = tmp_path / "eval"
        shelf = shelf_in(folder, {"model": "m"})
        for i in range(5):
            shelf.add(tools_and_plain(f"eval/e{i}", [0.0], [1.0]))
        (folder / "000001.tmp").write_bytes(b"half a file")
        assert sorted(shelf_in(folder, {"model": "m"}).groups) == ["eval/e0", "eval/e1", "eval/e2"]
        model = FakeModel()
        run(model, 5, folder)
        assert sorted(model.asked) == ["eval/e3", "eval/e4"]

    def test_cancelling_keeps_what_is_finished(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shelves, "CHUNK", 100)
        model = FakeModel()

        async def interrupted() -> None:
            shelf = shelf_in(tmp_path / "eval", {})
            stop = asyncio.Event()

            def progress(done: Sequence[Group], _: int) -> None:
                if len(done) == 10:
                    stop.set()

            task = asyncio.create_task(
                driver.sample_examples(model.sampler(slots=32), questions(50), shelf, progress)
            )
            await stop.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(interrupted())
        assert 10 <= len(shelf_in(tmp_path / "eval", {}).groups) < 50

    def test_another_evaluations_folder_is_refused(self, tmp_path: Path) -> None:
        run(FakeModel(), 2, tmp_path / "eval")
        with pytest.raises(ShelfError, match="model: expected 'other', got 'm'"):
            run(FakeModel(), 2, tmp_path / "eval", identity="other")

    def test_a_setting_newer_than_the_folder(self, tmp_path: Path) -> None:
        """What the folder's identity lacks or has as null stands for the default."""
        older = shelf_in(tmp_path / "eval", {"model": "m", "path": None})
        older.add(tools_and_plain("g", [0.0], [1.0]))
        older.flush()
        defaults = {"path": [], "window": 5}
        shelf_in(tmp_path / "eval", {"model": "m", "path": [], "window": 5}, defaults)
        for other in ({"path": ["a"], "window": 5}, {"path": [], "window": 6}):
            with pytest.raises(ShelfError, match=r"path: expected|window: expected 6, got 5"):
                shelf_in(tmp_path / "eval", {"model": "m"} | other, defaults)

    def test_sampling_again(self, tmp_path: Path) -> None:
        groups = run(FakeModel(), 2, tmp_path / "eval")
        model = FakeModel()
        asked = model.asked

        def sample_all() -> dict[str, Group]:
            shelf = shelf_in(tmp_path / "again", {})
            return asyncio.run(driver.sample_again(model.sampler(5), groups, shelf))

        found = sample_all()
        assert sorted(asked) == ["again/e0", "again/e1"]
        assert list(found) == ["eval/e0", "eval/e1"]
        assert [g.id for g in found.values()] == ["again/e0", "again/e1"]
        assert all(len(g.rollouts) == 5 for g in found.values())
        assert all(len(g.rollouts) == 2 for g in groups)
        assert sample_all() == found and len(asked) == 2

    def test_two_examples_with_one_id(self, tmp_path: Path) -> None:
        twice: list[Question] = [(None, lambda: Example("e", "?", (), "7"))] * 2
        shelf = shelf_in(tmp_path / "eval", {})
        with pytest.raises(ValueError, match="two examples have the id e"):
            asyncio.run(driver.sample_examples(FakeModel().sampler(), twice, shelf))

    def test_a_group_under_another_id(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(driver, "new_group", lambda *_: tools_and_plain("x", [1.0], []))
        shelf, one = shelf_in(tmp_path / "eval", {}), questions(1)
        with pytest.raises(ValueError, match="expected id eval/e0, got x"):
            asyncio.run(driver.sample_examples(FakeModel().sampler(), one, shelf))

    def test_resampling(self, tmp_path: Path) -> None:
        model = FakeModel()
        groups = run(model, 4, tmp_path / "eval")
        probes = choose_prefixes(groups, AXPO, 3, seed=0)
        model.asked.clear()
        model.released.clear()

        def grow_all() -> list[Group]:
            shelf = shelf_in(tmp_path / "diagnosis", {})
            work = driver.resample_prefixes(model.sampler(16), groups, probes, shelf)
            return asyncio.run(work)

        grown = grow_all()
        assert model.asked == [p.prefix.source for p in probes]
        assert sorted(model.released) == sorted({p.prefix.group for p in probes})
        assert all(not g.branches and not g.views for g in groups)
        branches = {b.source: b for g in grown for b in g.branches}
        assert {b.cut for b in branches.values()} == {CUT}
        assert all(len(b.continuations) == 16 for b in branches.values())
        assert grow_all() == grown
        assert len(model.asked) == 3
        entropies = {r.id: 1.0 for g in groups for r in g.rollouts}
        every = diagnosis(groups, probes, grown, {}, entropies, AXPO, 0).prefixes["all"]
        assert every.metrics["recovery_rate"].value == pytest.approx(0.25)
        assert every.metrics["distinct_calls"].value == 16
        # Boxes at 0..15 of width 10: kinds begin at 0, 4, 8 and 12.
        assert every.metrics["distinct_calls_merged"].value == 4
