"""`axpo show`: what a recipe means, before anything is trained.

Prints the settings that differ from the defaults, one real prompt and (where the task has one) a
demonstration with the mask that training puts on it, token counts and the sum of memory on the
recipe's card. Nothing is downloaded and no weights are loaded: what is not on this machine is named
with how to get it, and left out.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

from axpo.build.preflight import longest_prompt
from axpo.build.tools import recipe_tools
from axpo.checks import missing_packages
from axpo.config import Config
from axpo.contamination.find import remembered
from axpo.costs.sizes import Kind, Loop, assumed_prompt
from axpo.errors import DemonstrationError, MissingError, UserError
from axpo.models.device import torch_device
from axpo.models.paths import show_path
from axpo.models.shapes import Shapes, find_shapes
from axpo.report.contaminated import print_count
from axpo.report.costs import print_costs
from axpo.report.fits import print_fits
from axpo.report.live import output_console
from axpo.report.monitor import working
from axpo.report.settings import print_settings
from axpo.report.summary import runs_unsafe
from axpo.rollout.demonstrations import demonstrate
from axpo.rollout.episodes import episodes
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.sandbox.levels import UNSAFE, lack
from axpo.search.tavily import KEY
from axpo.tasks.base import Example, Task
from axpo.tasks.data.task import DataTask
from axpo.tasks.grading import JUDGED, Graders
from axpo.tasks.grading.final import final_answer
from axpo.tools.python import NAME as PYTHON
from axpo.tools.toolbox import Toolbox
from axpo.tree import Group, Origin, Segment, collapse

LOOK_AT = 100
STAGES: tuple[Kind, ...] = ("sft", "rl")
"""Those that the recipe has a section of are priced, RL where it has none."""
COMMANDS: dict[Kind, str] = {"sft": "sft", "rl": "train"}
SPLITS: dict[Kind, str] = {"sft": "sft", "rl": "train"}
COLOURS = {
    Origin.PROMPT: "bright_black", Origin.POLICY: "bold green", Origin.OBSERVATION: "cyan",
    Origin.ENVIRONMENT: "blue",
}  # fmt: skip


def show(config: Config, given: Sequence[str], everything: bool = False) -> None:
    """Print the dry run of `config`, which was read from `given`; with `everything` all of its
    settings.

    Raises `UserError` for what is wrong with the recipe, at the end where it cannot fit its card.
    """
    missing: list[str] = []
    console, task, tools, device = output_console(), None, None, "cpu"
    with _noted(missing, "The data, and so an example and the real prompts' lengths"):
        config.task.check()
        task = config.task
    missing += _tools_lack(config)
    with _noted(missing, "Tools, and so a rendered example"):
        tools = recipe_tools(config)
    shapes = find_shapes(show_path(config.model.path), config.rollout.banned)
    if shapes.processor is None:
        missing.append(f"The model's tokenizer, and so a rendered example: {shapes.missing}")
    priced: list[Kind] = [k for k in STAGES if k in config.model_fields_set] or [STAGES[-1]]
    missing += missing_packages(config, {COMMANDS[kind] for kind in priced})
    with _noted(missing, "The device"):
        device = torch_device(config.model)
    print_settings(console, config, everything)
    if runs_unsafe(config.model_dump()):
        console.print(Text(f"\n{UNSAFE}", "bold red"))
    prompts = _print_example(console, config, task, tools, shapes, priced, missing)
    with _noted(missing, "What rows are compared with (task.against)"):
        _print_contaminated(console, task, priced)
    if missing:
        console.print(Text("\nNot on this machine:", "bold yellow"))
    for line in missing:
        console.print(Text(f"- {line}", "yellow"), soft_wrap=True)
    started = config.engine.longest_path is not None
    if "rl" in prompts and config.model.memory_gb is not None and started:
        console.print()
        print_fits(console, config, given, shapes.model, prompts["rl"], device)
    for kind, prompt in prompts.items():
        console.print()
        print_costs(console, Loop(config, kind, shapes.model), prompt, device)


@contextmanager
def _noted(missing: list[str], what: str) -> Iterator[None]:
    """Adds `what` to what is missing where the block finds that it is, and how to get it."""
    try:
        yield
    except MissingError as error:
        missing.append(f"{what}: {error}")


def _tools_lack(config: Config) -> Iterator[str]:
    """What the tools and the judge need to run."""
    reason = lack(config.tools.python.level) if PYTHON in config.rollout.tools else None
    if reason is not None:
        yield f"A sandbox for the tool {PYTHON!r}: {reason}"
    if config.tools.search.backend == "tavily" and KEY not in os.environ:
        yield f"The search tool's key: export {KEY}=... (https://tavily.com)"
    if config.judge is not None and config.judge.key and config.judge.key not in os.environ:
        yield f"The judge's key: export {config.judge.key}=..."


def _print_example(
    console: Console, config: Config, task: Task | None, tools: Toolbox | None, shapes: Shapes,
    priced: list[Kind], missing: list[str],
) -> dict[Kind, Segment]:  # fmt: skip
    """Print an example as far as it can be shown; returns the prompt that each stage is priced
    with."""
    prompts: dict[Kind, Segment] = {
        kind: assumed_prompt(Loop(config, kind, shapes.model)) for kind in priced
    }
    if task is None:
        return prompts
    if tools is None or shapes.processor is None:
        _print_row(console, task)
        return prompts
    rendering = Rendering(shapes.processor, tools, config.task.system)
    shown = _show_example(console, config, task, rendering, missing)
    for kind in prompts:
        try:
            prompts[kind] = longest_prompt(config, kind, task, rendering)
        except UserError:  # a data set of demonstrations alone, or without any
            prompts[kind] = shown
    return prompts


def _print_row(console: Console, task: Task) -> None:
    """An example as the data has it."""
    split, example = _example(task)
    console.print(f"\n[bold]An example of {split!r}[/bold], as the data has it")
    sizes = ", ".join(f"{image.width} x {image.height}" for image in example.images)
    console.print(Text(example.question, COLOURS[Origin.PROMPT]), soft_wrap=True)
    for turn in example.demonstration:
        console.print(Text(turn, COLOURS[Origin.POLICY]), soft_wrap=True)
    console.print(Text(f"Pictures: {sizes or 'none'}. {_right(example)}"), soft_wrap=True)
    _print_notes(console, task, split)


def _show_example(
    console: Console, config: Config, task: Task, rendering: Rendering, missing: list[str]
) -> Segment:
    """Print an example as the model is shown it; returns its prompt."""
    split, example = _example(task)
    group, said = new_group(rendering, example, "example"), ""
    if example.demonstration:
        try:
            group, said = asyncio.run(_demonstrated(rendering, config, example))
        except DemonstrationError:
            raise
        except UserError as error:  # a tool that does not start
            missing.append(f"What the example's demonstration needs: {error}")
    _print_group(console, rendering, group, split)
    console.print(Text(_right(example)), soft_wrap=True)
    _print_notes(console, task, split)
    if said:
        console.print(Text(said, "yellow"), soft_wrap=True)
    return group.prompt


def _print_notes(console: Console, task: Task, split: str) -> None:
    if notes := task.notes(split):
        console.print(Text(notes), soft_wrap=True)


def _print_contaminated(console: Console, task: Task | None, priced: list[Kind]) -> None:
    """Print how many rows that are trained on are a benchmark's."""
    if not isinstance(task, DataTask) or not task.against:
        return
    for kind in priced:
        with working("show", "comparing rows with benchmarks") as say:
            found = remembered(task, SPLITS[kind], say)
        console.print()
        print_count(console, found)


