"""`axpo eval` and `axpo bench` on a cluster's servers: the figures of one process, and nothing left
after a Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group_table

from axpo import api
from axpo.checks import check_names
from axpo.config import Config, load_config, parse_config
from axpo.errors import ConfigError
from tests.support.benchmarks import written
from tests.support.clusters import cluster_of, engines, fake_python, gone
from tests.support.made_rows import vstar_rows

VALUES: dict[str, Any] = {
    "model": {"path": "lab-base"},
    "rollout": {"max_turns": 2, "max_turn_tokens": 24, "max_tokens": 96},
    "eval": {"questions": 4, "samples": 2, "k": 2},
    "tools": {"python": {"level": "unsafe"}},
}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Cluster]:
    """A head without room and two nodes with room for one server each."""
    with cluster_of(0, 1, 1) as made:
        yield made


def on_cluster(python: str, **more: Any) -> Config:
    engine = {"name": "vllm", "python": python, "slots": 4, "start_seconds": 90.0}
    return parse_config(
        VALUES | {"engine": engine, "cluster": {"address": "auto", "servers": 2}} | more
    )


def figures(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ("model", "step")}


def test_the_figures_are_those_of_one_process(tmp_path: Path) -> None:
    """Each of the two servers answers, and no weights are loaded here."""
    local = api.evaluate(parse_config(VALUES | {"engine": {"slots": 8}}), tmp_path / "local")
    config = on_cluster(fake_python(tmp_path))
    assert not config.loads and config.at_once == 8
    found = api.evaluate(config, tmp_path / "out")
    assert figures(found) == figures(local)
    assert found["unscored"] == 0
    lines = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert {(line["servers_up"], line["servers_down"]) for line in lines} == {(2, 0)}
    pids = engines(tmp_path / "out/vllm")
    assert len(pids) == 2 and gone(pids)
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_a_bench_starts_them_once(tmp_path: Path) -> None:
    """For all that it measures of a model; its answers are counted as one process's."""
    on = f"vstar={written(tmp_path / 'vstar.parquet', vstar_rows())}"
    given: dict[str, Any] = {"samples": 1, "questions": 2, "no_tools": True}
    tools = {"rollout": VALUES["rollout"] | {"tools": ["image_zoom_in_tool"]}}
    config = on_cluster(fake_python(tmp_path), **tools)
    found = api.bench(config, on, tmp_path / "out", **given)
    local = parse_config(VALUES | tools | {"engine": {"slots": 8}})
    assert found["benchmarks"] == api.bench(local, on, tmp_path / "local", **given)["benchmarks"]
    pids = engines(tmp_path / "out/engine/tools/vllm")
    assert len(pids) == 2 and gone(pids)


def test_a_diagnosis_needs_the_weights_here(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.load.*set eval\.load = true"):
        api.diagnose(on_cluster(fake_python(tmp_path)), tmp_path / "out")
    assert on_cluster(fake_python(tmp_path), eval={"load": True}).loads


def test_what_has_no_effect_is_refused() -> None:
    for setting, said in (("servers=2", "cluster.servers"), ("port=80", "a free port")):
        with pytest.raises(ConfigError, match=rf"engine\.{setting[:4]}.*no effect.*{said}"):
            load_config("engine.name=vllm", "engine.python=p", f"engine.{setting}", "cluster={}")
    with pytest.raises(ConfigError, match=r"engine\.name: 'transformers' samples with weights in"):
        check_names(load_config("cluster={}"), "eval")


def test_ctrl_c_leaves_nothing(tmp_path: Path, cluster: Cluster) -> None:
    """While it samples: processes, places and files are gone, and the same command goes on."""
    python = fake_python(tmp_path, delay=0.5)
    file, out = tmp_path / "recipe.toml", tmp_path / "out"
    values = on_cluster(python).model_dump(mode="json", exclude_unset=True)
    file.write_text("\n".join(f"{name} = {_toml(value)}" for name, value in values.items()))
    process = subprocess.Popen(
        [sys.executable, "-m", "axpo", "eval", str(file), "--out", str(out), "eval.questions=40"],
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob("evaluation/*.jsonl")) and not (out / "metrics.jsonl").is_file():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.1)
    pids = engines(out / "vllm")
    assert len(pids) == 2 and not gone(pids, 0.0)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "Traceback" not in said and "the same command" in said
    assert gone(pids)
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    assert not list(out.rglob("*.safetensors")) and not list(out.glob(".axpo-*"))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(one)}" for name, one in value.items()) + "}"
    return json.dumps(value)
