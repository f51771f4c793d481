"""What an evaluation while training measures: the first questions of `eval.validation`.

The figures are those of `axpo eval`, without intervals. Questions, samples and seeds are the same
each time, so two evaluations of the same weights are the same (on a GPU up to rounding).
"""

from __future__ import annotations

import asyncio
import math
import warnings
from collections.abc import Sequence
from typing import Any

from axpo.algorithms.subgroups import rewards
from axpo.algorithms.unscored import unscored_figures, unscored_share, unscored_text
from axpo.config import Config
from axpo.errors import UnscoredWarning
from axpo.evaluation.driver import GroupSampler
from axpo.evaluation.summary import measures
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import new_group, together
from axpo.tree import Group


async def measure(agent: Agent, config: Config, step: int) -> dict[str, float]:
    """Figures of the engine's present weights, those after `step` steps.

    At most as many trajectories run at once as a training step has, for which memory was planned.
    Warns (`UnscoredWarning`) where more could not be scored than expected.
    """
    settings, samples = config.eval, config.eval.validation_samples
    at_once = min(config.at_once, config.rl.questions * config.algorithm.rollouts)
    sampler = GroupSampler(agent, samples, config.run.seed, at_once)
    places = asyncio.Semaphore(max(1, at_once // samples))

    async def one(index: int) -> Group:
        async with places:
            example = config.task.example(settings.validation, index)
            return await sampler.grow(new_group(agent.rendering, example, f"validation/{index}"))

    groups = await together([one(index) for index in range(_questions(config))])
    _say_unscored(config, groups, step)
    return figures(groups, settings.k)


def figures(groups: Sequence[Group], k: int) -> dict[str, float]:
    """Pass@1, Pass@k, tool rate and the others of `evaluation.summary.measures` over all questions,
    the mean reward, how many rollouts there were, and what could not be scored; a figure that no
    question has a share in is left out."""
    rows = [measures(group, k) for group in groups]
    found: dict[str, float] = {}
    for name in rows[0]:
        parts, wholes = zip(*(row[name] for row in rows), strict=True)
        if whole := math.fsum(wholes):
            found[name] = math.fsum(parts) / whole
    if known := rewards(r for group in groups for r in group.rollouts):
        found["reward_mean"] = math.fsum(known) / len(known)
    rollouts = float(sum(len(group.rollouts) for group in groups))
    return found | {"rollouts": rollouts} | unscored_figures(groups)


def made_with(config: Config) -> dict[str, Any]:
    """What evaluations must share to be compared, plain JSON; empty without `eval.every`."""
    settings = config.eval
    if not settings.every:
        return {}
    return {
        "eval.validation": settings.validation,
        "eval.validation_samples": settings.validation_samples,
        "eval.k": settings.k,
        "questions": _questions(config),
        "content": config.task.fingerprint(settings.validation),
    }


def _questions(config: Config) -> int:
    size = config.task.size(config.eval.validation)
    wanted = config.eval.validation_questions
    return wanted if size is None else min(size, wanted)


def _say_unscored(config: Config, groups: Sequence[Group], step: int) -> None:
    share, run = unscored_share(groups), config.run
    if share <= run.unscored_warn:
        return
    unused = (
        f". That is more than run.unscored_stop = {run.unscored_stop:g}: this evaluation is not "
        "compared with the others"
    )
    warnings.warn(
        f"validation after step {step}: {unscored_text(groups)}"
        f"{unused if share > run.unscored_stop else ''}",
        UnscoredWarning,
        stacklevel=2,
    )
