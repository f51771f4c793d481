"""Tool-using rollouts: our engine against TRL, and against `generate` with cached vision features.

Owns the cases and our two sides; TRL's is in `trl_side`. Every side samples the same questions
with the same model (`chain`), 8 rollouts each, all at once, from cold: what an engine or a
preprocessor keeps is dropped before a run, as it is when a training step has changed the weights.
Draws differ, so work is equal in distribution and ratios are of seconds a sampled token.

`GenerateEngine` is an engine that keeps nothing but features: it runs below the same agent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from transformers import GenerationConfig

from axpo.config import RolloutSettings
from axpo.engines.base import Completion, Engine, Finish, Request
from axpo.engines.transformers import TransformersEngine
from axpo.models.families.qwen3_vl import encoder_outputs
from axpo.models.loading import Checkpoint
from axpo.models.vision import Features, encode_pictures
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group, sample_group
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders
from axpo.tools import make_tools
from axpo.tree import CallStatus, Group, Origin
from benchmarks.chain import chain_checkpoint, chain_examples
from benchmarks.harness import Side, Timing, interleave, ratio
from benchmarks.models import cold
from benchmarks.trl_side import missing, trl_rollouts

OURS, CACHED, TRL = "axpo", "generate, vision cached", "trl"
MAX_TOKENS = 4096
"""Tokens after the prompt; never reached."""


def calling_turns(tool_turns: int, max_tokens: int) -> RolloutSettings:
    """Every turn calls, and the last turn's call is not run."""
    return RolloutSettings(
        max_turns=tool_turns + 1,
        max_turn_tokens=max_tokens,
        max_tokens=max_tokens,
        max_seconds=3600,
    )


@dataclass(frozen=True, slots=True)
class Case:
    """`questions` pictures of `image_tokens`, `rollouts` of each with `tool_turns` calls run."""

    image_tokens: int
    tool_turns: int
    questions: int = 8
    rollouts: int = 8
    rounds: int = 3

    def settings(self) -> RolloutSettings:
        return calling_turns(self.tool_turns, MAX_TOKENS)


TINY = Case(64, 1, questions=2, rollouts=2, rounds=1)
CASES = (
    *(Case(64, turns) for turns in (0, 1, 2)),
    *(Case(256, turns) for turns in (0, 1, 2)),
    *(Case(1024, turns, questions=2, rounds=2) for turns in (0, 1, 2)),
)
"""Fewer rows of large pictures: the baselines need minutes for them."""


class GenerateEngine:
    """An engine on `model.generate`: one call per turn over all `rows`, from the first token on.

    Rows are left-padded to the longest. Each distinct picture goes through the vision tower
    once. It serves when a request of every row waits, samples from torch's own generator and
    reports no logprobs (zeros): `generate` would have to keep every step's logits for them.
    """

    version = 0

    def __init__(self, checkpoint: Checkpoint, rows: int) -> None:
        self._model, self._processor = checkpoint.model, checkpoint.processor
        self._rows = rows
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._features: dict[str, Features] = {}
        self.calls = 0

    async def generate(self, request: Request) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if len(self._waiting) == self._rows:
            batch, self._waiting = self._waiting, []
            with torch.inference_mode():
                completions = self._serve([request for request, _ in batch])
            for (_, waiter), completion in zip(batch, completions, strict=True):
                waiter.set_result(completion)
        return await future

    def _serve(self, requests: Sequence[Request]) -> list[Completion]:
        self.calls += 1
        inputs = self.inputs(requests)
        sampling = requests[0].sampling
        config = GenerationConfig(
            max_new_tokens=max(request.sampling.max_tokens for request in requests),
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            suppress_tokens=list(sampling.banned),
            eos_token_id=list(sampling.stop),
            pad_token_id=self._processor.tokenizer.pad_token_id,
        )
        out = self._model.generate(**inputs, generation_config=config)
        sampled = out[:, inputs["input_ids"].shape[1] :].tolist()
        return [
            self._completion(row[: request.sampling.max_tokens], sampling.stop)
            for row, request in zip(sampled, requests, strict=True)
        ]

    def inputs(self, requests: Sequence[Request]) -> dict[str, Any]:
        """What model and `generate` take for these rows, features instead of pixels."""
        image = self._processor.image_token
        longest = max(len(request.tokens) for request in requests)
        tokens = torch.full((len(requests), longest), self._processor.tokenizer.pad_token_id)
        mask = torch.zeros_like(tokens)
        for row, request in enumerate(requests):
            tokens[row, longest - len(request.tokens) :] = torch.tensor(request.tokens)
            mask[row, longest - len(request.tokens) :] = 1
        pictures = [picture for request in requests for picture in request.pictures]
        pixels = {p.digest: self._processor.pixels(p.digest, p.image) for p in pictures}
        new = [digest for digest in pixels if digest not in self._features]
        encoded = encode_pictures(self._model, [pixels[digest] for digest in new])
        self._features.update(zip(new, encoded, strict=True))
        return {
            "input_ids": tokens,
            "attention_mask": mask,
            "mm_token_type_ids": (tokens == image).long(),
            "image_grid_thw": torch.tensor([pixels[p.digest].grid for p in pictures]),
            "mm_encoder_outputs": encoder_outputs([self._features[p.digest] for p in pictures]),
        }

    def _completion(self, row: list[int], stop: Sequence[int]) -> Completion:
        end = next((i + 1 for i, token in enumerate(row) if token in stop), len(row))
        finish = Finish.STOP if row[end - 1] in stop else Finish.LENGTH
        versions = (self.version,) * end
        return Completion(tuple(row[:end]), (0.0,) * end, finish, versions)

    async def release(self, group: str) -> None: ...

    async def load_weights(self, weights: Mapping[str, torch.Tensor], version: int) -> None: ...

    async def close(self) -> None: ...


