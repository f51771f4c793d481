"""The vLLM engine against the real server: `make test-vllm` (or AXPO_VLLM_PYTHON=.../bin/python).

The contract suite, forks, weight updates of a tied model and a run at learning rate 0 on one server
of the tiny model; SFT and AXPO on the lab with a server of their own, which is killed. What was
measured is printed (pytest -s).
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.build.runs import rl_run
from axpo.config import load_config, parse_config
from axpo.engines import broadcast
from axpo.engines.base import Completion, Request
from axpo.engines.broadcast import Backend
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.process import (
    Installation,
    Process,
    ServerProcess,
    find_installation,
    free_port,
)
from axpo.engines.vllm.server import (
    arguments,
    fitting_installation,
    start_servers,
)
from axpo.engines.vllm.settings import Vllm
from axpo.errors import ConfigError, UserError
from axpo.models.loading import Checkpoint, load_checkpoint
from axpo.rollout.sampling import new_group
from axpo.store import load_groups
from axpo.tasks.lab import BASE
from axpo.training import rl
from axpo.training.batches import recompute_logprobs
from axpo.training.parity import Parity, check_parity, limit
from tests.support.engine_contract import Writer, ask, run
from tests.support.parity import agent_of, detailed
from tests.support.rollouts import example
from tests.support.runs import Lines, starting_at, train_rl, train_sft
from tests.support.tiny import tiny_checkpoint, tiny_config, tiny_tokenizer
from tests.support.vllm_server import (
    HEAD,
    LONG,
    PYTHON,
    Breaking,
    Halves,
    ServerContract,
    differences,
    engine_at,
    killed_in_flight,
    real,
)


def model_of(head: int) -> Any:
    """A config of the tiny model with heads of this size."""
    return tiny_config(tiny_tokenizer(), head)


class TestWithoutServer:
    def test_a_python_that_is_not_there(self) -> None:
        with pytest.raises(ConfigError, match=r"engine\.python: /no/python does not run"):
            find_installation("/no/python")

    def test_a_python_without_vllm(self) -> None:
        with pytest.raises(ConfigError, match=r"has no vLLM; `python -m axpo\.engines"):
            find_installation(sys.executable)

    def test_a_server_that_does_not_start_says_why(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = Installation(sys.executable, "0", cpu=True)
        monkeypatch.setattr("axpo.engines.vllm.server.find_installation", lambda python: here)
        settings = Vllm(python=sys.executable, servers=2)
        with pytest.raises(UserError, match=r"did not start.*No module named 'vllm'"):
            start_servers(settings, tiny_checkpoint(0, HEAD).processor, "float32", tmp_path)

    @pytest.mark.parametrize("cpu", [True, False])
    def test_heads_that_a_cpu_has_no_attention_for(
        self, monkeypatch: pytest.MonkeyPatch, cpu: bool
    ) -> None:
        here = Installation("p", "0", cpu)
        monkeypatch.setattr("axpo.engines.vllm.server.find_installation", lambda python: here)
        settings = Vllm(python="p")
        assert fitting_installation(settings, model_of(32), "float32") is here
        if not cpu:
            assert fitting_installation(settings, model_of(16), "float32") is here
            return
        with pytest.raises(ConfigError, match=r"head_dim is 16, vLLM on a CPU .*32, 64.*transfor"):
            fitting_installation(settings, model_of(16), "float32")

    def test_a_cache_that_holds_no_whole_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """2 (keys, values) x 3 layers x 2 heads x 32 x 4 bytes: 1,536 a token, 1 GiB: 699,050."""
        here = Installation("p", "0", cpu=True)
        monkeypatch.setattr("axpo.engines.vllm.server.find_installation", lambda python: here)
        monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
        fitting_installation(Vllm(python="p", max_length=699050), model_of(32), "float32")
        long = Vllm(python="p", max_length=699051)
        with pytest.raises(
            ConfigError, match=r"max_length: 699051 .*KVCACHE_SPACE = 1.*at least 2"
        ):
            fitting_installation(long, model_of(32), "float32")
        fitting_installation(long, model_of(32), "bfloat16")
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "2")
        fitting_installation(long, model_of(32), "float32")

    def test_the_recipe_s_arguments_come_last(self) -> None:
        settings = Vllm(python="p", max_length=512, arguments=("--max-model-len=64", "--seed=1"))
        model = tiny_checkpoint(0).processor
        cpu = arguments(Installation("p", "1", cpu=True), settings, model, "float32")
        gpu = arguments(Installation("p", "1", cpu=False), settings, model, "bfloat16")
        short = arguments(Installation("p", "1", cpu=True), settings, model, "bfloat16")
        assert cpu[-2:] == gpu[-2:] == ["--max-model-len=64", "--seed=1"]
        assert "--no-enable-chunked-prefill" in cpu
        assert "--no-enable-chunked-prefill" not in gpu
        for options, head in ((cpu, "float32"), (gpu, "float32"), (short, "bfloat16")):
            assert options[options.index("--logprobs-mode") + 1] == "processed_logprobs"
            assert options[options.index("--hf-overrides") + 1] == f'{{"head_dtype": "{head}"}}'

    @pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
    def test_it_listens_where_it_is_told_to(self, tmp_path: Path, host: str) -> None:
        """The recipe's own arguments come later and win."""
        script = tmp_path / "server"
        script.write_text('#!/bin/sh\necho "$@"\n')
        script.chmod(0o755)
        here, port = Installation(str(script), "0", True), free_port(host)
        process = ServerProcess(here, ["--seed=1"], port, tmp_path / "log", host=host)
        assert process.url == f"http://{'[::1]' if host == '::1' else host}:{port}"
        process.start()
        while process.failure() is None:
            time.sleep(0.02)
        process.stop()
        said = (tmp_path / "log").read_text()
        assert f"api_server --host {host} --seed=1 --port {port}\n" in said

    def test_stop_ends_the_whole_group(self, tmp_path: Path) -> None:
        """And a restart does, whatever its children are."""
        script = tmp_path / "server"
        script.write_text(f"#!/bin/sh\nsleep 600 & echo $! >> {tmp_path}/children; wait\n")
        script.chmod(0o755)
        process = ServerProcess(Installation(str(script), "0", True), [], 1, tmp_path / "log")
        process.start()
        children = _children(tmp_path, 1)
        process.restart()
        children = _children(tmp_path, 2)
        assert process.failure() is None
        process.stop()
        assert "ended with status" in str(process.failure())
        for child in children:
            with pytest.raises(ProcessLookupError):
                _until_gone(child)


