"""ARPO's branching, budget and credit by hand; a question's rounds; its prefixes in training."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.algorithms.arpo import Arpo
from axpo.algorithms.base import Algorithm, Fork
from axpo.algorithms.entropy import TOP_LOGPROBS, opening_entropy
from axpo.algorithms.grpo import Grpo
from axpo.algorithms.losses import ClipLoss
from axpo.algorithms.subgroups import gap
from axpo.config import OptimizerSettings
from axpo.engines.base import Request
from axpo.errors import TreeError
from axpo.models.loading import Checkpoint
from axpo.rollout.branching import sample_question
from axpo.rollout.sampling import new_group
from axpo.store import load_groups, save_groups
from axpo.tasks.base import Example
from axpo.training.items import items
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.tree import Group, Stream, Trajectory
from tests.support.data_sets import picture, task_of, write_jsonl
from tests.support.groups import group, grow, plain_rollout, two_calls
from tests.support.padded_oracle import Builder, gradients, oracle_loss
from tests.support.rollouts import FakeEngine, encode, example, make_agent, zoom
from tests.support.tiny import tiny_checkpoint

TENTHS = (math.log(0.1),) * 10
SURE = (0.0,)
NO_TASK: Any = None


class TestEntropy:
    def test_ten_logprobs_of_twenty_tokens_over_log_v(self) -> None:
        # Ten of probability 0.1 have entropy ln 10; log |V| of 100 words is 2 ln 10.
        assert opening_entropy([TENTHS] * 3, 100) == pytest.approx(1.5)
        assert opening_entropy([TENTHS] * 25, 100) == pytest.approx(10.0)
        assert opening_entropy([(math.log(0.1),) * 12], 100) == pytest.approx(0.5)

    def test_probabilities_are_not_renormalised(self) -> None:
        # -(0.5 ln 0.5 + 0.25 ln 0.25) = ln 2; what the other ids hold is left out.
        token = (math.log(0.5), math.log(0.25))
        assert opening_entropy([token, SURE], 4) == pytest.approx(0.5)


def with_entropy(group: Group, turns: Mapping[str, float]) -> Group:
    group.entropies = dict(turns)
    return group


def three() -> Group:
    """Turns of a two-call rollout: segments 0, 2, 4, at offsets 0, 9, 17."""
    rollouts = [two_calls(f"q/r{i}", 0, 0.5, 0.5) for i in range(3)]
    entropy = {f"q/r{i}/{s}": 0.3 for i in range(3) for s in (0, 2, 4)}
    return with_entropy(group("q", [*rollouts, plain_rollout("q/p", 1)]), entropy | {"q/p/0": 0.9})


class TestForks:
    def test_where_the_turn_after_an_observation_is_less_certain(self) -> None:
        g = three()
        g.entropies |= {"q/r0/2": 0.31, "q/r1/2": 0.29, "q/r2/4": 0.4}
        # alpha = tau: any rise branches, a fall or none does not.
        assert Arpo().forks(g, 2, 0) == [Fork("q/r0", 9)]
        assert Arpo().forks(g, 3, 0) == [Fork("q/r2", 17)]

    def test_threshold_by_hand(self) -> None:
        g = three()
        g.entropies |= {"q/r0/2": 0.8, "q/r1/2": 0.9, "q/r2/2": 0.3}
        # P = 0.4 + 0.25 dH: 0.525, 0.55, 0.4.
        s = Arpo(entropy_base=0.4, entropy_gain=0.25, entropy_threshold=0.53)
        assert [f.source for f in s.forks(g, 2, 0)] == ["q/r1"]
        s = Arpo(entropy_base=0.4, entropy_gain=0.25, entropy_threshold=0.5)
        assert [f.source for f in s.forks(g, 2, 0)] == ["q/r0", "q/r1"]

    def test_the_budget_ends_branching(self) -> None:
        g = three()
        g.entropies |= {f"q/r{i}/2": 0.5 for i in range(3)}
        assert [f.source for f in Arpo(rollouts=6).forks(g, 2, 0)] == ["q/r0", "q/r1"]
        assert Arpo(rollouts=4).forks(g, 2, 0) == []

    def test_the_open_code_draws_with_probability_p(self) -> None:
        g = three()
        # P = 0.5 + 0.2 dH: 0.3, 0.5 and, beyond certainty, 1.5.
        g.entropies |= {"q/r0/2": -0.7, "q/r1/2": 0.3, "q/r2/2": 5.3}
        s = Arpo(entropy_rule="draw")
        drawn = [[f.source for f in s.forks(g, 2, seed)] for seed in range(1000)]
        assert drawn == [[f.source for f in s.forks(g, 2, seed)] for seed in range(1000)]
        share = [sum(f"q/r{i}" in one for one in drawn) / 1000 for i in range(3)]
        # Standard error at most 0.016; the threshold would give 0, 0 and 1.
        assert share == [pytest.approx(0.3, abs=0.06), pytest.approx(0.5, abs=0.06), 1.0]
        assert [f.source for f in Arpo().forks(g, 2, 0)] == ["q/r2"]

    def test_a_branched_member_is_measured_against_its_paths_first_turn(self) -> None:
        g = three()
        grow(g, "q/r0", [0], cut=9)
        (member,) = g.branches[0].continuations
        # Its own turns are the path's second and third, at 9 and 9 + 3 + 2.
        g.entropies |= {f"{member.id}/0": 0.2, f"{member.id}/2": 0.4}
        assert Arpo().forks(g, 3, 0) == [Fork(member.id, 14)]

    def test_an_engine_without_logprobs_is_named(self) -> None:
        g = three()
        g.entropies.clear()
        with pytest.raises(TreeError, match=r"q/r0/2.*10 highest logprobs"):
            Arpo().forks(g, 2, 0)

    @pytest.mark.parametrize(
        ("n", "share", "expected"), [(16, 0.5, 8), (8, 0.5, 4), (100, 0.29, 29), (4, 0.0, 1)]
    )
    def test_initial_rollouts(self, n: int, share: float, expected: int) -> None:
        assert Arpo(rollouts=n, initial_share=share).first_rollouts == expected


class TestCredit:
    def test_every_member_counts_once_and_as_a_whole(self) -> None:
        g = group("q", [two_calls("q/r0", 0, 0.5, 0.5), plain_rollout("q/r1", 0)])
        grow(g, "q/r0", [1], cut=9)
        grow(g, "q/r0/c0", [None], cut=14)
        grow(g, "q/r0", [0], cut=17)
        g.branches[2].continuations[0].id = "q/r0/b1c0"
        credit = Arpo().credit(g)
        # Rewards [0, 0, 1, 0], the unscored one left out: mean 1/4, std 1/2.
        assert {id: c[0].advantage for id, c in credit.items()} == {
            "q/r0": -0.5, "q/r1": -0.5, "q/r0/c0": 1.5, "q/r0/b1c0": -0.5,
        }  # fmt: skip
        spans = {id: (c[0].start, c[0].end, c[0].stream) for id, c in credit.items()}
        assert spans["q/r0"] == (0, 19, Stream.ROLLOUT)
        assert spans["q/r0/c0"] == (0, 16, Stream.PATH)
        assert spans["q/r0/b1c0"] == (0, 24, Stream.PATH)
        assert {c[0].weight for c in credit.values()} == {0.25}

    def test_without_branches_it_is_grpo(self) -> None:
        g = group("q", [two_calls("q/r0", 1, 0.5, 0.5), plain_rollout("q/r1", 0)])
        assert Arpo().credit(g) == Grpo().credit(g)

    def test_a_branch_of_a_right_rollout_is_no_recovery(self) -> None:
        g = group("q", [two_calls("q/r0", 1, 0.5, 0.5), two_calls("q/r1", 0, 0.5, 0.5)])
        grow(g, "q/r0", [1], cut=9)
        assert "recovery_rate" not in gap([g])
        grow(g, "q/r1", [0], cut=9)
        assert gap([g])["recovery_rate"] == 0.0


# A question's rounds ------------------------------------------------------------------------

CALL = f"small</think>\n\n{zoom()}"
RIGHT = "it is 7</think>\n\nAnswer: 7"


def sampled(
    script: Mapping[str, Any], unsure: set[str], asked: Example | None = None, **settings: object
) -> tuple[Group, FakeEngine]:
    """A question whose turns named `unsure` open with a spread over ten ids."""

    def top(request: Request) -> tuple[float, ...]:
        return TENTHS if request.id in unsure else SURE

    engine = FakeEngine(script, RIGHT, top)
    agent = make_agent(engine, top_logprobs=TOP_LOGPROBS)
    g = new_group(agent.rendering, asked or example(), "g")
    asyncio.run(sample_question(agent, g, Arpo(**settings), 0, NO_TASK))
    return g, engine


def test_rounds_of_a_question() -> None:
    """N = 8, four first. r0 and r1 grow unsure after their first crop, r0's branch after its
    second; what is left of the budget starts from the prompt."""
    script = {"g/r0/t1": CALL, "g/r0/t2": CALL, "g/r1/t1": CALL, "g/r2/t1": CALL}
    script |= {"g/r0/c0/t2": CALL}
    g, engine = sampled(script, {"g/r0/t2", "g/r1/t2", "g/r0/c0/t3"})
    assert [r.id for r in g.rollouts] == [f"g/r{i}" for i in range(5)]
    assert [(b.source, [c.id for c in b.continuations]) for b in g.branches] == [
        ("g/r0", ["g/r0/c0"]), ("g/r1", ["g/r1/c0"]), ("g/r0/c0", ["g/r0/c0/c0"]),
    ]  # fmt: skip
    assert all(t.reward == 1.0 for t in g.trajectories())
    order = [r.id for r in engine.requests]
    # The last rollout starts once every round is over.
    assert order.index("g/r4/t1") > order.index("g/r0/c0/c0/t3")
    # A branch begins right after the observation, with what its source saw.
    first = g.rollouts[0]
    cut = len(first.segments[0]) + len(first.segments[1])
    assert g.branches[0].cut == cut
    (asked,) = (r for r in engine.requests if r.id == "g/r0/c0/t2")
    seen = [t for s in g.path(first) for t in s.tokens][: len(g.prompt) + cut]
    assert list(asked.tokens) == seen and len(asked.pictures) == 2
    vocabulary = tiny_checkpoint(0).model.config.text_config.vocab_size
    expected = 20 * math.log(10) / math.log(vocabulary)
    assert len(encode(CALL)) >= 20 and g.entropies["g/r0/t1"] == 0.0
    assert g.entropies["g/r0/t2"] == pytest.approx(expected)


def test_a_data_sets_own_names_are_the_users(tmp_path: Path) -> None:
    """Columns called as the group's own fields: sampled with a zoom and ARPO's entropies, saved."""
    (tmp_path / "1.png").write_bytes(picture(size=(64, 64)))
    meta = {"views": 3, "entropy": 0.5, "entropies": None, "example": [1], "grading": "none"}
    row = {"id": "a", "question": "?", "images": ["1.png"], "answer": ["7", "seven"], "meta": meta}
    task = task_of(f"path = '{write_jsonl(tmp_path / 'train.jsonl', row)}'")
    script = {f"g/r{i}/t1": CALL for i in range(4)}
    g, _ = sampled(script, {"g/r0/t2"}, task.example("train", 0))
    assert [b.source for b in g.branches] == ["g/r0"]
    assert all(t.reward == 1.0 for t in g.trajectories())
    assert (g.meta, g.example, g.grading, g.truths) == (meta, "a", "short", ("7", "seven"))
    assert len(g.views) == 1 and set(g.entropies) >= {"g/r0/t1", "g/r0/t2", "g/r0/c0/t2"}
    file = tmp_path / "trees" / "a.parquet"
    save_groups(file, [g], tmp_path / "pictures")
    assert load_groups(file, tmp_path / "pictures") == [g]


def test_a_budget_that_branches_use_up() -> None:
    script = {f"g/r{i}/t1": CALL for i in range(4)}
    g, _ = sampled(script, {f"g/r{i}/t2" for i in range(4)}, rollouts=6, initial_share=0.67)
    assert len(g.rollouts) == 4
    assert [b.source for b in g.branches] == ["g/r0", "g/r1"]


def test_other_algorithms_sample_from_the_prompt_and_ask_for_no_entropy() -> None:
    engine = FakeEngine({}, RIGHT, lambda _: TENTHS)
    agent = make_agent(engine)
    g = new_group(agent.rendering, example(), "g")
    asyncio.run(sample_question(agent, g, Grpo(), 0, NO_TASK))
    assert len(g.rollouts) == 8 and not g.branches and not g.entropies


# Training -----------------------------------------------------------------------------------

CLIP_KL = partial(ClipLoss().of, kl=0.05)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    torch.set_num_threads(1)
    return tiny_checkpoint(0)


def branched(checkpoint: Checkpoint) -> Group:
    """r0 with a member from its second turn, and a member of that one's second turn."""
    build = Builder(checkpoint, 5)
    g = build.group("g", [1, 2])
    g.rollouts = [build.rollout("r0", 7, 5, 6), build.rollout("r1", 9), build.rollout("r2", 4)]
    first = sum(len(s) for s in g.rollouts[0].segments[:2])
    a = g.fork(g.rollouts[0], first)
    a.continuations = [build.rollout("r0/c0", 5, 3, 4)]
    second = first + sum(len(s) for s in a.continuations[0].segments[:2])
    g.fork(a.continuations[0], second).continuations = [build.rollout("r0/c0/c0", 6)]
    rewards = {"r0": 0.0, "r1": 1.0, "r2": 0.0, "r0/c0": 0.0, "r0/c0/c0": 1.0}
    for member in g.trajectories():
        member.reward = rewards[member.id]
    return g


