"""Tools beside the decode loop: what 200 ms more in every call cost, and each tool's overhead.

*Waiting.* Trajectories whose every turn calls python, zoom or web_search (all three real: a
sandboxed session each, crops, an FTS5 corpus) run on the in-process engine, once with the tools as
they are and once with `DELAY` awaited on top of each call. Thinking is ragged, so calls come at
all times. Seeds are the same on both sides and no tool's answer depends on time, so both sample
the same tokens (checked): what differs is waiting alone. `idle_s` is the time in which no request
was in the engine, because every trajectory left was in a tool: decoding lost nothing else to
waiting. CPU time and idle time together are what a run takes where no other program has the
processor (`ratio_alone`); wall time holds other programs too.

*Overhead.* A call through the toolbox, one tool at a time, against a call of an `async` function
that does nothing.

The model is `chain`'s with longer thinking; it writes one of `CALLS` in every turn.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from axpo.config import RolloutSettings, SearchSettings, ToolsSettings
from axpo.engines.base import Completion, Request
from axpo.engines.stats import EngineStats
from axpo.engines.transformers import TransformersEngine
from axpo.models.loading import Checkpoint
from axpo.rollout.agent import Agent
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group, sample_group
from axpo.search.index import build_index
from axpo.tasks.base import Example
from axpo.tasks.grading import Graders
from axpo.tools import make_tools, tool
from axpo.tools.base import Observation, Tool, ToolContext, View
from axpo.tools.python import PythonTool
from axpo.tools.runner import run_call
from axpo.tools.toolbox import Toolbox
from axpo.tools.web_search import WebSearchTool
from axpo.tools.zoom import ZoomTool
from axpo.tree import CallStatus, Group
from benchmarks.chain import chain_examples, tick, turn_chain, walker
from benchmarks.harness import Row, Side, Timing, interleave, means, ratio
from benchmarks.models import cold
from benchmarks.rollouts import calling_turns, work
from lab_base.tokenizer import build_tokenizer

DELAY = 0.2
"""Seconds added to every call on the slow side."""
MAX_TOKENS = 8192
"""Tokens after the prompt; never reached."""
SEARCH = ("sampling", "rewards", "trees", "tools", "pictures", "policies")
CODE = ("sum(range(1000))", "import math; math.sqrt(2)", "x = 3 ** 7\\nx", "image_0.size")
ZOOM = ("0, 0, 250, 250", "500, 500, 750, 750", "250, 0, 500, 250", "0, 250, 250, 500")
ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "python": tuple(f'{{"code": "{code}"}}' for code in CODE),
    "image_zoom_in_tool": tuple(
        f'{{"bbox_2d": [{box}], "label": "x", "img_idx": 0}}' for box in ZOOM
    ),
    "web_search": tuple(f'{{"query": "{word} in practice"}}' for word in SEARCH[:4]),
}
"""Arguments of the calls, by tool: as many of each, so each tool is called as often."""
CALLS = tuple(
    f'\n{{"name": "{name}", "arguments": {text}}}\n'
    for name, texts in ARGUMENTS.items()
    for text in texts
)
DOCUMENTS = 2000
"""Documents of the corpus."""


@dataclass(frozen=True, slots=True)
class Case:
    """`questions` x `rollouts` trajectories, all started at once, with `tool_turns` calls each.

    `thinking`: least and most tokens before a call.
    """

    questions: int
    thinking: tuple[int, int]
    rollouts: int = 8
    tool_turns: int = 2
    image_tokens: int = 64
    rounds: int = 5

    def settings(self) -> RolloutSettings:
        return calling_turns(self.tool_turns, MAX_TOKENS)


SHORT, LONG = (16, 48), (48, 160)
TINY = Case(2, SHORT, rollouts=2, tool_turns=1, rounds=1)
CASES = (Case(8, LONG), Case(8, SHORT), Case(16, LONG, rounds=3), Case(16, SHORT))
"""64 trajectories, and the 128 of a step of 16 questions; thinking long and short."""


class Delayed(Tool):
    """`inner` with `seconds` awaited on top of each of its calls; whoever made it starts it."""

    def __init__(self, inner: Tool, seconds: float) -> None:
        self.inner, self.seconds = inner, seconds
        self.name, self.spec, self.timeout = inner.name, inner.spec, inner.timeout

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        observation = await self.inner(arguments, context)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        return observation

    async def end(self, trajectory: str) -> None:
        await self.inner.end(trajectory)


def write_corpus(folder: Path) -> Path:
    """A corpus index of `DOCUMENTS` short texts."""
    source = folder / "corpus.jsonl"
    lines = [
        {"title": f"{SEARCH[i % len(SEARCH)]} {i}", "url": f"doc/{i}",
         "text": " ".join(f"{SEARCH[(i * k) % len(SEARCH)]} word{i % (k + 3)}" for k in range(40))}
        for i in range(DOCUMENTS)
    ]  # fmt: skip
    source.write_text("\n".join(json.dumps(line) for line in lines))
    build_index(source, folder / "corpus.db")
    return folder / "corpus.db"


def real_tools(folder: Path, level: str | None = None) -> dict[str, Tool]:
    """python in its sandbox, zoom, and web_search over a local corpus made in `folder`."""
    index = str(write_corpus(folder))
    settings = ToolsSettings(search=SearchSettings(corpus=index, results=2, snippet=60))
    python = PythonTool(level, packages="current")
    return {python.name: python} | make_tools([ZoomTool.name, WebSearchTool.name], settings)


@tool
async def nothing() -> str:
    """Do nothing."""
    return ""


def calling_checkpoint(tools: Mapping[str, Tool], thinking: tuple[int, int]) -> Checkpoint:
    """A model that thinks for so many tokens and then writes one of `CALLS`, in every turn."""
    tokenizer = build_tokenizer([found.spec for found in tools.values()])
    words = [*(tick(k) for k in range(1, thinking[1] + 1)), *CALLS]
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in words])
    before = ("</think>", "\n\n", "<tool_call>")
    return walker(tokenizer, turn_chain(tokenizer, thinking, before, CALLS, ("</tool_call>",)))


class WatchedEngine(TransformersEngine):
    """Counts the seconds between requests: from the last one's end to the next one's start."""

    idle = 0.0
    _inside = 0
    _since: float | None = None

    async def generate(self, request: Request) -> Completion:
        if not self._inside and self._since is not None:
            self.idle += time.perf_counter() - self._since
        self._inside += 1
        try:
            return await super().generate(request)
        finally:
            self._inside -= 1
            self._since = time.perf_counter()


class Trajectories:
    """A side: a case's trajectories with `delay` seconds more a call; the last run is kept.

    `tools` are started already, and stay so from round to round, as in a training run.
    """

    def __init__(
        self, runner: asyncio.Runner, checkpoint: Checkpoint, tools: Mapping[str, Tool],
        case: Case, delay: float,
    ) -> None:  # fmt: skip
        self.tools = Toolbox({name: Delayed(found, delay) for name, found in tools.items()})
        self.groups: list[Group] = []
        self._runner, self._case = runner, case
        self._checkpoint = checkpoint
        self._examples: list[Example] = chain_examples(case.questions, case.image_tokens)

    def __call__(self) -> Mapping[str, float]:
        return self._runner.run(self._sample())

    async def _sample(self) -> dict[str, float]:
        checkpoint = cold(self._checkpoint)  # pictures are preprocessed anew
        engine = WatchedEngine(checkpoint)
        rendering = Rendering(checkpoint.processor, self.tools)
        agent = Agent(engine, rendering, self.tools, self._case.settings(), Graders().grade)
        began = time.perf_counter()
        tasks = (
            sample_group(agent, new_group(rendering, example, f"q{i}"), self._case.rollouts, 1)
            for i, example in enumerate(self._examples)
        )
        self.groups = list(await asyncio.gather(*tasks))
        seconds = time.perf_counter() - began
        await engine.close()
        return work(self.groups) | loop_figures(engine.stats, seconds) | {
            "idle_s": engine.idle,
            "seconds_a_call": agent.stats.seconds_tools / self.calls(),
        }  # fmt: skip

    def calls(self) -> int:
        """Calls that were run."""
        return self._case.questions * self._case.rollouts * self._case.tool_turns


def loop_figures(stats: EngineStats, seconds: float) -> dict[str, float]:
    """What the engine's loop did in `seconds`: `busy` is the share in which it computed."""
    engine = stats.seconds_vision + stats.seconds_prefill + stats.seconds_decode
    return {
        "decoded_per_s": stats.decoded / seconds,
        "rows_per_step": stats.decoded / stats.decode_calls,
        "prefill_calls": float(stats.prefill_calls),
        "busy": engine / seconds,
    }


