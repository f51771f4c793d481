"""RLTF's credit and loss by hand; critiques, second attempts, and their gradient against rows."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from renderers import Qwen3VLRendererConfig
from renderers.qwen3_vl import Qwen3VLRenderer

from axpo.algorithms.losses import TokenBatch
from axpo.algorithms.rltf import Rltf, critique_span
from axpo.algorithms.subgroups import gap
from axpo.build.runs import rl_run
from axpo.config import OptimizerSettings, load_config
from axpo.errors import ConfigError, EngineError
from axpo.models.loading import Checkpoint
from axpo.rollout.branching import sample_question
from axpo.rollout.sampling import new_group
from axpo.store import load_groups, save_groups
from axpo.tasks.base import Critic
from axpo.tasks.lab import critic
from axpo.tasks.lab.task import LabTask
from axpo.training.items import items
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.tree import Branch, Group, Origin, Segment, Stream, Trajectory
from tests.support.groups import group, plain_rollout, tool_rollout
from tests.support.padded_oracle import Builder, gradients, trained_logprobs
from tests.support.rollouts import (
    FakeEngine,
    decode,
    encode,
    example,
    make_agent,
    make_rendering,
    zoom,
)
from tests.support.tiny import tiny_checkpoint


def criticised(rollout: Trajectory, words: int = 3) -> Trajectory:
    rollout.segments += [
        Segment(f"{rollout.id}/o", Origin.OBSERVATION, (51, 52)),
        Segment(f"{rollout.id}/critique", Origin.POLICY, tuple(range(60, 60 + words))),
    ]
    return rollout


def second(g: Group, source: str, reward: float | None) -> None:
    attempt = plain_rollout(f"{source}/c0", reward)
    g.branches.append(Branch(source, 0, continuations=[attempt]))


class TestCredit:
    def test_three_terms_by_hand(self) -> None:
        firsts = [tool_rollout("q/t", 0), plain_rollout("q/p", 1), plain_rollout("q/w", 0)]
        g = group("q", [criticised(r) for r in firsts] + [plain_rollout("q/f", None)])
        for id, reward in (("q/t", 1), ("q/p", 1), ("q/w", 0)):
            second(g, id, reward)
        credit = Rltf().credit(g)
        # Rewards [0, 1, 0]: mean 1/3, sample variance 1/3.
        low, high = -1 / math.sqrt(3), 2 / math.sqrt(3)
        third, tenth = pytest.approx(1 / 3), pytest.approx(0.1 / 3)
        first, words = credit["q/t"]
        assert (first.start, first.end, first.stream) == (0, 11, Stream.ROLLOUT)
        assert (first.advantage, first.weight) == (pytest.approx(low), third)
        # The critique's three words stand behind the attempt and what opens its turn.
        assert (words.start, words.end, words.stream) == (13, 16, Stream.DEMONSTRATION)
        assert (words.advantage, words.weight) == (1.0, tenth)
        assert credit["q/p"][0].advantage == pytest.approx(high)
        # A = R(y1) - mean R(y0), no deviation: 2/3, 2/3, -1/3.
        distilled = [credit[f"{id}/c0"][0] for id in ("q/t", "q/p", "q/w")]
        assert [c.advantage for c in distilled] == pytest.approx([2 / 3, 2 / 3, -1 / 3])
        assert {(c.start, c.end, c.stream) for c in distilled} == {(0, 5, Stream.DISTILLED)}
        assert distilled[0].weight == tenth
        assert "q/f" not in credit

    def test_an_all_wrong_group_learns_from_its_second_attempts(self) -> None:
        g = group("q", [criticised(plain_rollout(f"q/{i}", 0)) for i in range(2)])
        second(g, "q/0", 1)
        second(g, "q/1", None)
        credit = Rltf().credit(g)
        assert [credit[f"q/{i}"][0].advantage for i in range(2)] == [0.0, 0.0]
        assert credit["q/0/c0"][0].advantage == 1.0
        assert "q/1/c0" not in credit

    def test_weights_of_zero_leave_grpo(self) -> None:
        g = group("q", [criticised(plain_rollout(f"q/{i}", i)) for i in range(2)])
        second(g, "q/0", 1)
        credit = Rltf(distill_weight=0.0, feedback_weight=0.0).credit(g)
        assert {id: len(c) for id, c in credit.items()} == {"q/0": 1, "q/1": 1}

    def test_critique_span(self) -> None:
        assert critique_span(plain_rollout("p", 1)) == (5, 5, 5)
        assert critique_span(criticised(tool_rollout("t", 1), 4)) == (11, 13, 17)


class TestLoss:
    def test_each_kind_of_token_by_hand(self) -> None:
        """Ratio 2 against the clip, a critique's token, a distilled one, one below the floor."""
        logprobs = torch.tensor([-1.0, -2.0, -3.0, -5.5], dtype=torch.float64, requires_grad=True)
        old = torch.tensor([-1.0 - math.log(2), 0.0, -9.0, -9.0], dtype=torch.float64)
        advantages = torch.tensor([1.0, 1.0, -0.5, 0.75], dtype=torch.float64)
        weights = torch.tensor([0.5, 0.1, 0.2, 0.2], dtype=torch.float64)
        likelihood = torch.tensor([False, True, True, True])
        distilled = torch.tensor([False, False, True, True])
        batch = TokenBatch(logprobs, old, None, advantages, weights, likelihood, distilled)
        loss, stats = Rltf(kl=0.0).token_loss(batch)
        loss.backward()
        # -(0.5 * 1.4) + 0.1 * 2 - 0.2 * 0.5 * 3; the clip is flat, the last token dropped.
        assert loss.item() == pytest.approx(-0.7 + 0.2 - 0.3)
        assert logprobs.grad is not None
        assert logprobs.grad.tolist() == pytest.approx([0.0, -0.1, 0.1, 0.0])
        assert stats["dropped"] == 1.0
        assert stats["nll"] == pytest.approx(5.0)

    def test_a_critique_is_never_dropped(self) -> None:
        logprobs = torch.tensor([-20.0], requires_grad=True)
        one, yes, no = torch.ones(1), torch.tensor([True]), torch.tensor([False])
        rltf = Rltf(kl=0.0)
        batch = TokenBatch(logprobs, torch.zeros(1), None, one, one, yes, no)
        assert rltf.token_loss(batch)[0].item() == 20.0
        batch = TokenBatch(logprobs, torch.zeros(1), None, one, one, yes, yes)
        assert rltf.token_loss(batch)[0].item() == 0.0


