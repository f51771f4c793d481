"""What the rollout and whole-step benchmarks compare is the same work: parity, never time."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from axpo.engines.base import Picture, Request, Sampling
from axpo.engines.transformers import TransformersEngine
from axpo.models.loading import Checkpoint
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Example
from axpo.tools import make_tools
from axpo.tools.base import Observation, View
from axpo.tools.zoom import crop
from axpo.tree import Group, Origin, StopReason, Trajectory
from benchmarks import rollouts, trl_side, whole_step
from benchmarks.chain import (
    BOXES,
    CALL_TOKENS,
    CROP_TOKENS,
    THINKING,
    chain_checkpoint,
    chain_examples,
    transitions,
)
from benchmarks.models import cold
from benchmarks.rollouts import Case, GenerateEngine, sample, work
from benchmarks.trl_side import Limits, Rollouts

CASE = Case(image_tokens=64, tool_turns=2, questions=2, rollouts=2)


@cache
def checkpoint() -> Checkpoint:
    return chain_checkpoint()


@cache
def examples() -> list[Example]:
    return chain_examples(CASE.questions, CASE.image_tokens)


@cache
def our_groups() -> list[Group]:
    torch.manual_seed(0)  # `sample` draws its seed from it
    return sample(checkpoint(), TransformersEngine(checkpoint()), CASE, examples())


def leaves() -> list[tuple[Group, Trajectory]]:
    return [(group, rollout) for group in our_groups() for rollout in group.rollouts]


def turns(trajectory: Trajectory) -> list[tuple[int, ...]]:
    return [s.tokens for s in trajectory.segments if s.origin is Origin.POLICY]


def check_turn(turn: list[int] | tuple[int, ...]) -> None:
    """`turn` is a walk of the chain from where the prompt leaves it, of a length it allows."""
    tokenizer = checkpoint().processor.tokenizer
    chain = transitions(tokenizer)
    low, high = THINKING
    assert low + CALL_TOKENS <= len(turn) <= high + CALL_TOKENS
    before = tokenizer.encode("<think>\n", add_special_tokens=False)[-1]
    for token in turn:
        assert token in chain[before], tokenizer.decode([before, token])
        before = token
    assert before == tokenizer.eos_token_id


def whole(group: Group, trajectory: Trajectory) -> Request:
    """The whole path of a rollout as one request."""
    segments = [group.prompt, *trajectory.segments]
    tokens = tuple(token for segment in segments for token in segment.tokens)
    digests = [span.digest for segment in segments for span in segment.images]
    pictures = tuple(Picture(digest, group.pictures[digest]) for digest in digests)
    sampling = Sampling(1, 0, checkpoint().processor.stop, checkpoint().processor.banned)
    return Request(trajectory.id, group.id, tokens, pictures, sampling)


@torch.inference_mode()
def forced(engine: GenerateEngine, requests: list[Request]) -> list[torch.Tensor]:
    """Logprobs [tokens - 1] of each request's tokens but the first, all rows in one pass."""
    inputs = engine.inputs(requests)
    logits = checkpoint().model(**inputs).logits
    logits[:, :, list(checkpoint().processor.banned)] = float("-inf")
    logprobs = logits[:, :-1].log_softmax(-1)
    found = logprobs.gather(2, inputs["input_ids"][:, 1:, None])[:, :, 0]
    return [row[-(len(r.tokens) - 1) :] for row, r in zip(found, requests, strict=True)]


def difference(engine: GenerateEngine, requests: list[Request]) -> float:
    """Largest difference of our engine's logprobs and those of the baseline's pass."""
    worst = 0.0
    for (group, rollout), row in zip(leaves(), forced(engine, requests), strict=True):
        at = len(group.prompt) - 1
        for segment in rollout.segments:
            if segment.origin is Origin.POLICY:
                ours = torch.tensor(segment.logprobs)
                worst = max(worst, (ours - row[at : at + len(segment)]).abs().max().item())
            at += len(segment)
    return worst


class TestChain:
    def test_rollouts_walk_the_chain(self) -> None:
        for _, rollout in leaves():
            assert len(turns(rollout)) == CASE.tool_turns + 1
            assert rollout.stop is StopReason.MAX_TURNS
            for turn in turns(rollout):
                check_turn(turn)

    def test_turns_are_ragged_and_crops_differ(self) -> None:
        assert len({len(turn) for _, rollout in leaves() for turn in turns(rollout)}) > 1
        assert len({digest for group in our_groups() for digest in group.pictures}) > 2

    @pytest.mark.parametrize("image_tokens", [64, 256, 1024])
    def test_pictures_and_crops_take_their_tokens(self, image_tokens: int) -> None:
        (example,) = chain_examples(1, image_tokens)
        (picture,) = example.images
        crops = [crop(View.whole(picture), json.loads(f"[{box}")).image for box in BOXES]
        cache = cold(checkpoint()).processor.pixels
        found = [cache(str(i), image) for i, image in enumerate([picture, *crops])]
        tokens = [pixels.tokens(checkpoint().processor.merge_size) for pixels in found]
        assert tokens == [image_tokens] + [CROP_TOKENS] * len(BOXES)


