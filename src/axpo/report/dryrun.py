"""`axpo show`: what a recipe means, before anything is trained.

Prints the resolved settings, one real prompt and (where the task has one) a demonstration with
the mask that training puts on it, token counts and the sum of memory on the recipe's card. Nothing
is downloaded and no weights are loaded: what is not on this machine is named and left out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from axpo.config import Config, Section, UserError
from axpo.models.loading import Checkpoint
from axpo.models.shapes import find_shapes
from axpo.report.costs import print_costs
from axpo.report.live import output_console
from axpo.report.summary import runs_unsafe
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.rollout.setup import build_task, recipe_tools, torch_device
from axpo.tasks.base import Example, NoDataError, Task
from axpo.tools.python.levels import UNSAFE
from axpo.tools.toolbox import Toolbox
from axpo.training.estimate import Kind
from axpo.training.preflight import assumed_prompt, longest_prompt
from axpo.tree import Group, Origin, Segment

LOOK_AT = 100
STAGES: tuple[Kind, ...] = ("sft", "rl")
"""Those that the recipe has a section of are priced, RL where it has none."""
COLOURS = {Origin.PROMPT: "bright_black", Origin.POLICY: "bold green", Origin.OBSERVATION: "cyan"}


def show(config: Config, model: str) -> None:
    """Print the dry run of `config` with the checkpoint at `model`.

    Raises `UserError` for what is wrong with the recipe, at the end where it cannot fit its card.
    """
    tools, missing = recipe_tools(config), list[str]()
    try:
        task = build_task(config.task)
    except NoDataError as error:
        task = None
        missing.append(f"The data, and so an example and the real prompts' lengths: {error}")
    shapes = find_shapes(model, config.rollout.banned)
    if shapes.checkpoint is None:
        missing.append(f"The model's tokenizer, and so an example: {shapes.missing}")
    console = output_console()
    _print_settings(console, config)
    _print_warnings(console, config)
    priced: tuple[Kind, ...] = tuple(kind for kind in STAGES if kind in config.model_fields_set)
    prompts: dict[Kind, Segment] = {
        kind: assumed_prompt(config, kind, shapes) for kind in priced or STAGES[-1:]
    }
    if task is not None and shapes.checkpoint is not None:
        shown = _show_example(console, config, task, tools, shapes.checkpoint)
        for kind in prompts:
            try:
                rendering = Rendering(shapes.checkpoint, tools, config.task.system)
                prompts[kind] = longest_prompt(config, kind, task, rendering)
            except UserError:  # a data set of demonstrations alone, or without any
                prompts[kind] = shown
    else:
        console.print(Text("\nNot on this machine, and left out:", "bold yellow"))
        for line in missing:
            console.print(Text(f"- {line}", "yellow"), soft_wrap=True)
    for kind, prompt in prompts.items():
        console.print()
        print_costs(console, config, kind, shapes, prompt, torch_device(config.model))


def _show_example(
    console: Console, config: Config, task: Task, tools: Toolbox, checkpoint: Checkpoint
) -> Segment:
    """Print an example as the model is shown it; returns its prompt."""
    rendering = Rendering(checkpoint, tools, config.task.system)
    split, example = _example(task)
    if example.demonstration:
        group = asyncio.run(_demonstrated(rendering, tools, config, example))
    else:
        group = new_group(rendering, example, "example")
    _print_group(console, rendering, group, split)
    truths = ", ".join(repr(truth) for truth in (example.answer, *example.alternatives))
    console.print(Text(f"Right: {truths}, graded by {example.grading!r} ({example.id})"))
    return group.prompt


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
            table.add_row(Text(key), Text(str(value), "bold" if changed else ""), text)
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