def sample(
    checkpoint: Checkpoint, engine: Engine, case: Case, examples: Sequence[Example]
) -> list[Group]:
    """A group of rollouts for each example, all concurrently."""
    tools = make_tools(["image_zoom_in_tool"])
    agent = Agent(
        engine, Rendering(checkpoint.processor, tools), tools, case.settings(), Graders().grade
    )
    seed = int(torch.randint(2**31, ()))  # a new one a run: rounds differ

    async def groups() -> list[Group]:
        tasks = (
            sample_group(agent, new_group(agent.rendering, example, f"q{i}"), case.rollouts, seed)
            for i, example in enumerate(examples)
        )
        return await asyncio.gather(*tasks)

    return asyncio.run(groups())


def work(groups: Sequence[Group]) -> dict[str, float]:
    """Rollouts, their mean reward (0 where unscored), tokens sampled, turns, calls run."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    policy = [s for rollout in rollouts for s in rollout.segments if s.origin is Origin.POLICY]
    calls = [call for rollout in rollouts for call in rollout.calls]
    return {
        "samples": float(len(rollouts)),
        "reward": sum(rollout.reward or 0.0 for rollout in rollouts) / len(rollouts),
        "tokens": float(sum(len(segment.tokens) for segment in policy)),
        "turns": float(len(policy)),
        "calls": float(sum(call.status is CallStatus.OK for call in calls)),
    }


def sides(checkpoint: Checkpoint, case: Case, with_trl: bool) -> dict[str, Side]:
    """The case's sides by name; a run of one starts with nothing kept."""
    examples = chain_examples(case.questions, case.image_tokens)

    def ours() -> Mapping[str, float]:
        fresh = cold(checkpoint)
        return work(sample(fresh, TransformersEngine(fresh), case, examples))

    def cached() -> Mapping[str, float]:
        fresh = cold(checkpoint)
        engine = GenerateEngine(fresh, case.questions * case.rollouts)
        return work(sample(fresh, engine, case, examples))

    found: dict[str, Side] = {OURS: ours, CACHED: cached}
    if with_trl:
        found[TRL] = trl_rollouts(checkpoint, examples, case.rollouts, case.tool_turns, MAX_TOKENS)
    return found


def row(case: Case, against: str, ours: Timing, theirs: Timing) -> dict[str, Any]:
    """A comparison as plain data; ratios are theirs over ours of seconds per token."""
    shape = {key: value for key, value in asdict(case).items() if key != "rounds"}
    return {
        "benchmark": "rollouts",
        "case": shape,
        "against": against,
        "ratio_cpu": asdict(ratio(theirs, ours, "cpu", per="tokens")),
        "ratio_wall": asdict(ratio(theirs, ours, "wall", per="tokens")),
        "ours": summary(ours),
        "theirs": summary(theirs),
        "rounds": case.rounds,
    }


def summary(timing: Timing) -> dict[str, float]:
    """Means of a side's rounds, and its tokens per second of CPU time."""
    rounds = len(timing.cpu)
    keys = timing.figures[0]
    means = {key: sum(f[key] for f in timing.figures) / rounds for key in keys}
    cpu, wall = sum(timing.cpu) / rounds, sum(timing.wall) / rounds
    return {"cpu_s": cpu, "wall_s": wall, **means, "tokens_per_s": means["tokens"] / cpu}


def run(quick: bool) -> list[dict[str, Any]]:
    """Every case against every baseline (12-15 minutes); `quick` is one tiny case, one round."""
    checkpoint = chain_checkpoint()
    reason = missing()
    rows: list[dict[str, Any]] = []
    if reason:
        rows.append({"benchmark": "rollouts", "against": TRL, "skipped": reason})
    for case in (TINY,) if quick else CASES:
        small = replace(case, questions=1, rollouts=2)
        interleave(sides(checkpoint, small, not reason), rounds=0, warmup=1)
        timings = interleave(sides(checkpoint, case, not reason), case.rounds, warmup=0)
        for against in timings:
            if against != OURS:
                rows.append(row(case, against, timings[OURS], timings[against]))
    return rows
