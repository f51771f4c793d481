"""Weights of two ranks in two processes, at servers: the same as those of one process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from axpo.engines import broadcast
from axpo.engines.broadcast import Backend
from axpo.engines.scripted import ScriptedEngine
from axpo.engines.vllm import pool
from axpo.engines.vllm.checks import TrainedModel
from axpo.engines.vllm.client import Client
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.pool import Server
from axpo.errors import DiskError, EngineError
from axpo.models.lora import adapter_weights
from axpo.rollout.rendering import Rendering
from axpo.training.parity import limit
from axpo.training.probe import WeightProbe
from tests.support.engine_contract import Writer, difference, run
from tests.support.fake_vllm import FakeVllm
from tests.support.gang import Gang, Gone, Trained
from tests.support.ranks import Case

SMALL = ("small0", "text1")
CASES = {
    "tied": Case(SMALL),
    "untied": Case(SMALL, untied=True),
    "rounded": Case(SMALL, rounded=True),
    "adapters": Case(SMALL, lora={"vision": True}),
    "rounded adapters": Case(SMALL, lora={"alpha": 3}, rounded=True),
}


@pytest.fixture(scope="module")
def gang(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gang]:
    some = Gang(tmp_path_factory.mktemp("gang") / "ranks")
    yield some
    some.stop()


class Served:
    """Two fake servers of a case's model, and an engine that samples with them."""

    def __init__(self, folder: Path, case: Case, backend: Backend | None = None) -> None:
        self.one, self.folder = Trained(case), folder / "weights"
        checkpoint = self.one.learner.checkpoint
        self.fakes = [FakeVllm(checkpoint) for _ in range(2)]
        servers = [Server(Client(fake.url, 20.0, 1.0)) for fake in self.fakes]
        self.engine = VllmEngine(
            TrainedModel.of(checkpoint), servers, self.folder,
            recovery_seconds=10.0, backend=backend,
        )  # fmt: skip
        writer = Writer(checkpoint, 0)
        self.requests = writer.again(writer.request(sizes=(64,)), 4, max_tokens=8)
        self.exact = checkpoint.model.dtype == torch.float32

    async def check(self, version: int) -> None:
        """What both servers sample is from `version`, which is what the one process has now."""
        done = [await self.engine.probe(request) for request in self.requests]
        for request, answers in zip(self.requests, done, strict=True):
            assert len(answers) == 2
            for completion in answers.values():
                assert set(completion.versions) == {version}
                apart = difference(self.one.learner.checkpoint, request, completion)
                assert apart < (1e-5 if self.exact else 0.05)

    @property
    def files(self) -> list[str]:
        """The ends of the names of all that is left in the folder: count, version, rank."""
        names = (path.name for path in self.folder.iterdir())
        return sorted(name.partition("-")[2].partition("-")[2] for name in names)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Served]]:
    monkeypatch.setattr(pool, "HEALTH_EVERY", 0.05)
    made: list[Served] = []

    def start(case: Case, backend: Backend | None = None) -> Served:
        made.append(Served(tmp_path, case, backend))
        return made[-1]

    yield start
    for served in made:
        for fake in served.fakes:
            fake.stop()


def handed(one: Trained) -> dict[str, torch.Tensor]:
    """What one process hands over: each tensor once, or its adapters."""
    model = one.learner.checkpoint.model
    if one.case.lora is None:
        return dict(model.named_parameters())
    return adapter_weights(model.state_dict())


@pytest.mark.parametrize("name", CASES)
def test_files_of_ranks_are_what_one_process_has(gang: Gang, tmp_path: Path, name: str) -> None:
    gang.call("make", case := CASES[name])
    one = Trained(case)
    for update in range(2):
        if update:
            gang.call("update")
            one.update()
        parts = [load_file(path) for path in gang.write(tmp_path, f"a-{update}").paths]
        expected, found = handed(one), {k: w for part in parts for k, w in part.items()}
        assert sorted(name for part in parts for name in part) == sorted(expected)
        if case.lora is None:  # Of adapters the first rank has all.
            sizes = [sum(w.nbytes for w in part.values()) for part in parts]
            assert len(sizes) == 2 and max(sizes) < 1.1 * min(sizes)
        else:
            assert len(parts) == 1
        for key, weight in expected.items():
            assert found[key].dtype == weight.dtype
            if update == 0:
                assert torch.equal(found[key], weight)
            elif not case.rounded:
                assert torch.allclose(found[key], weight, rtol=0, atol=2e-5)
            else:
                assert torch.allclose(found[key], weight, rtol=2**-7, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("tied", None),
        ("rounded adapters", None),
        ("untied", "gloo"),
        ("rounded", "gloo"),
        ("adapters", "gloo"),
    ],
)
def test_servers_sample_with_them(
    gang: Gang, serve: Callable[..., Served], name: str, backend: Backend | None
) -> None:
    gang.call("make", case := CASES[name])
    served = serve(case, backend)
    engine, one = served.engine, served.one
    dtype = one.learner.checkpoint.model.dtype
    rendering = Rendering(one.learner.checkpoint.processor, {})
    probe = WeightProbe(engine, rendering, gang.logprobs, 1.0, partial(limit, dtype))

    async def main() -> None:
        for version in range(3):
            if version:
                gang.call("update")
                one.update()
            await engine.load_from(gang, version)
            assert (engine.served_share is None) == (case.lora is None)
            await served.check(version)
            assert (await probe.check())["probe_difference"] < (1e-5 if served.exact else 0.03)
        await engine.load_weights(one.learner.checkpoint.model.state_dict(), 3)
        await served.check(3)
        await engine.close()

    run(main())
    assert served.files == []


