"""Adapters at vLLM's servers: what is served is what is trained.

Servers get A and B, never a merge that bfloat16 would round away. With the fake servers: refusals,
in-flight modes, lost servers; with the real one (AXPO_VLLM_PYTHON), of a model whose vision part is
adapted too: the contract suite, updates by file and broadcast, weights in mid-generation, and a run
and an evaluation of the lab.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from axpo.config import LoraSettings, load_config
from axpo.engines.base import Completion
from axpo.engines.broadcast import Backend
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.engines.vllm.process import Installation, Process
from axpo.engines.vllm.server import arguments, start_servers
from axpo.engines.vllm.settings import Vllm
from axpo.errors import ConfigError
from axpo.models.loading import Checkpoint
from axpo.models.lora import adapted_layers, adapter_weights, merged_weights, served_share
from axpo.tasks.lab import BASE
from axpo.training.objective import Objective
from tests.support.engine_contract import Writer, ask, run
from tests.support.fake_vllm import FakeVllm
from tests.support.in_flight import InFlightModes
from tests.support.lora import LOSS, adapted, trainer
from tests.support.padded_oracle import branching_group
from tests.support.runs import Lines, evaluate, train_rl
from tests.support.tiny import in_bfloat16, tiny_checkpoint
from tests.support.vllm_fakes import Setting
from tests.support.vllm_server import (
    HEAD,
    LONG,
    PYTHON,
    ServerContract,
    differences,
    engine_at,
    killed_in_flight,
    real,
)

RANK = 4


def made(seed: int, **settings: Any) -> Checkpoint:
    """The tiny model of seed 0 with adapters of `seed` that show, the vision part's too."""
    values = {"vision": True, "rank": RANK} | settings
    return adapted(seed, made=lambda: tiny_checkpoint(0, HEAD), **values)


