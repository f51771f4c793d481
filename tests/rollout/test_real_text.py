"""What a pretrained model's text brings: ends of turns, repetition, parts of characters, long
questions. The models are tiny and random, their tokenizers are byte-level with merges."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.algorithms.grpo import Grpo
from axpo.config import OptimizerSettings
from axpo.engines.base import Finish
from axpo.engines.scripted import ScriptedEngine
from axpo.engines.transformers import TransformersEngine
from axpo.errors import EngineError
from axpo.models.loading import Checkpoint
from axpo.report.command import reading, strings
from axpo.report.trees import TreePayload
from axpo.rollout.agent import Agent
from axpo.rollout.paths import branch_path, start_path
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.store import load_groups, save_groups
from axpo.tasks.base import Example
from axpo.tools.base import Observation, ToolContext
from axpo.training.learner import LocalLearner
from axpo.training.objective import Objective
from axpo.training.pieces import training_passes
from axpo.training.policy import policy_logprobs
from axpo.tree import CallStatus, Group, Origin, Segment, StopReason, Trajectory
from tests.support.bpe import KINDS, bpe_checkpoint
from tests.support.engine_contract import Writer, ask, difference, run
from tests.support.packing import CLIP, packed
from tests.support.padded_oracle import credit_all
from tests.support.rollouts import GRADE, LIMITS, FakeTool

END, OVER = "<|im_end|>", "<|endoftext|>"
EMOJI = '"😀"'
SHORT = LIMITS.model_copy(update={"max_turn_tokens": 40, "max_tokens": 200})


def call(at: str) -> str:
    """A call whose argument is the JSON `at`."""
    return f'<tool_call>\n{{"name": "look", "arguments": {{"at": {at}}}}}\n</tool_call>'


class Told:
    """A rollout of what a script says, turn by turn, with the tool `look` (which repeats `at`)."""

    def __init__(self, kind: str, settings: Any = LIMITS) -> None:
        self.checkpoint = bpe_checkpoint(kind)
        self.given: list[Any] = []

        async def look(arguments: dict[str, Any], context: ToolContext) -> Observation:
            self.given.append(arguments["at"])
            return Observation(str(arguments["at"]))

        self.rendering = Rendering(self.checkpoint.processor, {"look": FakeTool(look)})
        self.turns: list[Sequence[int]] = []
        self.engine = ScriptedEngine(lambda _: self.turns.pop(0))
        self.agent = Agent(self.engine, self.rendering, self.rendering.tools, settings, GRADE)
        self.group = new_group(self.rendering, Example("q", "How many?", (), "42"), "g")

    def spell(self, text: str) -> list[int]:
        """`text` by ordinary tokens, control tokens too."""
        whole = [self.rendering.encode(part) for part in text.split("<|")]
        opening = [*self.rendering.encode("<"), *self.rendering.encode("|")]
        return [id for n, part in enumerate(whole) for id in (*(opening if n else ()), *part)]

    def play(self, *turns: str | Sequence[int]) -> Trajectory:
        encode = self.rendering.encode
        self.turns[:] = [encode(turn) if isinstance(turn, str) else turn for turn in turns]
        done = asyncio.run(self.agent.run(start_path(self.group), "g/r0", seed=0))
        self.group.rollouts = [done]
        return done


# ------------------------------------------------------------------ ends of turns


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("end", [END, OVER], ids=["turn", "text"])
def test_a_turn_ends_with_either_token_and_neither_is_part_of_the_answer(
    kind: str, end: str
) -> None:
    told = Told(kind)
    rollout = told.play(f"The answer is 42{end}")
    assert (rollout.stop, rollout.answer) == (StopReason.ANSWER, "The answer is 42")
    assert rollout.reward == 1.0
    assert rollout.segments[0].tokens == tuple(told.rendering.encode(f"The answer is 42{end}"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_that_calls_and_ends_the_text_is_over(kind: str) -> None:
    told = Told(kind)
    rollout = told.play(f"So {call('3')}{OVER}")
    assert (rollout.stop, rollout.reward) == (StopReason.END_OF_TEXT, 0.0)
    assert told.given == [] and rollout.calls[0].status is CallStatus.NOT_RUN


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["no end at all " * 20, f"So {call('9' * 300)}"])
def test_a_turn_without_an_end_is_cut_and_scores_nothing(kind: str, text: str) -> None:
    """Also one that is cut inside its call, which then is none that could be run."""
    told = Told(kind, SHORT)
    rollout = told.play(text)
    assert (rollout.stop, rollout.reward, rollout.answer) == (StopReason.MAX_TOKENS, 0.0, None)
    assert len(rollout.segments[0]) == SHORT.max_turn_tokens
    assert told.given == []
    assert [made.status for made in rollout.calls] == (
        [CallStatus.MALFORMED] if "tool_call" in text else []
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_inside_a_call_leaves_it_open_and_the_model_is_told(kind: str) -> None:
    told = Told(kind)
    rollout = told.play('Hm <tool_call>\n{"name": "look", <|im_end|>', "42<|im_end|>")
    (made,) = rollout.calls
    assert (made.status, made.error) == (CallStatus.MALFORMED, "the call is never closed")
    turn, result, _ = rollout.segments
    assert turn.tokens[-1] == told.rendering.encode(END)[0] and made.end == len(turn) - 1
    shown = told.rendering.decode(result.tokens)
    assert shown.startswith("\n<|im_start|>user\n<tool_response>\n") and END in shown
    assert rollout.reward == 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_that_is_spelled_inside_a_call_is_its_text(kind: str) -> None:
    """By other tokens than the control token; and it does not end the turn that repeats it."""
    told = Told(kind)
    opening, closing = call('"a<|im_end|>b"').split("a<|im_end|>b")
    turn = [
        *told.rendering.encode(opening), *told.spell("a<|im_end|>b"),
        *told.rendering.encode(closing + END),
    ]  # fmt: skip
    rollout = told.play(turn, f"42{END}")
    assert told.given == ["a<|im_end|>b"] and rollout.reward == 1.0
    result = rollout.segments[1]
    shown = told.rendering.decode(result.tokens)
    assert "a< |im_end|>b" in shown and shown.count(END) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_closing_tag_that_is_spelled_inside_a_call_is_told_or_text(kind: str) -> None:
    """Where tags are text, it closes the call, whose rest is no JSON; else it is a string."""
    told = Told(kind)
    opening, closing = call('"a</tool_call>b"').split("a</tool_call>b")
    inside = [*told.rendering.encode("a</"), *told.rendering.encode("tool_call>b")]
    encode = told.rendering.encode
    rollout = told.play([*encode(opening), *inside, *encode(closing + END)], f"42{END}")
    if kind == "llama":
        assert rollout.calls[0].status is CallStatus.MALFORMED and told.given == []
    else:
        assert told.given == ["a</tool_call>b"]
    assert rollout.reward == 1.0


# ------------------------------------------------------------------ repetition


def repeating(kind: str, **config: Any) -> Checkpoint:
    """A model that says the same for ever, because its logits are far apart."""
    checkpoint = bpe_checkpoint(kind, 3, **config)
    with torch.no_grad():
        checkpoint.model.model.norm.weight.mul_(60)
    return checkpoint


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_repeats_itself_to_the_limit(kind: str, tmp_path: Path) -> None:
    """Its rollouts score 0 and are counted; they are kept and shown whole; an update from them and
    one other is finite, and makes them less likely."""
    checkpoint = repeating(kind)
    rendering = Rendering(checkpoint.processor, {})
    settings = LIMITS.model_copy(update={"max_turn_tokens": 150, "max_tokens": 150})
    engine = TransformersEngine(checkpoint)
    agent = Agent(engine, rendering, {}, settings, GRADE)
    group = new_group(rendering, Example("q", "How many?", (), "42"), "g")

    async def sample() -> None:
        paths = [start_path(group) for _ in range(3)]
        runs = (agent.run(path, f"g/r{n}", seed=n) for n, path in enumerate(paths))
        group.rollouts = list(await asyncio.gather(*runs))

    asyncio.run(sample())
    for rollout in group.rollouts:
        (said,) = rollout.segments
        assert (rollout.stop, rollout.reward, rollout.answer) == (StopReason.MAX_TOKENS, 0.0, None)
        assert len(said) == 150 and len(set(said.tokens[-50:])) < 5
        assert said.logprobs and max(said.logprobs) <= 0.0
        assert max(said.logprobs[-50:]) > -1e-3  # it is sure of itself
    said = f"42{END}"
    script = ScriptedEngine(lambda _: rendering.encode(said), logprob=-5.0)
    other = Agent(script, rendering, {}, settings, GRADE)
    group.rollouts.append(asyncio.run(other.run(start_path(group), "g/r3", seed=3)))
    for trajectory, credit in Grpo().credit(group).items():
        group.trajectory(trajectory).credit = credit
    assert group.rollouts[0].credit[0].advantage < 0 < group.rollouts[3].credit[0].advantage
    save_groups(tmp_path / "trees.parquet", [group], tmp_path / "pictures")
    (kept,) = load_groups(tmp_path / "trees.parquet")
    assert kept.rollouts[0].segments == group.rollouts[0].segments

    checkpoint.save(tmp_path / "model")
    payload = TreePayload(*reading(tmp_path / "model"))
    assert payload.add(0, 0, kept, 1 << 20)
    (piece,) = payload.groups[0]["rollouts"][0]["pieces"]
    assert len(piece["ids"]) == len(piece["s"]) == 150 and payload.size < 60_000

    forest, pixels = packed(checkpoint, [group])
    with torch.no_grad():
        before = policy_logprobs(checkpoint, forest, pixels)
    learner = LocalLearner(checkpoint, None, OptimizerSettings(learning_rate=1e-4), 10)
    metrics = learner.update([group], Objective(loss=CLIP))
    assert all(math.isfinite(value) for value in metrics.values()) and metrics["grad_norm"] > 0
    with torch.no_grad():
        after = policy_logprobs(checkpoint, forest, pixels)
    worse = forest.advantages < 0
    assert torch.isfinite(after).all() and (after - before)[worse].sum() < 0


# ------------------------------------------------------------------ parts of characters


def halves(rendering: Rendering, text: str) -> tuple[list[int], list[int]]:
    """The tokens of `text` in two parts, the first of which ends inside a character."""
    ids = rendering.encode(text)
    for at in range(len(ids) - 1, 0, -1):
        if rendering.decode(ids[:at]).endswith("\ufffd"):
            return ids[:at], ids[at:]
    raise AssertionError(f"{text!r} has no character of several tokens")


@pytest.mark.parametrize("kind", KINDS)
def test_a_turn_that_is_cut_inside_a_character_stays_as_it_was_sampled(
    kind: str, tmp_path: Path
) -> None:
    told = Told(kind)
    part, _ = halves(told.rendering, "答案 42 😀")
    told.agent.settings = LIMITS.model_copy(update={"max_turn_tokens": len(part)})
    rollout = told.play("答案 42 😀")
    assert rollout.stop is StopReason.MAX_TOKENS
    assert rollout.segments[0].tokens == tuple(part)
    assert len(rollout.segments[0].logprobs) == len(part)
    save_groups(tmp_path / "t.parquet", [told.group], tmp_path / "pictures")
    (kept,) = load_groups(tmp_path / "t.parquet")
    assert kept.rollouts[0].segments == rollout.segments
    shown = strings(lambda ids: told.rendering.decode(ids), part)
    assert len(shown) == len(part) and "".join(shown).startswith("答案 42 \ufffd")


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_and_a_call_of_broken_characters_are_read_and_kept(
    kind: str, tmp_path: Path
) -> None:
    """The policy ends its turn, or goes on with its call, inside a character."""
    told = Told(kind)
    part, _ = halves(told.rendering, "😀")
    encode = told.rendering.encode
    opening, closing = call('"@"').split("@")
    turn = [*encode(f"Hm {opening}"), *part, *encode(closing + END)]
    rollout = told.play(turn, [*encode("42 "), *part, *encode(END)])
    assert told.given == ["\ufffd" * len(told.given[0])] and told.given[0]
    assert rollout.answer is not None and rollout.answer.startswith("42 \ufffd")
    assert rollout.reward == 0.0
    assert rollout.segments[0].tokens == tuple(turn)
    save_groups(tmp_path / "t.parquet", [told.group], tmp_path / "pictures")
    (kept,) = load_groups(tmp_path / "t.parquet")
    assert (kept.rollouts[0].answer, kept.rollouts[0].calls) == (rollout.answer, rollout.calls)
    json.dumps(kept.rollouts[0].answer).encode()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["thinking", "call"])
def test_a_prefix_that_is_cut_inside_a_character_goes_on_with_it(kind: str, where: str) -> None:
    """The engine is asked with the very tokens, and what it adds completes the character."""
    told = Told(kind)
    encode = told.rendering.encode
    text = f"Hm 😀 {call('1')}{END}" if where == "thinking" else f"Hm {call(EMOJI)}{END}"
    first, rest = halves(told.rendering, text)
    rollout = told.play(text, f"42{END}")
    told.given.clear()
    branch = told.group.fork(rollout, len(first))
    path = branch_path(told.group, branch, told.rendering)
    assert (path.call_at is not None) == (where == "call")
    told.turns[:] = [rest, encode(f"42{END}")]
    asked = len(told.engine.requests)
    grown = asyncio.run(told.agent.run(path, "g/c0", seed=1))
    assert told.engine.requests[asked].tokens == (*told.group.prompt.tokens, *first)
    assert (*first, *grown.segments[0].tokens) == rollout.segments[0].tokens
    assert told.given == [1] if where == "thinking" else ["😀"]
    assert grown.reward == 1.0 and grown.calls[0].start == rollout.calls[0].start


def test_a_token_that_ends_the_tag_and_begins_a_character_is_cut_behind() -> None:
    """Where tags are text. What follows the cut completes the character, and the call stays one."""
    told = Told("llama")
    turn = told.rendering.encode(f"Hm <tool_call>“\n</tool_call>{END}")
    rollout = told.play(turn, f"42{END}")
    (made,) = rollout.calls
    assert made.status is CallStatus.MALFORMED and "not JSON" in (made.error or "")
    cut = made.start + 1
    assert told.rendering.decode(turn[:cut]) == "Hm <tool_call>\ufffd"
    path = branch_path(told.group, told.group.fork(rollout, cut), told.rendering)
    assert path.call_at == made.start
    told.turns[:] = [turn[cut:], told.rendering.encode(f"42{END}")]
    grown = asyncio.run(told.agent.run(path, "g/c0", seed=1))
    assert grown.segments[0].tokens == tuple(turn[cut:])
    assert (grown.calls, grown.reward) == ([made], 1.0)


def test_ids_beyond_the_tokenizer_stand_for_nothing() -> None:
    """A model's vocabulary may be padded, and the padding be sampled."""
    for kind in KINDS:
        told = Told(kind)
        encode = told.rendering.encode
        none = len(told.rendering.tokenizer) + 5
        rollout = told.play(
            [none, *encode("So <tool_call>"), none, *encode(call("1")[11:]), *encode(END)],
            [*encode("4"), none, *encode(f"2{END}")],
        )
        assert told.given == [1] and (rollout.answer, rollout.reward) == ("42", 1.0)