def sampled(groups: list[Group]) -> list[tuple[int, ...]]:
    """Every trajectory's tokens after the prompt."""
    return [
        tuple(token for segment in rollout.segments for token in segment.tokens)
        for group in groups
        for rollout in group.rollouts
    ]


def waiting(runner: asyncio.Runner, tools: Mapping[str, Tool], case: Case) -> Row:
    """The slow tools against the instant ones; raises where they did not do the same work."""
    checkpoint = calling_checkpoint(tools, case.thinking)
    instant = Trajectories(runner, checkpoint, tools, case, 0.0)
    slow = Trajectories(runner, checkpoint, tools, case, DELAY)
    sides: dict[str, Side] = {"instant": instant, "slow": slow}
    timings = interleave(sides, case.rounds)
    if sampled(instant.groups) != sampled(slow.groups):
        raise AssertionError("slow tools changed what was sampled")
    statuses = {c.status for g in slow.groups for t in g.rollouts for c in t.calls}
    if statuses != {CallStatus.OK, CallStatus.NOT_RUN}:
        raise AssertionError(f"calls ended as {sorted(statuses)}; expected ok")
    shape = {
        "trajectories": case.questions * case.rollouts,
        "thinking": f"{case.thinking[0]}-{case.thinking[1]}",
        "tool_turns": case.tool_turns,
    }
    row = comparison(shape, "instant tools", timings["slow"], timings["instant"], "tokens")
    return row | {"ratio_alone": asdict(ratio(*(alone(timings[s]) for s in ("slow", "instant"))))}