def _children(folder: Path, count: int) -> list[int]:
    file = folder / "children"
    while not file.exists() or len(file.read_text().split()) < count:
        time.sleep(0.02)
    return [int(child) for child in file.read_text().split()]


def _until_gone(pid: int) -> None:
    """Returns if `pid` still runs after 5 s; raises `ProcessLookupError` once it is gone."""
    for _ in range(250):
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # killed, and not yet reaped
            raise ProcessLookupError
        time.sleep(0.02)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_checkpoint(0, HEAD).save(folder)
    return folder


@pytest.fixture(scope="module")
def server(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    settings = Vllm(python=PYTHON, slots=64, max_length=4096)
    logs = tmp_path_factory.mktemp("logs")
    began = time.monotonic()
    processor = replace(tiny_checkpoint(0, HEAD).processor, path=str(saved))
    (process,) = start_servers(settings, processor, "float32", logs)
    print(f"\nserver ready in {time.monotonic() - began:.0f} s")
    yield process
    process.stop()


@real
class TestContract(ServerContract):
    @pytest.fixture(autouse=True)
    def _server(self, server: Process, tmp_path: Path) -> None:
        self.server, self.folder = server, tmp_path

    def tiny(self, seed: int) -> Checkpoint:
        return tiny_checkpoint(seed, HEAD)


@real
def test_continuations_reuse_and_agree(server: Process, tmp_path: Path) -> None:
    """Rollouts over large prompts, a turn on top of each, and four forks of one of them."""
    checkpoint = tiny_checkpoint(0, HEAD)
    writer, engine = Writer(checkpoint, 0), engine_at(server, checkpoint, tmp_path)

    async def main() -> tuple[list[Request], list[Completion], int]:
        prompt = [writer.request(f"g{i}", (128,) * 4, max_tokens=40, stop=()) for i in range(4)]
        first = [r for p in prompt for r in writer.again(p, 4, max_tokens=40, stop=())]
        done = await ask(engine, first)
        second = [
            writer.follow(r, d, (64,), max_tokens=20) for r, d in zip(first, done, strict=True)
        ]
        after = await ask(engine, second)
        cut = Request("cut", "g0", second[0].tokens[:-2], second[0].pictures, first[0].sampling)
        forks = writer.again(cut, 4, max_tokens=20)
        grown = await ask(engine, forks)
        return first + second + forks, done + after + grown, len(first)

    requests, done, first = run(main())
    errors = [e for r, d in zip(requests, done, strict=True) for e in differences(checkpoint, r, d)]
    turns = [(d.reused, len(r.tokens)) for r, d in zip(requests, done, strict=True)][first:]
    print(
        f"\nlogprobs of {len(errors)} tokens: mean {sum(errors) / len(errors):.1e}, "
        f"max {max(errors):.1e}; cached of continuations' tokens: "
        f"{sum(t[0] for t in turns)} of {sum(t[1] for t in turns)}"
    )
    assert max(errors) < 3e-5
    assert all(length - 64 - 96 < reused for reused, length in turns)


@real
@pytest.mark.parametrize(
    ("backend", "files"), [(None, 1), (None, 2), ("gloo", 0)], ids=["file", "files", "broadcast"]
)
def test_updates_of_a_tied_model(
    server: Process, tmp_path: Path, backend: Backend | None, files: int
) -> None:
    """Every update counts at once, pictures that were seen before included."""
    checkpoint = tiny_checkpoint(0, HEAD)
    writer, engine = Writer(checkpoint, 0), engine_at(server, checkpoint, tmp_path, backend=backend)
    requests = writer.again(writer.request(sizes=(128, 64)), 4, max_tokens=20)

    async def main() -> None:
        seconds = []
        for version in range(1, 6):
            other = tiny_checkpoint(version, HEAD)
            began = time.monotonic()
            if files == 2:
                await engine.load_from(Halves(other), version)
            else:
                await engine.load_weights(other.model.state_dict(), version)
            seconds.append(time.monotonic() - began)
            done = await ask(engine, requests)
            for request, completion in zip(requests, done, strict=True):
                assert set(completion.versions) == {version}
                assert max(differences(other, request, completion)) < 3e-5
        print(f"\nseconds an update: {sorted(seconds)[2]:.2f} (median of {len(seconds)})")

    run(main())


@real
def test_a_broadcast_that_breaks_leaves_the_weights_from_before(
    server: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has a part of the new ones; it gets those from before again."""
    monkeypatch.setattr(broadcast, "BUCKET", 2**14)
    old, new = tiny_checkpoint(0, HEAD), tiny_checkpoint(1, HEAD)
    engine = engine_at(server, old, tmp_path, backend="gloo")
    request = Writer(old, 0).request(sizes=(128, 64), max_tokens=20)

    async def main() -> None:
        with pytest.raises(ValueError, match=r"told of .*lost"):
            await engine.load_from(Breaking(new), 1)
        (done,) = await ask(engine, [request])
        assert set(done.versions) == {0} and engine.stats.servers_lost == 1
        assert max(differences(old, request, done)) < 3e-5
        await engine.load_weights(new.model.state_dict(), 2)
        (done,) = await ask(engine, [replace(request, id="again")])
        assert set(done.versions) == {2}
        assert max(differences(new, request, done)) < 3e-5

    run(main())


@real
@pytest.mark.parametrize("in_flight", ["keep", "restart", "finish"])
def test_weights_that_come_in_mid_generation(
    server: Process, tmp_path: Path, in_flight: str
) -> None:
    """Every token's logprob is that of the weights which its version names."""
    old, new = tiny_checkpoint(0, HEAD), tiny_checkpoint(1, HEAD)
    writer, engine = Writer(old, 0), engine_at(server, old, tmp_path, in_flight=in_flight)
    sizes: list[tuple[int, ...]] = [(), (64,), (128, 64), (64,)]
    requests = [writer.request(f"g{i}", s, max_tokens=LONG, stop=()) for i, s in enumerate(sizes)]

    async def main() -> list[Completion]:
        work = asyncio.create_task(ask(engine, requests))
        while engine.stats.pictures < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)  # all four are being generated
        began = time.monotonic()
        await engine.load_weights(new.model.state_dict(), 1)
        print(f"\n{in_flight}: weights after {time.monotonic() - began:.2f} s")
        return await work

    done = run(main())
    seen = {(c.versions[0], c.versions[-1]) for c in done}
    assert seen == {{"keep": (0, 1), "restart": (1, 1), "finish": (0, 0)}[in_flight]}
    worst = 0.0
    for request, completion in zip(requests, done, strict=True):
        assert len(completion.tokens) == LONG and list(completion.versions) == sorted(
            completion.versions
        )
        for version, weights in ((0, old), (1, new)):
            errors = differences(weights, request, completion)
            pairs = zip(completion.versions, errors, strict=True)
            worst = max([worst, *(e for v, e in pairs if v == version)])
    print(f"largest difference of {4 * LONG} logprobs: {worst:.1e}")
    assert worst < 3e-5
    assert engine.stats.requests == 4 and engine.stats.sampled == 4 * LONG


class Counting(Lines):
    """Keeps what the engine has sampled after each step."""

    def __init__(self, runs: list[rl.RLRun]) -> None:
        super().__init__()
        self.runs = runs
        self.sampled: list[int] = []

    def step(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        super().step(kind, step, metrics)
        self.sampled.append(self.runs[0].agent.engine.stats.sampled)


@real
def test_sft_then_axpo_on_the_lab_with_a_killed_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lab's recipe, scaled down; kill -9 in the middle of the second step's sampling."""
    config = load_config(
        "lab", "sft.steps=30", "sft.batch=16", "rl.steps=3", "rl.questions=4", "rl.updates=2",
        "algorithm.extra_budget=0.5", "run.trees_every=1", "run.checkpoint_every=3",
        "engine.name=vllm", f"engine.python={PYTHON}", "engine.max_length=1024",
    )  # fmt: skip
    start = train_sft(config, BASE, tmp_path / "sft", Lines()) / "model"
    runs: list[rl.RLRun] = []
    lines, out = Counting(runs), tmp_path / "axpo"
    runs.append(rl_run(starting_at(config, start), out))
    broken = killed_in_flight(monkeypatch, lambda: len(lines.steps) == 1)
    rl.train(runs[0], lines)
    steps = [metrics for _, _, metrics in lines.steps]
    seconds = [step["seconds_sync"] for step in steps]
    print(
        f"\nlab: parity mean {steps[0]['parity_mean']:.1e}, max {steps[0]['parity_max']:.1e}; "
        f"each step's mismatch max {max(step['mismatch_max'] for step in steps):.1e}, probe "
        f"{max(step['probe_difference'] for step in steps):.1e}; hand-over and probe "
        f"{min(seconds):.2f}-{max(seconds):.2f} s; kill -9 with {broken[0]} in flight: that step "
        f"took {steps[1]['seconds_step']:.0f} s, the next {steps[2]['seconds_step']:.1f} s"
    )
    assert steps[0]["parity_max"] < 1e-4
    assert [step["servers_lost"] for step in steps] == [0, 1, 0]
    assert broken[0] > 4
    for place, step in enumerate(steps):
        groups = load_groups(out / "trees" / f"step-{place:06d}.parquet")
        assert len(groups) == 4
        for group in groups:
            assert [t.id for t in group.rollouts] == [f"{group.id}/r{i}" for i in range(8)]
            grown = [t.id for branch in group.branches for t in branch.continuations]
            assert len(grown) == len(set(grown)) == 4 * len(group.branches)
            assert all(t.scored and not t.fault for t in group.trajectories())
        if place:  # the first one's engine sampled for the parity check too
            sampled = lines.sampled[place] - lines.sampled[place - 1]
            assert sampled == step["tokens_sampled"]
        assert step["mismatch_max"] < 1e-4  # weights have changed: the restarted server has them
        assert step["probe_difference"] < 1e-4
    assert sum(step["branches"] for step in steps) > 0


@real
def test_nothing_drifts_at_learning_rate_0(server: Process, tmp_path: Path) -> None:
    """What an engine outside the process adds to a few steps is noise, and no more each step."""
    checkpoint = tiny_checkpoint(0, HEAD)
    checkpoint.save(tmp_path / "start")
    config = parse_config(
        {
            "rollout": {"max_turns": 2, "max_turn_tokens": 24, "max_tokens": 96},
            "rl": {"steps": 3, "questions": 2, "optimizer": {"learning_rate": 0.0}},
            "run": {"checkpoint_every": 3},
            "engine": {"name": "vllm", "urls": [server.url]},
        }
    )
    lines = Lines()
    last = train_rl(config, tmp_path / "start", tmp_path / "run", lines)
    for _, _, step in lines.steps:
        assert step["mismatch_max"] < 1e-4
        assert step["mismatch_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert step["ratio_max"] == pytest.approx(1.0, abs=1e-4)
        assert step["probe_difference"] < 1e-5
    means = [step["mismatch_mean"] for _, _, step in lines.steps]
    print(f"\nlearning rate 0: mismatch mean {', '.join(f'{mean:.1e}' for mean in means)}")
    after = load_checkpoint(last / "model").model.state_dict()
    for name, weight in checkpoint.model.state_dict().items():
        assert torch.equal(weight, after[name])


@real
def test_bfloat16_passes_and_a_server_of_another_head_is_refused(tmp_path: Path) -> None:
    """vLLM and the trainer share no kernel: 0.013 nats per token, as much as the trainer's own
    rounding moves its logprobs (0.018); the limit is 0.11."""
    tiny_checkpoint(0, HEAD).save(tmp_path / "tiny")
    trained = load_checkpoint(tmp_path / "tiny", dtype=torch.bfloat16)
    recompute = partial(recompute_logprobs, trained, kl=False, temperature=1.0, budget=8192)

    async def parity(server: Process) -> Parity:
        engine = VllmEngine(
            TrainedModel.of(trained), [Server(Client(server.url, 120.0, 10.0))], tmp_path, room=256
        )
        agent = agent_of(engine, trained, 150)
        asked = [
            new_group(agent.rendering, example(images=(detailed(i),)), f"g{i}") for i in range(4)
        ]
        try:
            limits = partial(limit, torch.bfloat16)
            return await check_parity(agent, recompute, asked, 0, limits)
        finally:
            await engine.close()

    def served(*arguments: str) -> Parity:
        settings = Vllm(python=PYTHON, slots=16, max_length=4096, arguments=arguments)
        (process,) = start_servers(settings, trained.processor, "bfloat16", tmp_path / "logs")
        try:
            return asyncio.run(parity(process))
        finally:
            process.stop()

    found = served()
    print(f"\nbfloat16: {found}")
    assert 0.005 < found.mean < 0.03
    assert abs(found.ratio - 1) < 0.01
    with pytest.raises(ConfigError, match=r"head_dtype is 'float32', expected 'bfloat16'.*--hf-ov"):
        served("--hf-overrides", '{"head_dtype": "float32"}')