# ------------------------------------------------------------------ long questions


@pytest.mark.parametrize("kind", KINDS)
def test_a_question_of_many_tokens_is_sampled_and_trained_as_any(kind: str) -> None:
    """1,600 tokens, prefilled by an engine that takes 512 at once, trained in pieces of 600."""
    checkpoint = bpe_checkpoint(kind)
    writer = Writer(checkpoint, 0)
    asked = replace(writer.request(sizes=()), tokens=writer.words(1600))
    requests = writer.again(asked, 3, max_tokens=8)
    engine = TransformersEngine(checkpoint, 8, max_prefill_tokens=512)
    group = Group("g", Segment("g/prompt", Origin.PROMPT, asked.tokens))
    for request, done in zip(requests, run(ask(engine, requests)), strict=True):
        assert difference(checkpoint, request, done) < 1e-5
        said = Segment(f"{request.id}/t1", Origin.POLICY, done.tokens, done.logprobs)
        group.rollouts.append(Trajectory(request.id, [said]))
        credit_all(group.rollouts[-1], 0, 1.0, 1.0)
    forest, pixels = packed(checkpoint, [group])
    with torch.no_grad():
        whole = policy_logprobs(checkpoint, forest, pixels)
    assert (whole - forest.old).abs().max() < 1e-5
    for some in training_passes(checkpoint, forest, pixels, 1.0, 600):
        assert torch.allclose(some.logprobs, whole[some.trained], rtol=0, atol=1e-5)
        some.backward(some.logprobs.sum())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_longer_than_the_model_s_positions_is_ours_and_named(kind: str) -> None:
    """A question, or a path that grows beyond them: it stays unscored, others go on."""
    checkpoint = repeating(kind, max_position_embeddings=256)
    rendering = Rendering(checkpoint.processor, {})
    agent = Agent(TransformersEngine(checkpoint), rendering, {}, LIMITS, GRADE)

    def play(question: str) -> Trajectory:
        group = new_group(rendering, Example("q", question, (), "42"), "g")
        return asyncio.run(agent.run(start_path(group), "g/r0", seed=0))

    for question in ("How many? " * 100, "How many?"):
        rollout = play(question)
        assert (rollout.stop, rollout.reward) == (StopReason.ENGINE_FAULT, None)
        assert rollout.fault is not None
        assert "the model has 256 positions: leave this question out" in rollout.fault
    assert "256 tokens, and" in rollout.fault
    writer = Writer(checkpoint, 0)
    full = replace(
        writer.request(sizes=()), tokens=writer.words(248), sampling=writer.sampling(8, stop=())
    )
    done = run(agent.engine.generate(full))  # the last position can still be sampled
    assert (len(done.tokens), done.finish) == (8, Finish.LENGTH)
    with pytest.raises(EngineError, match=r"request g/0: 256 tokens, and the model has 256"):
        run(agent.engine.generate(replace(full, sampling=writer.sampling(9, stop=()))))