def apart(g: Group) -> Group:
    """The same members as rollouts of their own, each with its whole path."""
    members = [Trajectory(t.id, g.after_prompt(t), reward=t.reward) for t in g.trajectories()]
    return Group(g.id, g.prompt, rollouts=members, pictures=g.pictures)


def credited(g: Group, algorithm: Algorithm) -> Group:
    for id, credit in algorithm.credit(g).items():
        g.trajectory(id).credit = list(credit)
    return g


def gradient(checkpoint: Checkpoint, g: Group, old: Any = None, **optimizer: Any) -> Any:
    """(gradient, metrics, old logprobs that the trainer recomputes)."""
    settings = OptimizerSettings(learning_rate=1e-3, max_grad_norm=1e9, **optimizer)
    trainer = LocalLearner(checkpoint, tiny_checkpoint(1), settings, 1)
    caught: list[torch.Tensor] = []

    def step() -> None:
        parameters = checkpoint.model.parameters()
        caught.append(
            torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
            )
        )

    trainer.optimizer.step = step  # pyright: ignore
    metrics = trainer.update([g], Objective(CLIP_KL, "question_mean", True, old))
    return caught[0].clone(), metrics


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("budget", [10_000, 40])
def test_shared_prefixes_train_as_independent_rows(checkpoint: Checkpoint, budget: int) -> None:
    g = credited(branched(checkpoint), Arpo())
    rows = credited(apart(g), Grpo())
    ours, metrics = gradient(checkpoint, g, max_tokens_per_micro_batch=budget)
    theirs, plain = gradient(checkpoint, rows)
    oracle = gradients(
        checkpoint,
        oracle_loss(checkpoint, [rows], CLIP_KL, "question_mean", tiny_checkpoint(1)),
    )
    assert distance(theirs, oracle) < 1e-5
    assert distance(ours, oracle) < 1e-5
    assert metrics["loss"] == pytest.approx(plain["loss"], rel=1e-5)
    # The same tokens are trained, the prefixes packed once.
    assert metrics["tokens_trained"] == plain["tokens_trained"]
    assert metrics["tokens_path"] == plain["tokens_path"]
    shared = [len(g.rollouts[0].segments[i]) for i in range(2)]
    more = [len(s) for s in g.branches[0].continuations[0].segments[:2]]
    assert plain["tokens_packed"] - metrics["tokens_packed"] == 2 * sum(shared) + sum(more)


