"""Before any weights are loaded: whether a recipe can work, and whether its card holds it.

What it can come to is `axpo.costs`', its card `axpo.models.card`'s. Refused are paths beyond the
model's positions or the servers' limit, servers that cannot serve it, and what cannot fit whatever
is sampled. Upper bounds above the card's memory are a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from axpo.config import Config, RolloutSettings
from axpo.costs.account import Account, account, fitting_budget, judge_share
from axpo.costs.sizes import Kind, Loop, check_positions, crowded
from axpo.engines.vllm.judge import SECTION
from axpo.engines.vllm.process import find_installation
from axpo.errors import ConfigError, CrowdedWarning, MemoryWarning
from axpo.models.card import recipe_card
from axpo.models.device import torch_device
from axpo.models.loading import load_processor, read_config
from axpo.models.shapes import without_weights
from axpo.rollout.demonstrations import check_demonstration
from axpo.rollout.rendering import Rendering
from axpo.tasks.base import Task
from axpo.tools.base import Tool
from axpo.training.data import training_example
from axpo.tree import Segment
from axpo.wording import in_units

PROMPTS = 4
"""Training examples whose prompts are rendered; the longest stands for all."""
DEMONSTRATIONS = 16
"""Demonstrations of the first batch that are looked at."""


def longest_prompt(config: Config, kind: Kind, task: Task, rendering: Rendering) -> Segment:
    """The longest prompt of the first training examples."""
    split = "sft" if kind == "sft" else "train"
    size = task.size(split)
    count = PROMPTS if size is None else min(PROMPTS, size)
    examples = (training_example(task, split, i, config.run.seed) for i in range(count))
    return max((rendering.prompt(example, "prompt")[0] for example in examples), key=len)


def preflight(
    config: Config, kind: Kind, path: str | Path, task: Task, tools: Mapping[str, Tool]
) -> None:
    """Check the recipe against the checkpoint at `path` and its card; loads no weights.

    Raises `ConfigError` for what cannot work; warns (`MemoryWarning`) of what may not fit.
    """
    device = torch_device(config.model)
    processor = load_processor(path, banned=config.rollout.banned)
    if config.model.lora is not None and config.model.lora.vision and not processor.family.sees:
        raise ConfigError(
            f"model.lora.vision: the model at {path} has no vision part; take the setting out"
        )
    rendering = Rendering(processor, tools, config.task.system)
    prompt = longest_prompt(config, kind, task, rendering)
    if kind == "sft":
        for position in range(min(config.sft.batch, DEMONSTRATIONS)):
            example = training_example(task, "sft", position, config.run.seed)
            check_demonstration(rendering, config.rollout, example)
    loop = Loop(config, kind, without_weights(processor.config))
    check_positions(loop, prompt)
    if text := crowded(loop):
        warnings.warn(text, CrowdedWarning, stacklevel=2)
    if kind == "rl":
        config.engine.check(processor.config, config.model.dtype, device)
        _check_judge(config)
    told = account(loop, prompt, device)
    if told.refusal:
        raise ConfigError(told.refusal)
    _warn(told, prompt, device)


def _warn(told: Account, prompt: Segment, device: str) -> None:
    """Warn of what need not come true, and of another card than the recipe's."""
    card, found, kind = told.card, told.found, told.loop.kind
    if told.exceeds:
        beside = f", {in_units(told.taken)} of it by servers" if told.taken else ""
        fits = fitting_budget(told, prompt)
        budget = "no smaller one fits by itself" if fits is None else f"{fits} would fit"
        warnings.warn(
            f"up to {in_units(told.total)} may be needed{beside}; there are {card.what} "
            f"(axpo show lists what takes it). {kind}.optimizer.max_tokens_per_micro_batch = "
            f"{found.budget} bounds activations ({budget}), rollout.max_turn_tokens and "
            "rollout.max_tokens the trunk of a tree in pieces, engine.slots the KV cache of this "
            "process.",
            MemoryWarning,
            stacklevel=3,
        )
    if card.named and device.startswith("cuda") and card.memory is not None:
        free, _ = torch.cuda.mem_get_info(device)
        if free < card.memory:
            warnings.warn(
                f"the recipe is for a card of {card.what}, {in_units(free)} are free on {device}",
                MemoryWarning,
                stacklevel=3,
            )


def check_sampling(config: Config, path: str | Path) -> None:
    """Before the checkpoint at `path` is measured: whether its weights, where they are loaded, fit
    beside the servers that sample, and whether these hold a rollout. Raises `ConfigError`."""
    _check_judge(config)
    longest, after = config.engine.longest_path, config.rollout.max_tokens
    if longest is not None and longest <= after:
        raise ConfigError(
            f"engine.max_length: {longest} tokens, but rollout.max_tokens = {after} come after a "
            "prompt: set it to at least the sum of both, or lower rollout.max_tokens"
        )
    if config.cluster is not None:
        return  # Each server has the cards of its place alone.
    device = torch_device(config.model)
    card = recipe_card(config.model, device)
    model = without_weights(read_config(path))
    servers = config.engine.taken(model, config.model.dtype, card, device)
    taken = judge_share(config, card) + (servers.taken if servers else 0)
    if not taken or card.memory is None:
        return
    size = getattr(torch, config.model.dtype).itemsize
    weights = size * sum(p.numel() for p in model.parameters()) if config.loads else 0
    if weights > card.memory - taken:
        raise ConfigError(
            f"engine.arguments, judge.vllm: servers take {in_units(taken)}, this process "
            f"{in_units(weights)} for the model that samples or that servers are compared with; "
            f"there are {card.what}: lower --gpu-memory-utilization or judge.vllm.share"
        )


def _check_judge(config: Config) -> None:
    """Raise `ConfigError` where the server that the judge needs could not be started."""
    server = config.judge.vllm if config.judge else None
    if server is not None:
        find_installation(server.python, SECTION)


def check_policy_sampling(rollout: RolloutSettings) -> None:
    """Raise `ConfigError` where rollouts would not be draws from the policy that is trained."""
    if rollout.temperature == 0:
        raise ConfigError("rollout.temperature: greedy rollouts are all alike; RL needs it above 0")
    if rollout.top_p < 1 or rollout.top_k > 0:
        raise ConfigError(
            f"rollout.top_p = {rollout.top_p}, rollout.top_k = {rollout.top_k}: truncated sampling "
            "biases the ratio of the loss; RL needs top_p = 1 and top_k = 0"
        )
    if rollout.presence_penalty:
        raise ConfigError(
            f"rollout.presence_penalty = {rollout.presence_penalty}: the loss's probabilities know "
            "no penalty; RL needs 0"
        )