# Sampling -----------------------------------------------------------------------------------

CALL = f"small</think>\n\n{zoom()}"
WRONG = "it is 8</think>\n\nAnswer: 8"
RIGHT = "it is 7</think>\n\nAnswer: 7"


class Judge:
    """A task that is only a critic."""

    def size(self, split: str) -> int | None: ...

    def example(self, split: str, index: int) -> Any: ...

    def critique(self, group: Group, attempt: Trajectory) -> str:
        return f"not {attempt.answer}" if not attempt.reward else "fine <|im_end|>"


def test_second_attempts_follow_the_first_and_its_critique() -> None:
    script = {"g/r0/t1": CALL, "g/r0/t2": WRONG, "g/r1/t1": RIGHT}
    script |= {"g/r0/c0/t1": CALL, "g/r0/c0/t2": RIGHT, "g/r1/c0/t1": WRONG}
    engine = FakeEngine(script)
    agent = make_agent(engine)
    g = new_group(agent.rendering, example(), "g")
    asyncio.run(sample_question(agent, g, Rltf(rollouts=2), 0, Judge()))
    first, other = g.rollouts
    _, start, stop = critique_span(first)
    assert [s.origin for s in first.segments[-2:]] == [Origin.OBSERVATION, Origin.POLICY]
    assert decode(first.segments[-1].tokens) == "not Answer: 8"
    # What a critic says cannot close its own turn.
    assert decode(other.segments[-1].tokens) == "fine < |im_end|>"
    asked = {r.id: r for r in engine.requests}
    seen = tuple(t for s in g.path(first) for t in s.tokens)
    follows = encode("<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert asked["g/r0/c0/t1"].tokens == (*seen, *follows)
    assert [p.digest for p in asked["g/r0/c0/t1"].pictures] == [
        span.digest for s in (g.prompt, *first.segments) for span in s.images
    ]
    assert asked["g/r0/c0/t1"].group == "g"
    assert [(b.source, b.cut) for b in g.branches] == [("g/r0", 0), ("g/r1", 0)]
    (attempt,) = g.branches[0].continuations
    assert (attempt.reward, attempt.calls[0].start) == (1.0, first.calls[0].start)
    # The second attempt is stored where it is trained: right after the question.
    assert g.path(attempt)[:2] == [g.prompt, attempt.segments[0]]
    assert gap([g])["recovery_rate"] == 1.0 and gap([g])["reward_mean"] == 0.5
    for id, credit in Rltf(rollouts=2).credit(g).items():
        g.trajectory(id).credit = list(credit)
    trained = [(i.credit.stream, len(i.offsets)) for i in items(g) if i.trajectory is first]
    words = len(first.segments[0]) + len(first.segments[2])
    assert trained == [(Stream.ROLLOUT, words), (Stream.DEMONSTRATION, stop - start)]


def test_an_unscored_rollout_gets_no_critique() -> None:
    agent = make_agent(FakeEngine({"g/r0/t1": EngineError("down")}, RIGHT))
    g = new_group(agent.rendering, example(), "g")
    asyncio.run(sample_question(agent, g, Rltf(rollouts=2), 0, Judge()))
    assert [b.source for b in g.branches] == ["g/r1"] and not g.rollouts[0].segments


def test_a_critique_renders_as_the_renderers_user_turn() -> None:
    rendering = make_rendering()
    tokens = encode(f"{RIGHT}<|im_end|>")
    parts = rendering.critique(tokens, "not 8", "q")
    opening = rendering._generation_prompt
    renderer = Qwen3VLRenderer(rendering.tokenizer, Qwen3VLRendererConfig())
    bridged = renderer.bridge_to_next_turn(
        opening, list(tokens), [{"role": "user", "content": "not 8"}]
    )
    assert bridged is not None
    ours = [t for part in parts for t in part.tokens]
    assert [*opening, *tokens, *ours] == [*bridged.token_ids, *encode("<think>\n")]


@pytest.mark.parametrize(("turn", "closing"), [("cut off", "<|im_end|>"), ("odd<|im_end|>", "")])
def test_a_turn_that_ended_in_thinking_is_closed_as_it_is(turn: str, closing: str) -> None:
    opening, _, after = make_rendering().critique(encode(turn), "no", "q")
    assert decode(opening.tokens) == f"{closing}\n<|im_start|>user\n"
    assert decode(after.tokens) == "<|im_end|>\n<|im_start|>assistant\n<think>\n"


# The lab's critic ---------------------------------------------------------------------------


def test_the_labs_critic_says_where_and_never_what() -> None:
    task = LabTask(families=("find",))
    assert isinstance(task, Critic)
    for index in range(20):
        asked = task.example("train", index)
        g = group("q", [plain_rollout("q/p", 0), tool_rollout("q/t", 0), plain_rollout("q/r", 1)])
        g.meta = asked.meta
        without, using, right = (task.critique(g, rollout) for rollout in g.rollouts)
        assert right == critic.RIGHT
        assert without == using + critic.USE_A_TOOL and using.startswith(critic.WRONG)
        left, top, far, bottom = asked.meta["target_box"]
        width, height = asked.images[0].size
        row, column = int((top + bottom) / 2 / height * 4), int((left + far) / 2 / width * 4)
        assert f"row {row + 1}, column {column + 1}" in using


def test_a_task_without_a_critic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"id": "1", "question": "?", "answer": "1", "images": []}\n')
    overrides = ["task.name=data", f"task.path={tmp_path}/q.jsonl", "algorithm.name=rltf"]
    with pytest.raises(ConfigError, match=r"algorithm\.name: 'rltf' needs critiques; the data"):
        rl_run(load_config(*overrides, "model.path=nowhere"))