def dense(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Oracle: scale B A of every adapted layer, in float32."""
    return {
        name: layer.scaling["default"]
        * (layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()).detach()
        for name, layer in adapted_layers(checkpoint.model).items()
    }


def share(served: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> float:
    """Oracle: <S, D> / <D, D> of whole matrices."""
    along = sum((served[name] * change).sum() for name, change in trained.items())
    return float(along / sum(change.square().sum() for change in trained.values()))


class TestServedShare:
    def test_by_hand(self) -> None:
        """Everything, half of B, a third of A, the other sign, nothing."""
        checkpoint = made(0)
        weights = checkpoint.model.state_dict()
        handed, scale = adapter_weights(weights), 8 / RANK

        def of(up: float, down: float) -> float:
            served = {n: t * (up if "lora_B" in n else down) for n, t in handed.items()}
            return served_share(handed, served, scale)

        found = [of(1, 1), of(0.5, 1), of(1, 1 / 3), of(-1, 1), of(0, 1)]
        assert found == pytest.approx([1, 0.5, 1 / 3, -1, 0], abs=1e-6)

    def test_against_whole_matrices(self) -> None:
        """Of other adapters, and of a layer that was left out."""
        checkpoint, other = made(0, alpha=3), made(1, alpha=3)
        trained = dense(checkpoint)
        own = adapter_weights(checkpoint.model.state_dict())
        served = adapter_weights(other.model.state_dict())
        found = served_share(own, served, 3 / RANK)
        assert found == pytest.approx(share(dense(other), trained), abs=1e-6)
        name = next(iter(trained))
        own[f"base_model.model.{name}.lora_B.weight"].zero_()
        left = trained | {name: torch.zeros_like(trained[name])}
        expected = share(left, trained)
        whole = adapter_weights(made(0, alpha=3).model.state_dict())
        assert served_share(whole, own, 3 / RANK) == pytest.approx(expected)
        assert 0.5 < expected < 0.999

    def test_nothing_trained_yet_is_all_served(self) -> None:
        checkpoint = made(0, spread=0.0)
        handed = adapter_weights(checkpoint.model.state_dict())
        assert served_share(handed, handed, 1.0) == 1.0

    @pytest.mark.parametrize("alpha", [4, 3], ids=["scale-1", "scale-0.75"])
    def test_one_update_of_a_bfloat16_model(self, setting: Setting, alpha: int) -> None:
        """Merged into bfloat16 weights, next to nothing of it would reach a server."""
        plain = partial(tiny_checkpoint, 0, HEAD)
        checkpoint = adapted(
            0, lambda: in_bfloat16(plain()), spread=0.0, rank=RANK, alpha=alpha, vision=True
        )
        groups = [branching_group(checkpoint, seed, f"g{seed}") for seed in range(2)]
        trainer(checkpoint, 1e-5).update(groups, Objective(LOSS, "question_mean"))
        weights, trained = checkpoint.model.state_dict(), dense(checkpoint)
        merged, before = dict(merged_weights(checkpoint.model, weights)), in_bfloat16(plain())
        old = before.model.state_dict()
        changed = {n: merged[f"{n}.weight"].float() - old[f"{n}.weight"].float() for n in trained}
        engine = setting.engine(checkpoint, setting.serve(checkpoint))
        run(engine.load_weights(weights, 1))
        print(f"\nserved: merged {share(changed, trained):.3f}, adapters {engine.served_share:.6f}")
        assert share(changed, trained) < 0.1
        assert engine.served_share is not None and 0.99 < engine.served_share < 1.01

    def test_full_weights_have_none(self, setting: Setting) -> None:
        checkpoint = tiny_checkpoint(0)
        engine = setting.engine(checkpoint, setting.serve(checkpoint))
        run(engine.load_weights(tiny_checkpoint(1).model.state_dict(), 1))
        assert engine.served_share is None


class TestInFlight(InFlightModes):
    """The same modes; the first weights are those below the adapters."""

    @pytest.fixture
    def checkpoint(self) -> Checkpoint:
        return adapted(0, spread=0.0, vision=True)

    @pytest.fixture
    def newer(self) -> Checkpoint:
        return adapted(1, vision=True)


class TestServers:
    @pytest.mark.parametrize("transfer", [None, "gloo"])
    def test_they_get_adapters_alone_and_again_after_a_restart(
        self, setting: Setting, transfer: Backend | None
    ) -> None:
        checkpoint, newer = made(0), made(1)
        (fake,) = setting.serve(checkpoint)
        client = Client(fake.url, 20.0, 1.0)
        engine = VllmEngine(
            TrainedModel.of(checkpoint), [Server(client)], setting.folder,
            recovery_seconds=10.0, backend=transfer,
        )  # fmt: skip
        writer = Writer(checkpoint, 0)
        requests = writer.again(writer.request(sizes=(64,)), 4, max_tokens=8)

        async def main() -> tuple[list[Completion], list[Completion]]:
            await engine.load_weights(newer.model.state_dict(), 1)
            first = await ask(engine, requests)
            await asyncio.to_thread(fake.die)
            await asyncio.to_thread(fake.start)
            again = [replace(r, id=f"again/{i}") for i, r in enumerate(requests)]
            return first, await ask(engine, again)

        for done in run(main()):
            for request, completion in zip(requests, done, strict=True):
                assert completion.versions == (1,) * len(completion.tokens)
                assert max(differences(newer, request, completion)) < 1e-5
        assert len(fake.told) == 2 and fake.told[0]["lora"] == {"rank": RANK, "alpha": 8}
        if transfer is not None:
            sent = {tensor["name"] for bucket in fake.told[1]["buckets"] for tensor in bucket}
            assert len(sent) == 2 * len(adapted_layers(newer.model))

    def refusal(self, setting: Setting, fake: FakeVllm, checkpoint: Checkpoint) -> str:
        engine = setting.engine(checkpoint, [fake])
        with pytest.raises(ConfigError) as caught:
            run(engine.load_weights(checkpoint.model.state_dict(), 0))
        return str(caught.value)

    def test_servers_that_cannot_adapt_it_are_refused(self, setting: Setting) -> None:
        checkpoint = made(0, rank=9)
        (fake,) = setting.serve(checkpoint)
        said = self.refusal(setting, fake, checkpoint)
        assert "rank 8 at most, model.lora.rank is 9 (start it with --max-lora-rank 16)" in said
        fake.facts["lora_rank"] = 0
        assert "--enable-lora --max-loras 1 --max-lora-rank 16" in (
            said := self.refusal(setting, fake, checkpoint)
        )
        assert "--enable-tower-connector-lora" in said
        fake.facts["lora_rank"], fake.models = 16, ["policy"]
        said = self.refusal(setting, fake, checkpoint)
        assert "start it with --lora-modules axpo-adapter=axpo-adapter" in said

    def test_layers_that_a_server_does_not_adapt(self, setting: Setting) -> None:
        checkpoint = made(0)
        (fake,) = setting.serve(checkpoint)
        layers = list(adapted_layers(checkpoint.model))
        fake.unadapted = [name for name in layers if ".visual." in name]
        said = self.refusal(setting, fake, checkpoint)
        assert "(18 of 39 adapted layers; start it with --enable-tower-connector-lora" in said
        fake.unadapted = ["model.language_model.layers.0.mlp.up_proj"]
        assert "layers.0.mlp.up_proj (1 of 39 adapted layers; start it without" in self.refusal(
            setting, fake, checkpoint
        )

    def test_full_weights_at_a_server_with_adapters(self, setting: Setting) -> None:
        (fake,) = setting.serve(made(0))
        said = self.refusal(setting, fake, tiny_checkpoint(0, HEAD))
        assert "start it without --enable-lora" in said

    def test_arguments_of_a_server(self) -> None:
        here, settings = Installation("p", "1", cpu=False), Vllm(python="p")

        def of(lora: LoraSettings | None) -> str:
            return " ".join(
                arguments(here, settings, tiny_checkpoint(0).processor, "bfloat16", lora)
            )

        assert "lora" not in of(None)
        assert "--max-loras 1 --max-lora-rank 64 " in of(LoraSettings(rank=33))
        assert "tower" not in of(LoraSettings())
        assert "--enable-tower-connector-lora" in of(LoraSettings(vision=True))
        assert "--max-lora-rank 512 " in of(LoraSettings(rank=512))
        with pytest.raises(ConfigError, match=r"model\.lora\.rank: got 513, .* up to rank 512"):
            of(LoraSettings(rank=513))


@pytest.fixture(scope="module")
def lora_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("tiny")
    start = tiny_checkpoint(0, HEAD)
    start.save(folder)
    settings = Vllm(python=PYTHON, slots=64, max_length=4096)
    lora = LoraSettings(rank=RANK, alpha=8, vision=True)
    began = time.monotonic()
    (process,) = start_servers(
        settings, replace(start.processor, path=str(folder)), "float32", folder / "logs", lora
    )
    print(f"\nserver with adapters ready in {time.monotonic() - began:.0f} s")
    yield process
    process.stop()


@real
class TestContract(ServerContract):
    @pytest.fixture(autouse=True)
    def _server(self, lora_server: Process, tmp_path: Path) -> None:
        self.server, self.folder = lora_server, tmp_path

    def tiny(self, seed: int) -> Checkpoint:
        return made(seed)


@real
@pytest.mark.parametrize("backend", [None, "gloo"], ids=["file", "broadcast"])
def test_every_update_counts_at_once(
    lora_server: Process, tmp_path: Path, backend: Backend | None
) -> None:
    """For pictures and prefixes that the server has seen under the adapter before, too."""
    checkpoint = made(0)
    writer = Writer(checkpoint, 0)
    engine = engine_at(lora_server, checkpoint, tmp_path, backend=backend)
    requests = writer.again(writer.request(sizes=(128, 64)), 4, max_tokens=20)

    async def main() -> None:
        worst, seconds, before = 0.0, [], checkpoint
        for version in range(1, 6):
            other = made(version)
            began = time.monotonic()
            await engine.load_weights(other.model.state_dict(), version)
            seconds.append(time.monotonic() - began)
            assert engine.served_share == pytest.approx(1.0, abs=1e-6)
            done = await ask(engine, requests)
            for request, completion in zip(requests, done, strict=True):
                assert set(completion.versions) == {version}
                worst = max([worst, *differences(other, request, completion)])
                assert max(differences(before, request, completion)) > 0.01
            before = other
        print(
            f"\nadapters: largest difference {worst:.1e}; seconds an update "
            f"{sorted(seconds)[2]:.2f} (median of {len(seconds)})"
        )
        assert worst < 3e-5

    run(main())


@real
@pytest.mark.parametrize("in_flight", ["keep", "restart", "finish"])
def test_adapters_that_come_in_mid_generation(
    lora_server: Process, tmp_path: Path, in_flight: str
) -> None:
    """Every token's logprob is that of the adapters which its version names."""
    old, new = made(0), made(1)
    writer, engine = Writer(old, 0), engine_at(lora_server, old, tmp_path, in_flight=in_flight)
    sizes: list[tuple[int, ...]] = [(), (64,), (128, 64), (64,)]
    requests = [writer.request(f"g{i}", s, max_tokens=LONG, stop=()) for i, s in enumerate(sizes)]

    async def main() -> list[Completion]:
        work = asyncio.create_task(ask(engine, requests))
        while engine.stats.pictures < 4:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)  # all four are being generated
        await engine.load_weights(new.model.state_dict(), 1)
        return await work

    done = run(main())
    seen = {(c.versions[0], c.versions[-1]) for c in done}
    assert seen == {{"keep": (0, 1), "restart": (1, 1), "finish": (0, 0)}[in_flight]}
    worst = 0.0
    for request, completion in zip(requests, done, strict=True):
        for version, weights in ((0, old), (1, new)):
            errors = differences(weights, request, completion)
            pairs = zip(completion.versions, errors, strict=True)
            worst = max([worst, *(e for v, e in pairs if v == version)])
    print(f"\n{in_flight}: largest difference of {4 * LONG} logprobs: {worst:.1e}")
    assert worst < 3e-5


