"""`axpo show`: what a recipe means, before anything is trained.

Prints the resolved settings, one real prompt and (where the task has one) a demonstration with
the mask that training puts on it, token counts and an estimate of memory. No weights are loaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.config import Config, ConfigError, Section, UserError
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.report.live import duration
from axpo.report.summary import runs_unsafe
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.rollout.setup import build_task, recipe_tools, torch_device
from axpo.tasks.base import Example, Task
from axpo.tools.python.levels import UNSAFE
from axpo.tools.toolbox import Toolbox
from axpo.training.operations import (
    DEVICES,
    REFERENCE,
    UTILISATION,
    Operations,
    step_operations,
)
from axpo.training.preflight import (
    Counts,
    check_positions,
    estimate,
    free_memory,
    in_units,
    longest_prompt,
)
from axpo.tree import Group, Origin, Segment

LOOK_AT = 100
COLOURS = {Origin.PROMPT: "bright_black", Origin.POLICY: "bold green", Origin.OBSERVATION: "cyan"}


def show(config: Config, model: str) -> None:
    """Print the dry run of `config` with the checkpoint at `model`."""
    task, tools = build_task(config.task), recipe_tools(config)
    console = Console()
    _print_settings(console, config)
    _print_warnings(console, config)
    checkpoint = load_checkpoint(model, weights=False)
    rendering = Rendering(checkpoint, tools, config.task.system)
    split, example = _example(task)
    if example.demonstration:
        group = asyncio.run(_demonstrated(rendering, tools, config, example))
    else:
        group = new_group(rendering, example, "example")
    _print_group(console, rendering, group, split)
    truths = ", ".join(repr(truth) for truth in (example.answer, *example.alternatives))
    console.print(Text(f"Right: {truths}, graded by {example.grading!r} ({example.id})"))
    try:
        prompt = longest_prompt(config, "rl", task, rendering)
    except UserError:  # a data set of demonstrations alone
        prompt = group.prompt
    _print_costs(console, config, checkpoint, prompt)


async def _demonstrated(
    rendering: Rendering, tools: Toolbox, config: Config, example: Example
) -> Group:
    try:
        return await demonstrate(rendering, tools, config.rollout, example, "demonstration")
    finally:
        await tools.close()


def _example(task: Task) -> tuple[str, Example]:
    """A demonstration of several turns if the task has one soon, else its first question."""
    try:
        size = task.size("sft")
    except UserError:  # a data set need not have demonstrations
        size = 0
    for index in range(LOOK_AT if size is None else min(size, LOOK_AT)):
        example = task.example("sft", index)
        if len(example.demonstration) > 1:
            return "sft", example
    return "train", task.example("train", 0)


def _print_settings(console: Console, config: Config) -> None:
    table = Table("setting", "value", "what it is", title="Settings", title_justify="left")
    default = Config()
    for name, section in config:
        for key, value, was, text in _settings(name, section, getattr(default, name)):
            changed = value != was
            table.add_row(key, Text(str(value), "bold" if changed else ""), text)
    console.print(table)


def _print_warnings(console: Console, config: Config) -> None:
    if runs_unsafe(config.model_dump()):
        console.print(Text(f"\n{UNSAFE}", "bold red"))


def _settings(
    path: str, section: Section, default: Section
) -> Iterable[tuple[str, object, object, str]]:
    for key, field in type(section).model_fields.items():
        value, was = getattr(section, key), getattr(default, key)
        if isinstance(value, Section):
            was = was or type(value).model_construct()  # a section that is absent by default
            yield from _settings(f"{path}.{key}", value, was)
        else:
            yield f"{path}.{key}", value, was, field.description or ""


def _print_group(console: Console, rendering: Rendering, group: Group, split: str) -> None:
    trained = "green tokens are trained, grey and blue ones are masked"
    console.print(f"\n[bold]An example of {split!r}[/bold]: {trained}")
    segments: list[Segment] = [group.prompt]
    if group.rollouts:
        segments = group.path(group.rollouts[0])
    text = Text()
    for segment in segments:
        text.append(rendering.decode(_folded(segment, rendering)), COLOURS[segment.origin])
    console.print(text, soft_wrap=True)
    counts = ", ".join(f"{s.origin} {len(s)}" for s in segments)
    pictures = sum(i.length for s in segments for i in s.images)
    console.print(f"\nTokens: {counts}; {pictures} of them are picture tokens")


def _folded(segment: Segment, rendering: Rendering) -> list[int]:
    """The segment's tokens with each picture's placeholders shown as one."""
    tokens, done = [], 0
    for span in segment.images:
        tokens += segment.tokens[done : span.start + 1]
        done = span.start + span.length
    return [*tokens, *segment.tokens[done:]]


def _print_costs(console: Console, config: Config, checkpoint: Checkpoint, prompt: Segment) -> None:
    table = Table("what", "estimate", title="Costs of an RL step", title_justify="left")
    for name, value in costs(config, checkpoint, prompt, torch_device(config.model)).items():
        table.add_row(name, value)
    console.print(table)


def costs(config: Config, checkpoint: Checkpoint, prompt: Segment, device: str) -> dict[str, str]:
    """Upper bounds of an RL step from sizes alone, and what this machine makes of them.

    The largest tree is `prompt` once, N rollouts and every continuation that one question could
    get, each at its token limit.
    """
    found = estimate(config, "rl", checkpoint, prompt, device.startswith("cuda"))
    sizes, algorithm = found.sizes, config.algorithm
    rollouts = config.rl.questions * algorithm.rollouts
    samples = f"{rollouts} rollouts"
    if algorithm.name == "axpo":
        samples += f" + at most {sizes.rows - rollouts} continuations"
    elif algorithm.name == "rltf":
        samples += f" + {sizes.rows - rollouts} second attempts"
    verdict = found.verdict
    try:
        check_positions(config, "rl", checkpoint, prompt)
    except ConfigError as error:
        verdict = f"refused: {error}"
    free = free_memory(device)
    other = "without" if config.model.gradient_checkpointing else "with"
    memory = in_units(found.total)
    if free is not None:
        memory += f" of {in_units(free)} free" + (": may not fit" if found.total > free else "")
    return {
        **_parameters(found.counts),
        "samples a step": samples,
        "longest prompt seen": f"{sizes.prompt} tokens, {sizes.pictures} of them pictures",
        "longest possible path": f"{sizes.path:,} tokens",
        "largest possible tree": f"{sizes.tree:,} tokens",
        "max_tokens_per_micro_batch": f"{found.budget:,}: {verdict}",
        **{name: in_units(size) for name, size in found.parts.items() if size},
        f"activations of {found.pass_tokens:,} tokens": in_units(found.activations),
        "their logits": in_units(found.logits),
        "activations of pictures": in_units(found.pictures),
        f"both {other} gradient checkpointing": in_units(found.otherwise),
        "KV cache of the engine": in_units(found.kv),
        "memory at most": memory,
        **_work(step_operations(config, "rl", checkpoint, found), device),
    }


def _parameters(counts: Counts) -> dict[str, str]:
    millions = {
        "parameters": counts.text + counts.vision,
        "text model": counts.text,
        "vision tower": counts.vision,
        "trained": counts.trained,
    }
    return {name: f"{count / 1e6:,.1f} M" for name, count in millions.items()}


def _work(work: Operations, device: str) -> dict[str, str]:
    """Operations and times on this GPU, on an H100 where there is none that is known."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    known = next((d for d in DEVICES if d.name in name), REFERENCE)
    sampling, training = work.seconds(known)
    where = f"on one {known.name} at {UTILISATION:.0%}"
    return {
        "sampling, all at their limits": f"{work.sampling / 1e12:,.3g} TFLOP, "
        f"{in_units(work.read)} read: {duration(sampling)} {where} of its peaks",
        "training on it": f"{work.training / 1e12:,.3g} TFLOP: {duration(training)} {where}",
    }