def alone(timing: Timing) -> Timing:
    """The same rounds; what they would take with the processor to themselves as their CPU time."""
    idle = [figures["idle_s"] for figures in timing.figures]
    return replace(timing, cpu=[a + b for a, b in zip(timing.cpu, idle, strict=True)])


def overhead(runner: asyncio.Runner, toolbox: Toolbox, at_once: int, rounds: int) -> Iterator[Row]:
    """Each tool's call, later ones of a trajectory, against an empty one, `at_once` at a time."""
    picture = chain_examples(1, 64)[0].images[0]
    arguments = {name: json.loads(texts[0]) for name, texts in ARGUMENTS.items()}
    repeat = {nothing.name: 16, "image_zoom_in_tool": 8}  # enough of the fast ones to be timed

    def side(name: str) -> Side:
        async def once(number: int) -> None:
            context = ToolContext((View.whole(picture),), f"overhead-{number}")
            result = await run_call(toolbox, name, arguments.get(name, {}), context)
            if result.status is not CallStatus.OK:
                raise AssertionError(f"{name}: {result.error}")

        async def many() -> dict[str, float]:
            repeats = repeat.get(name, 2) * max(1, 64 // at_once)
            for _ in range(repeats):
                await asyncio.gather(*(once(number) for number in range(at_once)))
            return {"calls": float(repeats * at_once)}

        return lambda: runner.run(many())

    timings = interleave({name: side(name) for name in toolbox}, rounds)
    for name in ARGUMENTS:
        shape = {"tool": name, "calls_at_once": at_once}
        yield comparison(shape, "empty call", timings[name], timings[nothing.name], "calls")
    for number in range(at_once):
        runner.run(toolbox.end(f"overhead-{number}"))


def comparison(
    shape: Mapping[str, Any], against: str, ours: Timing, theirs: Timing, per: str
) -> Row:
    """A comparison as plain data; ratios are ours over theirs of seconds per `per`."""
    return {
        "benchmark": "tools",
        "case": dict(shape),
        "against": against,
        "ratio_cpu": asdict(ratio(ours, theirs, "cpu", per=per)),
        "ratio_wall": asdict(ratio(ours, theirs, "wall", per=per)),
        "ours": means(ours),
        "theirs": means(theirs),
        "rounds": len(ours.cpu),
    }


def run(quick: bool) -> Iterator[Row]:
    """Every case of waiting, then the overheads."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        tools = real_tools(Path(folder))
        toolbox = Toolbox({nothing.name: nothing, **tools})
        runner.run(toolbox.start())
        try:
            for case in (TINY,) if quick else CASES:
                yield waiting(runner, tools, case)
            for at_once in (1,) if quick else (1, 64):
                yield from overhead(runner, toolbox, at_once, 1 if quick else 9)
        finally:
            runner.run(toolbox.close())
