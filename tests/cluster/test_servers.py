"""vLLM servers on the nodes of a cluster, with fakes in their place: where they run, what becomes
of requests when one is lost with its host or its node, and what is left at the end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from axpo.cluster.nodes import Need
from axpo.cluster.servers import placing
from axpo.engines.base import Start
from axpo.engines.vllm.engine import VllmEngine
from axpo.engines.vllm.serving import start_engine
from axpo.engines.vllm.settings import Vllm
from axpo.errors import UserError
from axpo.models.loading import Checkpoint
from tests.support.clusters import add_node, cluster_of, engines, fake_python, gone, running
from tests.support.engine_contract import Writer, ask
from tests.support.tiny import tiny_checkpoint
from tests.support.vllm_fakes import check, prompts

NEED = Need("servers", "cluster.servers", 2, 0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without room and two nodes."""
    with cluster_of(0, 1, 1) as made:
        yield made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model is in it, and what the engine writes."""
    made = tmp_path_factory.mktemp("shared")
    tiny_checkpoint(0).save(made / "model")
    return made


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    made = tiny_checkpoint(0)
    return Checkpoint(replace(made.processor, path=str(folder / "model")), made.model)


def started(checkpoint: Checkpoint, folder: Path, python: str) -> VllmEngine:
    settings = Vllm(python=python, start_seconds=180.0, health_seconds=5.0)
    servers = placing(NEED, 30.0, print)
    start = Start(checkpoint.processor, checkpoint, folder, 64, "float32", "keep", servers=servers)
    return start_engine(settings, start)


@pytest.fixture(scope="module")
def engine(cluster: Cluster, checkpoint: Checkpoint, folder: Path) -> Iterator[VllmEngine]:
    """It is used by one test after another, which each lose some of its servers."""
    made = started(checkpoint, folder, fake_python(folder))
    yield made
    asyncio.run(made.close())


def hosts(engine: VllmEngine) -> list[Any]:
    return [server.process._host for server in engine._pool.servers]  # pyright: ignore


def of_host(host: Any) -> tuple[int, str]:
    """The process and the node of a host."""
    return ray.get(
        host.__ray_call__.remote(lambda _: (os.getpid(), ray.get_runtime_context().get_node_id()))
    )


def served(engine: VllmEngine, checkpoint: Checkpoint, lose: Callable[[], Any], lost: int) -> None:
    """All requests are answered though servers are lost meanwhile, once each and by the newest
    weights; the servers come back and have these too."""
    stats, servers = engine.stats, engine._pool.servers
    newer = tiny_checkpoint(engine.version + 1)
    before, stats.requests, stats.sampled = stats.servers_lost, 0, 0
    requests: list[Any] = []
    done: list[Any] = []

    async def main() -> None:
        await engine.load_weights(newer.model.state_dict(), engine.version + 1)
        losing = asyncio.create_task(asyncio.to_thread(lose))
        while (
            not losing.done()
            or stats.servers_lost - before < lost
            or not all(server.up for server in servers)
        ):
            several = prompts(Writer(checkpoint, len(requests)), 4, 4)
            requests.extend(several)
            done.extend(await ask(engine, several))

    asyncio.run(asyncio.wait_for(main(), 300))
    check(newer, engine, requests, done)
    assert stats.servers_lost - before == lost
    assert {server.weights for server in servers} == {servers[0].weights}


def test_they_start_on_different_nodes(engine: VllmEngine, checkpoint: Checkpoint) -> None:
    nodes = {of_host(host)[1] for host in hosts(engine)}
    assert len(nodes) == 2
    assert len({server.client.url for server in engine._pool.servers}) == 2
    served(engine, checkpoint, lambda: None, 0)


def test_a_host_dies(engine: VllmEngine, checkpoint: Checkpoint, folder: Path) -> None:
    """Its server ends with it, and the server's own process."""
    before = engines(folder)
    pid, node = of_host(hosts(engine)[0])
    served(engine, checkpoint, lambda: os.kill(pid, signal.SIGKILL), 1)
    assert of_host(hosts(engine)[0])[1] == node
    after = engines(folder)
    assert len(after) == len(before) + 1
    assert sum(map(running, after)) == 2


def test_a_node_dies(engine: VllmEngine, checkpoint: Checkpoint, cluster: Cluster) -> None:
    """The host gets a place on another node."""
    _, lost = of_host(hosts(engine)[1])
    node = next(node for node in cluster.worker_nodes if node.node_id == lost)
    add_node(cluster, 1)
    served(engine, checkpoint, lambda: cluster.remove_node(node, allow_graceful=False), 1)
    assert of_host(hosts(engine)[1])[1] != lost


def test_both_hosts_die(engine: VllmEngine, checkpoint: Checkpoint) -> None:
    pids = [of_host(host)[0] for host in hosts(engine)]
    served(engine, checkpoint, lambda: [os.kill(pid, signal.SIGKILL) for pid in pids], 2)


def test_nothing_is_left(engine: VllmEngine, folder: Path) -> None:
    """Neither processes nor places nor files but the logs; it is the end of the engine."""
    pids = [of_host(host)[0] for host in hosts(engine)] + engines(folder)
    asyncio.run(engine.close())
    assert gone(pids)
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    assert sorted(file.name for file in folder.iterdir()) == [
        "model", "vllm-0.log", "vllm-1.log", "vllm-python",
    ]  # fmt: skip


def test_one_that_dies_says_why(
    cluster: Cluster, checkpoint: Checkpoint, tmp_path: Path, engine: VllmEngine
) -> None:
    python = fake_python(tmp_path, dies="ValueError: no such model")
    said = r"did not start: it ended .*vllm-\d\.log says: ValueError: no such model .*node 127\.0"
    with pytest.raises(UserError, match=said):
        started(checkpoint, tmp_path, python)
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