class TestVisionCached:
    def test_same_turns_and_calls(self) -> None:
        engine = GenerateEngine(checkpoint(), CASE.questions * CASE.rollouts)
        groups = sample(checkpoint(), engine, CASE, examples())
        for group in groups:
            for rollout in group.rollouts:
                for turn in turns(rollout):
                    check_turn(turn)
        ours, theirs = work(our_groups()), work(groups)
        assert (ours["turns"], ours["calls"]) == (theirs["turns"], theirs["calls"]) == (12, 8)
        assert engine.calls == CASE.tool_turns + 1

    def test_our_logprobs_are_its_own(self) -> None:
        requests = [whole(group, rollout) for group, rollout in leaves()]
        engine = GenerateEngine(checkpoint(), len(requests))
        # Logits of 30 stand 2e-6 apart in float32, and each pass rounds its own way.
        assert difference(engine, requests) < 2e-5
        # Another question's picture in the first one's place is seen in the numbers.
        first = requests[0]
        wrong = requests[-1].pictures[0]
        assert wrong.digest != first.pictures[0].digest
        requests[0] = replace(first, pictures=(wrong, *first.pictures[1:]))
        assert difference(engine, requests) > 1e-3

    def test_generate_uses_features_and_positions(self) -> None:
        requests = [whole(group, rollout) for group, rollout in leaves()]
        engine = GenerateEngine(checkpoint(), len(requests))
        model = checkpoint().model
        with torch.inference_mode():
            expected = model(**engine.inputs(requests)).logits[:, -1]
            out = model.generate(
                **engine.inputs(requests),
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        assert (out.logits[0] - expected).abs().max() < 1e-4
        assert (expected - expected.roll(1, 0)).abs().max() > 1e-3

    def test_pictures_are_encoded_once(self) -> None:
        engine = GenerateEngine(checkpoint(), 1)
        requests = [whole(group, rollout) for group, rollout in leaves()]
        features = [engine.inputs([r])["mm_encoder_outputs"]["image"] for r in requests[:2]]
        first, second = (f.pooler_output[0] for f in features)
        assert first is second


class TestRows:
    def test_a_missing_trl_is_said_and_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (rollouts, whole_step):
            monkeypatch.setattr(module, "missing", lambda: "trl is not installed: ...")
        skipped, row = json.loads(json.dumps(rollouts.run(quick=True)))
        assert skipped == {
            "benchmark": "rollouts", "against": "trl", "skipped": "trl is not installed: ...",
        }  # fmt: skip
        assert row["against"] == "generate, vision cached"
        assert row["ours"]["turns"] == row["theirs"]["turns"] == 8
        assert row["ratio_cpu"]["median"] > 0
        assert set(whole_step.run(quick=True)[0]) == {"benchmark", "against", "skipped"}


@cache
def trl_rollouts() -> Rollouts:
    pytest.importorskip("trl")
    rows = CASE.questions * CASE.rollouts
    limits = Limits(CASE.questions, CASE.rollouts, 4096, CASE.tool_turns, micro_batch=rows)
    trainer = trl_side.make_trainer(checkpoint(), examples(), limits)
    return trl_side.generate(trainer, examples(), CASE.rollouts)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that keeps the whole step's start, which is made once."""
    return tmp_path_factory.mktemp("start")


class TestTRL:
    def test_prompts_are_ours(self) -> None:
        ours = [list(group.prompt.tokens) for group in our_groups() for _ in group.rollouts]
        assert trl_rollouts().prompts == ours

    def test_same_turns_and_calls(self) -> None:
        theirs, ours = trl_rollouts().work(), work(our_groups())
        assert all(theirs[key] == ours[key] for key in ("samples", "turns", "calls"))

    def test_same_wire_format(self) -> None:
        """Sampled runs walk the chain; what stands between them is our observation."""
        rendering = Rendering(checkpoint().processor, make_tools(["image_zoom_in_tool"]))
        theirs = trl_rollouts()
        for i, (ids, mask) in enumerate(zip(theirs.completions, theirs.sampled, strict=True)):
            view = View.whole(examples()[i // CASE.rollouts].images[0])
            runs = split(ids, mask)
            assert [sampled for sampled, _ in runs] == [True, False, True, False, True]
            for _, turn in runs[0::2]:
                check_turn(turn)
            for (_, turn), (_, shown) in zip(runs[0:-1:2], runs[1::2], strict=True):
                (call,) = rendering.parse(turn).calls
                seen = Observation(views=(crop(view, call.arguments["bbox_2d"]),))
                segment, _ = rendering.observation(turn, [seen], "o")
                assert tuple(shown) == segment.tokens

    def test_whole_step(self, started: Path) -> None:
        pytest.importorskip("trl")
        (row,) = whole_step.run(quick=True, folder=started)
        assert row["ours"]["samples"] == row["theirs"]["samples"] == 16
        assert json.dumps(row)

    def test_whole_step_prompts_are_ours(self, started: Path) -> None:
        pytest.importorskip("trl")
        ours, theirs = whole_step.prompts(whole_step.start_checkpoint(2, started))
        assert ours == theirs
        assert len(ours[0]) > 20


def split(ids: list[int], mask: list[int]) -> list[tuple[bool, list[int]]]:
    """Runs of equal mask, in order."""
    runs: list[tuple[bool, list[int]]] = []
    for token, sampled in zip(ids, mask, strict=True):
        if not runs or runs[-1][0] != bool(sampled):
            runs.append((bool(sampled), []))
        runs[-1][1].append(token)
    return runs