def test_a_prefix_that_only_its_owner_trains_is_another_gradient(checkpoint: Checkpoint) -> None:
    """Negative control: members credited from their cut on, as AXPO's continuations are."""
    g = credited(branched(checkpoint), Arpo())
    ours, _ = gradient(checkpoint, g)
    for branch in g.branches:
        (member,) = branch.continuations
        (whole,) = member.credit
        member.credit = [
            type(whole)(branch.cut, whole.end, whole.advantage, Stream.CONTINUATION, whole.weight)
        ]
    less, _ = gradient(checkpoint, g)
    assert distance(less, ours) > 0.05


def test_recomputed_logprobs_reach_shared_prefixes(checkpoint: Checkpoint) -> None:
    g = credited(branched(checkpoint), Arpo())
    rows = credited(apart(g), Grpo())
    trainer = LocalLearner(checkpoint, None, OptimizerSettings(), 1)
    old, plain = (trainer.logprobs([some], True) for some in (g, rows))
    ours, _ = gradient(checkpoint, g, old)
    theirs, _ = gradient(checkpoint, rows, plain)
    assert distance(ours, theirs) < 1e-5


def test_only_a_path_credit_may_reach_before_the_cut(checkpoint: Checkpoint) -> None:
    g = credited(branched(checkpoint), Arpo())
    assert len(items(g)) == 5
    (member,) = g.branches[0].continuations
    (whole,) = member.credit
    member.credit = [type(whole)(0, whole.end, whole.advantage, Stream.CONTINUATION, whole.weight)]
    with pytest.raises(TreeError, match=r"r0/c0: continuation credit .* own tokens"):
        items(g)
