"""A group that the engine sampled."""

from __future__ import annotations

import asyncio

from axpo.engines.base import Picture, Request, Sampling
from axpo.engines.transformers import TransformersEngine
from axpo.models.loading import Checkpoint
from axpo.tree import Group, Origin, Segment, Trajectory
from tests.support.padded_oracle import Builder, credit_all


async def rollouts(checkpoint: Checkpoint, seed: int, count: int = 6) -> Group:
    """A group that the engine sampled: a turn, a picture, a turn; nothing is fixed but seeds."""
    build, engine = Builder(checkpoint, seed), TransformersEngine(checkpoint)
    group = build.group(f"g{seed}", [1, 2])

    async def one(i: int) -> Trajectory:
        done = Trajectory(f"r{i}", [])
        for turn in range(2):
            path = [group.prompt, *done.segments]
            pictures = [
                Picture(span.digest, group.pictures[span.digest]) for s in path for span in s.images
            ]
            sampling = Sampling(24, 1000 * seed + 10 * i + turn, (), checkpoint.processor.banned)
            tokens = tuple(t for s in path for t in s.tokens)
            out = await engine.generate(
                Request(done.id, group.id, tokens, tuple(pictures), sampling)
            )
            segment = Segment(f"{done.id}/{2 * turn}", Origin.POLICY, out.tokens, out.logprobs)
            done.segments.append(segment)
            if turn == 0:
                observation = build.shown(f"{done.id}/1", Origin.OBSERVATION, [3 + i], 2)
                done.segments.append(observation)
        credit_all(done, 0, 1.0, 1.0)
        return done

    group.rollouts = list(await asyncio.gather(*(one(i) for i in range(count))))
    return group