def _right(example: Example) -> str:
    truths = ", ".join(repr(truth) for truth in (example.answer, *example.alternatives))
    return f"Right: {truths}, graded by {example.grading!r} ({example.id})"


async def _demonstrated(
    rendering: Rendering, config: Config, example: Example
) -> tuple[Group, str]:
    """The demonstration as a tree, and what to say where its answer is wrong."""
    tools, asked = Toolbox.of(rendering.tools), episodes(config.task, rendering)
    try:
        group = await demonstrate(rendering, tools, config.rollout, example, "demonstration", asked)
    finally:
        await tools.close()
    if example.grading in JUDGED:  # asking costs
        return group, ""
    answer = final_answer(group.rollouts[0].answer or "")
    verdict = await Graders().grade(example, group.rollouts[0])
    if verdict.reward >= config.task.solved:
        return group, ""
    return (
        group,
        f"The demonstration answers {answer!r}: {config.task.teacher}, and SFT learns it as it is.",
    )


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


def _print_group(console: Console, rendering: Rendering, group: Group, split: str) -> None:
    trained = "green tokens are trained, grey and blue ones are masked"
    console.print(f"\n[bold]An example of {split!r}[/bold]: {trained}")
    segments: list[Segment] = [group.prompt]
    if group.rollouts:
        segments = group.path(group.rollouts[0])
    text = Text()
    for segment in segments:
        tokens = collapse(segment.tokens, segment.images)
        text.append(rendering.decode(tokens), COLOURS[segment.origin])
    console.print(text, soft_wrap=True)
    counts = ", ".join(f"{s.origin} {len(s)}" for s in segments)
    pictures = sum(i.length for s in segments for i in s.images)
    console.print(f"\nTokens: {counts}; {pictures} of them are picture tokens")