# Training -----------------------------------------------------------------------------------


def learning_group(checkpoint: Checkpoint) -> Group:
    build = Builder(checkpoint, 9)
    g = build.group("g", [1])
    g.rollouts = [build.rollout("r0", 7, 5, 6), build.rollout("r1", 6)]
    for rollout, reward in zip(g.rollouts, (0.0, 1.0), strict=True):
        rollout.reward = reward
        rollout.segments += [
            Segment(f"{rollout.id}/o", Origin.OBSERVATION, tuple(build.words(2))),
            build.policy(f"{rollout.id}/critique", 4, sampled=False),
        ]
        attempt = build.rollout(f"{rollout.id}/c0", 5, 3, 4)
        attempt.reward = 1.0 - reward
        g.branches.append(Branch(rollout.id, 0, continuations=[attempt]))
    return g


def gradient(checkpoint: Checkpoint, g: Group, settings: Rltf, budget: int) -> Any:
    for id, credit in settings.credit(g).items():
        g.trajectory(id).credit = list(credit)
    optimizer = OptimizerSettings(max_grad_norm=1e9, max_tokens_per_micro_batch=budget)
    trainer = LocalLearner(checkpoint, None, optimizer, 1)
    caught: list[torch.Tensor] = []

    def step() -> None:
        caught.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
                    for p in checkpoint.model.parameters()
                ]
            )
        )

    trainer.optimizer.step = step  # pyright: ignore
    metrics = trainer.update([g], Objective(settings.token_loss, "question_mean", False))
    return caught[0].clone(), metrics


