"""Rollouts by vLLM, by the in-process engine and by transformers' `generate`, request by request.

Owns the two cases, the lab's base model and a random Qwen3-VL of text width 512 (30M parameters),
and what surrounds them: a real server that is started with the same weights, spoken to by
`axpo.engines.vllm`. A round asks every side for the same new prompts with pictures, of which
nothing is cached anywhere, with the same seeds. Ids that would end a turn are banned, so that every
sample has the length that was asked for on every side; `generate` goes on until its longest row.

The server is another process: CPU seconds are this process's and the server's together. Wall time
is what a run takes where nothing else uses the machine, and there vLLM has a second core.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from axpo.engines.base import Engine, Picture, Request, Sampling
from axpo.engines.transformers import TransformersEngine
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.process import Process
from axpo.engines.vllm.server import start_servers
from axpo.engines.vllm.settings import Vllm
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.rollout.rendering import Rendering
from axpo.rollout.sampling import new_group
from axpo.tasks.lab import BASE
from axpo.tasks.lab.task import LabTask
from axpo.tools import make_tools
from axpo.tree import Group
from benchmarks.harness import Row, Side, Timing, interleave, means, ratio
from benchmarks.models import Shape, cold, training_checkpoint, training_group
from benchmarks.rollouts import GenerateEngine

OURS, IN_PROCESS, GENERATE = "vLLM", "in-process engine", "generate, vision cached"
MAX_LENGTH = 1024
"""Tokens of a path; every prompt and its longest sample fit."""
MISSING = (
    "no vLLM to compare with: give the python of its environment by --vllm or AXPO_VLLM_PYTHON "
    "(`make vllm-env` builds one)"
)


@dataclass(frozen=True, slots=True)
class Case:
    """`prompts` x `rollouts` samples of `tokens` (least, most), spread evenly over a prompt's."""

    model: str
    prompts: int
    tokens: tuple[int, int]
    rollouts: int = 8
    rounds: int = 5

    def lengths(self) -> list[int]:
        """Tokens of each rollout of a prompt."""
        low, high = self.tokens
        return [low + (high - low) * i // max(1, self.rollouts - 1) for i in range(self.rollouts)]


LAB, WIDE = "lab", "width 512, 8 layers"
TINY = Case(LAB, prompts=2, tokens=(2, 4), rollouts=2, rounds=1)
CASES = (Case(LAB, prompts=16, tokens=(4, 16)), Case(WIDE, prompts=8, tokens=(40, 160)))


@cache
def wide_checkpoint() -> Checkpoint:
    """A random model that is wide and deep enough for its tokens to count beside a request."""
    text = {
        "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8, "head_dim": 64,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    return training_checkpoint(text=text, vision={"out_hidden_size": 512})


def prompts(case: Case, checkpoint: Checkpoint, number: int) -> list[Group]:
    """The groups of round `number`, nothing sampled: the lab's questions, or 256 picture tokens
    of noise among words."""
    places = range(number * case.prompts, (number + 1) * case.prompts)
    if case.model == LAB:
        lab, rendering = (
            LabTask(),
            Rendering(checkpoint.processor, make_tools(["image_zoom_in_tool"])),
        )
        return [new_group(rendering, lab.example("train", i), f"q{i}") for i in places]
    shape = Shape(256, 1, rollouts=1, continuations=0)
    return [replace(training_group(checkpoint, shape, seed=i), id=f"q{i}") for i in places]


def requests(case: Case, checkpoint: Checkpoint, number: int) -> list[Request]:
    """What round `number` asks every side for."""
    asked: list[Request] = []
    banned = tuple(dict.fromkeys((*checkpoint.processor.banned, *checkpoint.processor.stop)))
    for group in prompts(case, checkpoint, number):
        pictures = tuple(Picture(s.digest, group.pictures[s.digest]) for s in group.prompt.images)
        for i, length in enumerate(case.lengths()):
            sampling = Sampling(length, i, checkpoint.processor.stop, banned)
            id = f"{group.id}/r{i}"
            asked.append(Request(id, group.id, group.prompt.tokens, pictures, sampling))
    return asked


def compare(
    case: Case, checkpoint: Checkpoint, server: Server, server_seconds: Callable[[], float]
) -> list[Row]:
    """vLLM against both others; `server_seconds` is the CPU time that the server has used."""
    waves = [requests(case, checkpoint, number) for number in range(case.rounds + 1)]
    engines: dict[str, Engine] = {  # each with a checkpoint of its own, which keeps pixels
        OURS: VllmEngine(TrainedModel.of(cold(checkpoint)), [server], Path(tempfile.gettempdir())),
        IN_PROCESS: TransformersEngine(cold(checkpoint)),
        GENERATE: GenerateEngine(cold(checkpoint), len(waves[0])),
    }
    with asyncio.Runner() as runner:
        try:
            sides = {
                name: _side(runner, engine, waves, server_seconds)
                for name, engine in engines.items()
            }
            timings = interleave(sides, case.rounds)
        finally:
            for engine in engines.values():
                runner.run(engine.close())
    ours = timings.pop(OURS)
    ours.cpu = [own + f["server_s"] for own, f in zip(ours.cpu, ours.figures, strict=True)]
    return [_row(case, against, ours, theirs) for against, theirs in timings.items()]


def _side(
    runner: asyncio.Runner,
    engine: Engine,
    waves: Sequence[Sequence[Request]],
    server_seconds: Callable[[], float],
) -> Side:
    """Samples the next wave; a wave's groups are released after it."""
    number = itertools.count()

    async def sample(asked: Sequence[Request]) -> int:
        done = await asyncio.gather(*(engine.generate(request) for request in asked))
        for group in {request.group for request in asked}:
            await engine.release(group)
        return sum(len(completion.tokens) for completion in done)

    def side() -> Mapping[str, float]:
        asked, before = waves[next(number)], server_seconds()
        tokens = runner.run(sample(asked))
        used = server_seconds() - before
        return {"samples": float(len(asked)), "tokens": float(tokens), "server_s": used}

    return side


def _row(case: Case, against: str, ours: Timing, theirs: Timing) -> Row:
    """A comparison as plain data; ratios are theirs over vLLM's seconds per token."""
    low, high = case.tokens
    shape = {"model": case.model, "prompts": case.prompts, "rollouts": case.rollouts}
    return {
        "benchmark": "vllm_rollouts",
        "case": {**shape, "tokens": f"{low}-{high} tokens"},
        "against": against,
        "ratio_cpu": asdict(ratio(theirs, ours, "cpu", per="tokens")),
        "ratio_wall": asdict(ratio(theirs, ours, "wall", per="tokens")),
        "ours": _summary(ours),
        "theirs": _summary(theirs),
        "rounds": case.rounds,
    }


def _summary(timing: Timing) -> dict[str, float]:
    found = means(timing)
    return found | {"tokens_per_s": found["tokens"] / found["wall_s"]}


def group_seconds(leader: int) -> float:
    """CPU seconds that the processes of a process group which are alive have used (Linux)."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if int(fields[2]) == leader:  # proc(5): pgrp, and utime and stime below
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(python: str, checkpoint: Checkpoint, slots: int) -> Iterator[Process]:
    """A real server of `checkpoint`, which is in memory; 30-90 s until it is ready."""
    settings = Vllm(python=python, slots=slots, max_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        checkpoint.save(path / "model")
        served = replace(checkpoint.processor, path=str(path / "model"))
        (process,) = start_servers(settings, served, "float32", path / "logs")
        try:
            yield process
        finally:
            process.stop()


def run(quick: bool, vllm: str | None) -> Iterator[Row]:
    """Both cases (minutes, two server starts included); `quick` is one tiny case, one round.

    `vllm` is the python of vLLM's environment; without it there is only a row that says so.
    """
    if vllm is None:
        yield {"benchmark": "vllm_rollouts", "against": OURS, "skipped": MISSING}
        return
    torch.manual_seed(0)  # `generate` draws from it
    for case in (TINY,) if quick else CASES:
        checkpoint = load_checkpoint(BASE) if case.model == LAB else wide_checkpoint()
        with serving(vllm, checkpoint, case.prompts * case.rollouts) as process:
            assert process.pid is not None
            server = Server(Client(process.url, 600.0, 30.0))
            yield from compare(case, checkpoint, server, partial(group_seconds, process.pid))
