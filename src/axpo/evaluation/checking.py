"""Whether an engine outside this process can be measured, before anything is measured."""

from __future__ import annotations

from copy import copy
from functools import partial

from axpo.config import Config
from axpo.engines.base import Picture, Request, Sampling
from axpo.errors import Fault, UserError
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapted_layers
from axpo.rollout.agent import Agent
from axpo.rollout.sampling import new_group
from axpo.training.batches import recompute_logprobs
from axpo.training.parity import QUESTIONS, check_parity, limits_of
from axpo.tree import Group


async def check_engine(
    config: Config, agent: Agent, checkpoint: Checkpoint | None, questions: int
) -> None:
    """Raise `UserError` if an engine outside this process samples from other weights than the
    checkpoint's; without one, if it cannot sample for the first of the `questions`.

    The engine is given the model's adapters first, where there are some.
    """
    if not config.engine.external:
        return
    count = min(QUESTIONS, questions)
    examples = [config.task.example(config.eval.split, i) for i in range(count)]
    groups = [new_group(agent.rendering, e, f"parity/{i}") for i, e in enumerate(examples)]
    if checkpoint is None:
        await _check_alone(agent, groups)
        return
    if adapted_layers(checkpoint.model):
        await agent.engine.load_weights(checkpoint.model.state_dict(), 0)
    logprobs = partial(
        recompute_logprobs,
        checkpoint,
        kl=False,
        temperature=config.rollout.temperature or 1.0,
        budget=config.rl.optimizer.max_tokens_per_micro_batch,
    )
    compared = copy(agent)  # The model's logprobs know no penalty.
    compared.settings = agent.settings.model_copy(update={"presence_penalty": 0.0})
    await check_parity(compared, logprobs, groups, config.run.seed, limits_of(config))


async def _check_alone(agent: Agent, groups: list[Group]) -> None:
    """Raise `UserError` unless each server gives a token after the prompts of these groups."""
    rendering = agent.rendering
    sampling = Sampling(1, 0, rendering.stop, rendering.banned)
    for group in groups:
        pictures = tuple(Picture(*shown) for shown in group.pictures.items())
        request = Request(group.id, group.id, group.prompt.tokens, pictures, sampling)
        try:
            await agent.engine.probe(request)
        except Fault as error:
            raise UserError(f"question {group.example} cannot be sampled: {error}") from error
