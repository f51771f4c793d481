"""What a job is refused for, and what it waits for, before any weights are loaded."""

from __future__ import annotations

import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group_table, remove_placement_group

from axpo.cluster import nodes
from axpo.cluster.nodes import Need, check_nodes, check_room, look, reserved
from axpo.errors import ConfigError, UserError
from tests.support.clusters import cluster_of, fake_python
from tests.support.tiny import tiny_checkpoint

HERE = {
    "versions": {"python": "3.11.7", "axpo": "1.0"},
    "folders": {"/shared": None},
    "model": {"config.json": 10, "model.safetensors": 16_000},
    "memory": 10**9,
    "gpus": {0: (0.01, 85 * 10**9), 1: (0.01, 85 * 10**9)},
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two nodes with room for one each; the head has none."""
    with cluster_of(0, 1, 1):
        yield


@pytest.fixture
def model(tmp_path: Path) -> str:
    tiny_checkpoint(0).save(tmp_path / "model")
    return str(tmp_path / "model")


def places(count: int, what: str = "servers") -> Need:
    return Need(what, f"cluster.{what}", count, 0)


def reserved_now() -> list[str]:
    return [g["state"] for g in placement_group_table().values() if g["state"] != "REMOVED"]


def test_nodes_like_the_driver_s_pass(tmp_path: Path, model: str) -> None:
    """And nothing is left in the folder."""
    folders = [tmp_path / "shared", tmp_path / "run"]
    check_nodes([places(2)], folders, model, fake_python(tmp_path), None)
    assert [list(folder.iterdir()) for folder in folders] == [[], []]


def test_other_versions(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every node is named that has them."""
    monkeypatch.setattr(platform, "python_version", lambda: "2.7.18")
    with pytest.raises(ConfigError) as refused:
        check_nodes([places(2)], [tmp_path], model, None, None)
    lines = str(refused.value).splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith("node 127.0.0.1: python is 3.")
        assert "expected 2.7.18 as where axpo was started: install the same" in line
    assert not list(tmp_path.glob(".axpo-*"))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"versions": {"python": "3.11.7"}}, r"^axpo is None, expected 1\.0"),
        (
            {"folders": {"/shared": "cannot be used there"}},
            r"^--out, cluster\.folder: /shared cannot be used there; name a folder that",
        ),
        ({"model": {}}, r"^model\.path: org/m is not the same there \(config\.json\): put it"),
        ({"memory": 1000}, r"^1\.0 KB of memory are free, the model's files take 16\.0 KB: end"),
        (
            {"gpus": {0: (0.01, 85 * 10**9), 1: (0.5, 85 * 10**9)}},
            r"^Ray has 2 GPUs .* others hold memory of 1: end what does",
        ),
        (
            {"gpus": {0: (0.01, 85 * 10**9), 1: (0.01, 42 * 10**9)}},
            r"^model\.memory_gb: GPU 1 has 42\.0 GB, the recipe's sum was made for 80\.0 GB: lower",
        ),
        ("it is gone", "^it is gone$"),
    ],
)
def test_what_a_node_lacks(found: Any, said: str) -> None:
    free = {"GPU": 2.0}
    assert nodes._problems(HERE, HERE, free, "org/m", 80e9) == []
    there = HERE | found if isinstance(found, dict) else found
    (problem,) = nodes._problems(there, HERE, free, "org/m", 80e9)
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(problem)


def test_a_folder_that_is_another(tmp_path: Path) -> None:
    token = tmp_path / ".axpo-1"
    assert "what that wrote is not in it" in look([token], "org/m", None)["folders"][str(tmp_path)]
    token.write_text("another")
    assert look([token], "org/m", None)["folders"][str(tmp_path)] == "is another folder there"
    token.write_text(token.name)
    assert look([token], "org/m", None)["folders"][str(tmp_path)] is None
    assert list(tmp_path.iterdir()) == [token]


def test_an_environment_of_vllm_that_is_not_there(tmp_path: Path) -> None:
    found = look([], "org/m", "/no/python")["versions"]["vLLM"]
    assert found.startswith("engine.python: /no/python does not run")


@pytest.mark.parametrize(
    ("needs", "said"),
    [
        (
            [places(3)],
            r"cluster\.servers: 3 x 1 for servers are needed, in CPUs; the cluster has 2",
        ),
        ([places(1), places(2, "trainers")], r"cluster\.servers, cluster\.trainers: 1 x 1 for"),
        ([Need("servers", "cluster.servers", 1, 8)], r"1 x 8 .*in GPUs; the cluster has 0 on 0"),
    ],
)
def test_what_can_never_be_is_said_at_once(needs: list[Need], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_room(needs)


def test_places_are_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    first = reserved(places(1), "PACK", 20.0, print)
    assert capsys.readouterr().out == ""
    said: list[str] = []

    def hear(text: str) -> None:
        said.append(text)
        threading.Thread(target=remove_placement_group, args=[first]).start()

    group = reserved(places(2, "trainers"), "SPREAD", 20.0, hear)
    assert said[0] == "waiting for 2 CPUs for trainers: 1 of 2 on 2 nodes are free"
    remove_placement_group(group)


def test_it_ends_where_they_do_not_come() -> None:
    first = reserved(places(1), "PACK", 20.0, print)
    with pytest.raises(UserError, match=r"1 of 2 on 2 nodes are free, and still are after cluster"):
        reserved(places(2), "SPREAD", 0.5, lambda _: None)

    def stop(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reserved(places(2), "SPREAD", 20.0, stop)
    assert reserved_now() == ["CREATED"]
    remove_placement_group(first)


def test_a_node_that_cannot_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'axpo'")

    said = nodes._answer(ray.remote(broken).options(num_cpus=0).remote())
    assert isinstance(said, str) and "axpo does not run there (ModuleNotFoundError" in said
