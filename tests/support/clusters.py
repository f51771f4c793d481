"""Clusters of several nodes on this machine, and vLLM servers on them that are fakes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

_SERVER = """#!{python}
import sys
if sys.argv[1] == "-c":
    print("gpu 0.32.0")
    sys.exit()
import signal, subprocess, threading
engine = subprocess.Popen(["sleep", "600"])  # vLLM has a process of its own as well
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: (engine.kill(), ended.set()))
sys.path[:0] = {path!r}
if {dies!r}:
    engine.kill()
    sys.exit({dies!r})
from axpo.models.loading import load_checkpoint
from tests.support.fake_vllm import FakeVllm
words = sys.argv
given = {{name: words[words.index(name) + 1] for name in ("--host", "--port", "--model")}}
assert given["--host"] == "127.0.0.1"
fake = FakeVllm(load_checkpoint(given["--model"]), port=int(given["--port"]))
fake.delay = {delay}
print("engine", engine.pid, flush=True)
ended.wait()
"""


def fake_python(folder: Path, dies: str = "", delay: float = 0.0) -> str:
    """A program in `folder` that is started as vLLM's python is, and is a fake server whose answers
    take at least `delay` seconds; or one that `dies` with these words."""
    file = folder / "vllm-python"
    path = [entry for entry in sys.path if entry]
    file.write_text(_SERVER.format(python=sys.executable, path=path, dies=dies, delay=delay))
    file.chmod(0o755)
    return str(file)


def add_node(cluster: Cluster, cpus: int) -> Any:
    """One more node of the cluster, which is there at the end."""
    own: dict[str, Any] = {"object_store_memory": 100_000_000, "include_dashboard": False}
    if cluster.head_node is None:  # A node's end is seen soon; workers run beside the tests.
        own["_system_config"] = {
            "health_check_period_ms": 500, "health_check_failure_threshold": 4,
            "worker_niceness": 0,
        }  # fmt: skip
    return cluster.add_node(num_cpus=cpus, **own)


@contextmanager
def cluster_of(*nodes: int) -> Iterator[Cluster]:
    """A cluster whose nodes have so many CPUs each, which this process has joined."""
    cluster = Cluster()
    try:
        for cpus in nodes:
            add_node(cluster, cpus)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def engines(folder: Path) -> list[int]:
    """The processes of the fakes' own."""
    logs = "".join(log.read_text() for log in folder.glob("vllm-*.log"))
    return [int(line.split()[1]) for line in logs.splitlines() if line.startswith("engine ")]


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pids: list[int], seconds: float = 10.0) -> bool:
    """Whether all end within so many seconds."""
    deadline = time.monotonic() + seconds
    while any(map(running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