@pytest.mark.parametrize("budget", [10_000, 40])
def test_gradient_equals_rows(budget: int) -> None:
    torch.set_num_threads(1)
    checkpoint = tiny_checkpoint(0)
    g = learning_group(checkpoint)
    # The tiny model gives about 1/300 to everything: a floor that drops some tokens.
    settings = Rltf(kl=0.0, distill_floor=-5.7)
    ours, metrics = gradient(checkpoint, g, settings, budget)
    loss = torch.zeros(())
    dropped = 0
    for _, credit, logprobs, old in trained_logprobs(checkpoint, g):
        weight = credit.weight / len(logprobs)
        if credit.stream is Stream.ROLLOUT:
            ratio = (logprobs - old).exp()
            value = torch.minimum(
                ratio * credit.advantage, ratio.clamp(0.8, 1.4) * credit.advantage
            )
        elif credit.stream is Stream.DISTILLED:
            kept = logprobs.detach() >= -5.7
            dropped += int((~kept).sum())
            value = credit.advantage * logprobs * kept
        else:
            value = logprobs
        loss = loss - weight * value.sum()
    rows = gradients(checkpoint, loss)
    assert 0 < dropped < 18
    assert ((ours - rows).norm() / rows.norm()).item() < 1e-5
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["dropped"] * metrics["tokens_trained"] == pytest.approx(dropped)
    # Negative control: without the floor the gradient is another.
    other, _ = gradient(checkpoint, g, Rltf(kl=0.0, distill_floor=-50.0), budget)
    assert ((other - rows).norm() / rows.norm()).item() > 0.01


def test_a_saved_tree_comes_back_with_its_streams(tmp_path: Path) -> None:
    g = learning_group(tiny_checkpoint(0))
    for id, credit in Rltf().credit(g).items():
        g.trajectory(id).credit = list(credit)
    save_groups(tmp_path / "trees" / "step.parquet", [g], tmp_path / "pictures")
    (loaded,) = load_groups(tmp_path / "trees" / "step.parquet")
    assert list(loaded.trajectories()) == list(g.trajectories())
    assert [len(i.offsets) for i in items(loaded)] == [len(i.offsets) for i in items(g)]