@real
def test_axpo_with_a_killed_server_then_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill -9 in the second step's sampling the new server has that step's adapters, which
    are far from the start; an evaluation serves the run's adapters, not what bfloat16 leaves of
    them in the merged weights."""
    config = load_config(
        "lab", "model.lora.rank=8", "model.dtype=bfloat16", "rl.steps=2", "rl.questions=4",
        "rl.updates=1", "rl.optimizer.learning_rate=1e-2", "algorithm.extra_budget=0.5",
        "run.checkpoint_every=2", "eval.questions=2", "eval.samples=4", "engine.name=vllm",
        f"engine.python={PYTHON}", "engine.max_length=1024",
    )  # fmt: skip
    lines = Lines()
    broken = killed_in_flight(monkeypatch, lambda: len(lines.steps) == 1)
    out = tmp_path / "axpo"
    last = train_rl(config, BASE, out, lines)
    steps = [metrics for _, _, metrics in lines.steps]
    assert broken[0] > 4
    assert [step["servers_lost"] for step in steps] == [0, 1]
    for step in steps:
        assert step["served_share"] == pytest.approx(1.0, abs=1e-5)
        assert step["mismatch_mean"] < 0.03 and step["unscored"] == 0
    moved = steps[-1]["kl"]  # nats per token from the start, before that step's update
    assert moved > 0.1

    shares: list[float | None] = []
    hand_over = VllmEngine.load_weights

    async def load_and_note(self: VllmEngine, *arguments: Any) -> None:
        await hand_over(self, *arguments)
        shares.append(self.served_share)

    monkeypatch.setattr(VllmEngine, "load_weights", load_and_note)
    found = evaluate(config, str(last / "model"), out, Lines())
    print(f"\nadapters: KL from the start {moved:.2g}, evaluation serves {shares} of them")
    assert shares == [pytest.approx(1.0, abs=1e-5)]
    assert found["unscored"] == 0