def test_served_share_is_what_one_process_finds(gang: Gang, serve: Callable[..., Served]) -> None:
    gang.call("make", case := CASES["rounded adapters"])
    served = serve(case)
    engine = served.engine

    async def main() -> list[float | None]:
        await engine.load_from(gang, 0)
        found = [engine.served_share]
        await engine.load_weights(served.one.learner.checkpoint.model.state_dict(), 1)
        found.append(engine.served_share)
        await engine.close()
        return found

    ranks, one = run(main())
    assert ranks == one != 1.0


def test_a_rank_that_cannot_write_leaves_the_weights_from_before(
    gang: Gang, serve: Callable[..., Served]
) -> None:
    gang.call("make", case := CASES["tied"])
    served = serve(case)

    async def main() -> None:
        await served.engine.load_from(gang, 1)
        gang.call("update")
        gang.call("spoil", 1, False)
        with pytest.raises(DiskError, match=r"weights-.*-1-2-1.safetensors cannot be written"):
            await served.engine.load_from(gang, 2)
        assert served.files == ["0-1-0.safetensors", "0-1-1.safetensors"]
        await served.check(1)
        gang.call("mend")
        served.one.update()
        await served.engine.load_from(gang, 2)
        await served.check(2)
        assert served.files == ["2-2-0.safetensors", "2-2-1.safetensors"]
        await served.engine.close()

    run(main())
    assert served.files == []


async def recovered(engine: VllmEngine) -> None:
    """Returns when the servers that were lost are back."""
    servers = engine._pool.servers
    await asyncio.wait([server.recovery for server in servers if server.recovery])
    assert all(server.up for server in servers)


class TestRanksThatDie:
    """New ranks after it, as the servers stay up."""

    def test_in_the_middle_of_a_file(self, tmp_path: Path, serve: Callable[..., Served]) -> None:
        case = CASES["tied"]
        served, gang = serve(case), Gang(tmp_path / "ranks")

        async def main() -> None:
            gang.call("make", case)
            await served.engine.load_from(gang, 1)
            gang.call("update")
            gang.call("spoil", 1, True)
            with pytest.raises(Gone):
                await served.engine.load_from(gang, 2)
            assert served.files == ["0-1-0.safetensors", "0-1-1.safetensors"]
            await served.check(1)
            await served.engine.close()

        run(main())
        gang.stop()

    def test_in_the_middle_of_a_broadcast(
        self, tmp_path: Path, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Servers, which have a part of the new weights, get those from before again, by files;
        and the next ones from new ranks by new groups."""
        monkeypatch.setattr(broadcast, "BUCKET", 2**14)
        case = CASES["tied"]
        served, first = serve(case, "gloo"), Gang(tmp_path / "first")
        second = Gang(tmp_path / "second")

        async def main() -> None:
            first.call("make", case)
            await served.engine.load_from(first, 1)
            await served.check(1)
            first.call("update")
            first.call("die_sending", 3)
            with pytest.raises(Gone):
                await served.engine.load_from(first, 2)
            await recovered(served.engine)
            await served.check(1)
            assert all("paths" in fake.told[-1] for fake in served.fakes)
            second.call("make", case)
            await served.engine.load_from(second, 1)
            second.call("update")
            served.one.update()
            await served.engine.load_from(second, 2)
            await served.check(2)
            assert all("buckets" in fake.told[-1] for fake in served.fakes)
            assert served.engine.stats.servers_lost == 2
            await served.engine.close()

        run(main())
        first.stop()
        second.stop()


def test_a_server_that_cannot_receive_while_the_other_does(
    gang: Gang, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has the weights, and it gets them by files when these are whole."""
    gang.call("make", case := CASES["tied"])
    served = serve(case, "gloo")
    failing, _ = served.fakes

    def full(_: object) -> None:
        raise RuntimeError("out of memory")

    async def main() -> None:
        await served.engine.load_from(gang, 1)
        gang.call("update")
        served.one.update()
        monkeypatch.setattr(failing, "_receive", full)
        gang.call("write_slowly")
        await served.engine.load_from(gang, 2)
        assert not [name for name in served.files if name.startswith("1-2-")]
        assert served.engine.stats.servers_lost == 1
        await recovered(served.engine)
        assert ["paths" in fake.told[-1] for fake in served.fakes] == [True, False]
        await served.check(2)
        gang.call("mend")
        await served.engine.close()

    run(main())


def test_an_engine_in_this_process_refuses_them(gang: Gang) -> None:
    engine = ScriptedEngine(lambda _: [])
    with pytest.raises(EngineError, match=r'set engine\.name to "vllm"'):
        run(engine.load_from(gang, 1))
