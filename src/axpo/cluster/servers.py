"""vLLM servers on the nodes of a cluster: each is started by a Ray actor there, its host.

A host is a plain actor, for a server ends with the thread that started it. Ray restarts none: the
pool of the servers sees that one is lost, and has it started again by its host or, where that is
gone, by a new one wherever there is room.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from axpo.cluster.nodes import Need, reserved
from axpo.engines.vllm.process import (
    STOP_SECONDS,
    Installation,
    Place,
    Process,
    ServerProcess,
    free_port,
)

ALIVE = {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "0"}}
"""Ray would kill a server at the end of its host, and the server's own processes would stay. As it
is, the server hears that its host has ended and ends them."""


class Host:
    """Runs on a node: starts one server there."""

    def __init__(self, installation: Installation, arguments: Sequence[str], log: Path) -> None:
        self._installation, self._arguments, self._log = installation, arguments, log
        self._node = ray.util.get_node_ip_address()
        self._process: ServerProcess | None = None

    def start(self, threads: str | None) -> str:
        """Start the server, or kill it and start it anew; its url. `threads` is OMP_NUM_THREADS as
        the driver has it: Ray puts another here."""
        if self._process is not None:
            self._process.restart()
            return self._process.url
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        port = free_port(self._node)
        self._process = ServerProcess(
            self._installation, self._arguments, port, self._log, host=self._node
        )
        self._process.start()
        return self._process.url

    def failure(self) -> str | None:
        """Why the server will never be ready; None while it may still become ready."""
        said = self._process.failure() if self._process else None
        return said and f"{said} (on node {self._node})"

    def stop(self) -> None:
        """End the server."""
        if self._process is not None:
            self._process.stop()


class RemoteProcess:
    """The driver's side of the server in place `index` of `hosts`.

    Only `stop` waits for its host: what is asked of it is looked at when it is there.
    """

    def __init__(self, hosts: Hosts, index: int, log: Path) -> None:
        self._hosts, self._index, self._log = hosts, index, log
        self._url = ""
        self._host: Any = None
        self._starting: Any = None
        self._asked: Any = None

    @property
    def url(self) -> str:
        """Where the server listens; "" while its host has not said so."""
        if not self._url and _answered(self._starting):
            with suppress(RayError):
                self._url = str(ray.get(self._starting))
        return self._url

    def start(self) -> None:
        """Place a host, which starts the server."""
        if self._host is not None:
            ray.kill(self._host)
        self._host = self._hosts.new(self._index, self._log)
        self._ask_to_start()

    def restart(self) -> None:
        """Have the server started anew; a host that has not even answered yet is replaced."""
        if _answered(self._starting):
            self._ask_to_start()
        else:
            self.start()

    def failure(self) -> str | None:
        """What the host said when it was asked last, and ask it again.

        A host that is gone, or whose node is, is replaced.
        """
        if not _answered(self._asked):
            return None
        try:
            ray.get(self._starting)
            said: Any = ray.get(self._asked)
        except RayActorError as error:
            if error.actor_init_failed:
                return f"its host did not start ({error})"
            self.start()
            return None
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            return f"its host cannot start it ({cause!r})"
        self._asked = self._host.failure.remote()
        return said

    def stop(self) -> None:
        """End the server and its host."""
        if self._host is not None:
            if _answered(self._starting):
                with suppress(RayError):
                    ray.get(self._host.stop.remote(), timeout=2 * STOP_SECONDS)
            ray.kill(self._host)
        self._hosts.release(self._index)

    def _ask_to_start(self) -> None:
        self._url = ""
        self._starting = self._host.start.remote(os.environ.get("OMP_NUM_THREADS"))
        self._asked = self._host.failure.remote()


class Hosts:
    """The places of servers in `group`, which is given back when all of them were released."""

    def __init__(
        self,
        group: PlacementGroup,
        installation: Installation,
        arguments: Sequence[str],
        gpus: int,
    ) -> None:
        self._group, self._gpus = group, gpus
        self._started_with = installation, tuple(arguments)
        self._held = set(range(group.bundle_count))

    def new(self, index: int, log: Path) -> Any:
        """A new host in place `index`, wherever that is now."""
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=index
        )
        options: dict[str, Any] = {"num_gpus": self._gpus, "num_cpus": 0 if self._gpus else 1}
        return (
            ray.remote(Host)
            .options(**options, max_restarts=0, scheduling_strategy=strategy, runtime_env=ALIVE)
            .remote(*self._started_with, log)
        )

    def release(self, index: int) -> None:
        """Place `index` is needed no more."""
        if index in self._held:
            self._held.remove(index)
            if not self._held:
                remove_placement_group(self._group)


def placing(need: Need, seconds: float, say: Callable[[str], None]) -> Place:
    """Makes as many servers as `need` says, spread over the nodes; `say` hears what they wait for,
    at most so many `seconds`."""

    def make(installation: Installation, arguments: Sequence[str], logs: Path) -> Sequence[Process]:
        group = reserved(need, "SPREAD", seconds, say)
        say(f"starting {need.count} vLLM server{'s' if need.count > 1 else ''}")
        hosts = Hosts(group, installation, arguments, need.gpus)
        folder = logs.absolute()
        return [RemoteProcess(hosts, i, folder / f"vllm-{i}.log") for i in range(need.count)]

    return make


def _answered(ref: Any) -> bool:
    """Whether what was asked for is there, or never will be."""
    return bool(ray.wait([ref], timeout=0)[0])
