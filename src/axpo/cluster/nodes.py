"""The nodes of a cluster: whether each can do what the driver does, and whether there is room.

A node is looked at by a small task on it, before any weights are loaded. Nothing here imports
torch.
"""

from __future__ import annotations

import os
import platform
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray._private import state
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import axpo
from axpo import stopping
from axpo.engines.vllm.process import find_installation
from axpo.errors import ConfigError, UserError
from axpo.folder import files_digest, writing
from axpo.wording import in_units

PACKAGES = ("axpo", "torch", "transformers", "ray")
"""Packages that need the same version everywhere."""
LOOK_SECONDS = 120.0
"""Seconds within which a node must have looked at itself: Python starts there and reads files."""
FREE = 0.05
"""The share of a GPU's memory that may be taken on one that counts as free: drivers take some."""


@dataclass(frozen=True, slots=True)
class Need:
    """Places that a job needs: `count` of `gpus` GPUs each, or without GPUs of a CPU each.

    `what` names what runs in them, and `key` the setting that says how many there are.
    """

    what: str
    key: str
    count: int
    gpus: int

    @property
    def kind(self) -> str:
        """What a place takes: "GPU" or "CPU"."""
        return "GPU" if self.gpus else "CPU"

    @property
    def each(self) -> int:
        """How many of them a place takes."""
        return self.gpus or 1

    @property
    def whole(self) -> int:
        """How many of them all places take."""
        return self.count * self.each


def check_room(needs: Sequence[Need]) -> None:
    """Raise `ConfigError` where the cluster has not so much in all, whatever runs there now."""
    for kind in {need.kind for need in needs}:
        having = [node["Resources"].get(kind, 0) for node in _nodes(kind)]
        own = [need for need in needs if need.kind == kind]
        for need in own:
            if sum(size // need.each for size in having) < need.count:
                raise ConfigError(_too_much(own, having, kind))
        if sum(need.whole for need in own) > sum(having):
            raise ConfigError(_too_much(own, having, kind))


def _too_much(needs: Sequence[Need], having: Sequence[float], kind: str) -> str:
    wanted = " and ".join(f"{need.count} x {need.each} for {need.what}" for need in needs)
    return (
        f"{', '.join(need.key for need in needs)}: {wanted} are needed, in {kind}s; the cluster "
        f"has {sum(having):g} on {len(having)} nodes ({', '.join(f'{n:g}' for n in having)}): join "
        "more nodes (ray start --address HEAD:PORT), or lower the settings"
    )


def reserved(
    need: Need, strategy: str, seconds: float, say: Callable[[str], None]
) -> PlacementGroup:
    """The places of `need`, all at once; `strategy` is Ray's.

    While there is no room, `say` hears what is waited for. Raises `UserError` after so many
    `seconds`.
    """
    bundles: list[dict[str, float]] = [{need.kind: need.each}] * need.count
    group = placement_group(bundles, strategy=strategy)
    deadline, said = time.monotonic() + seconds, ""
    try:
        while not group.wait(1):
            stopping.check()
            told = _waiting(need)
            if time.monotonic() > deadline:
                raise UserError(
                    f"{told}, and still are after cluster.start_seconds = {seconds:g}: end what "
                    "takes the others (ray status), join more nodes, or lower the settings"
                )
            if told != said:
                say(said := told)
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _waiting(need: Need) -> str:
    nodes = _nodes(need.kind)
    free = ray.available_resources().get(need.kind, 0)
    everything = sum(node["Resources"][need.kind] for node in nodes)
    each = f" ({need.each} on a node each)" if need.each > 1 else ""
    return (
        f"waiting for {need.whole} {need.kind}s for {need.what}{each}: {free:g} of "
        f"{everything:g} on {len(nodes)} nodes are free"
    )


def check_nodes(
    needs: Sequence[Need],
    folders: Sequence[Path],
    model: str,
    python: str | None,
    card: float | None,
) -> None:
    """Look at every node that may be used: its packages, `python` of vLLM's environment, `folders`
    and the `model`'s, which all nodes must see, its memory and its GPUs, which must have as many
    bytes as the `card` for which the recipe's sum was made.

    Raises `ConfigError` that names each node with what was found and expected, and the next step.
    """
    check_room(needs)
    kinds = {need.kind for need in needs}
    nodes = {node["NodeID"]: node for kind in kinds for node in _nodes(kind)}
    free = state.available_resources_per_node()
    model = str(Path(model).absolute()) if Path(model).is_dir() else model
    tokens = [folder.absolute() / f".axpo-{secrets.token_hex(8)}" for folder in folders]
    try:
        for token in tokens:
            with writing(token.parent):
                token.parent.mkdir(parents=True, exist_ok=True)
                token.write_text(token.name)
        mine = look(tokens, model, python)
        asked = {id: _asked(id, tokens, model, python) for id in nodes}
        problems = [
            f"node {nodes[id]['NodeManagerAddress']}: {problem}"
            for id, ref in asked.items()
            for problem in _problems(_answer(ref), mine, free.get(id, {}), model, card)
        ]
    finally:
        for token in tokens:
            token.unlink(missing_ok=True)
    if problems:
        raise ConfigError("\n".join(problems))


def look(tokens: Sequence[Path], model: str, python: str | None) -> dict[str, Any]:
    """What there is on the machine where this runs; the driver wrote `tokens` into its folders."""
    package = Path(axpo.__file__).parent
    found: dict[str, Any] = {"versions": {"python": platform.python_version()}}
    found["versions"] |= {name: version(name) for name in PACKAGES}
    found["versions"]["axpo's code"] = files_digest(sorted(package.rglob("*.py")))
    if python is not None:
        found["versions"]["vLLM"] = _vllm(python)
    found["folders"] = {str(token.parent): _folder(token) for token in tokens}
    files = sorted(Path(model).glob("*")) if Path(model).is_dir() else []
    found["model"] = {file.name: file.stat().st_size for file in files}
    with Path("/proc/meminfo").open() as lines:
        sizes = dict(line.split(":") for line in lines)
    found["memory"] = int(sizes["MemAvailable"].split()[0]) * 1024
    found["gpus"] = _gpus()
    return found


def _vllm(python: str) -> str:
    try:
        found = find_installation(python)
    except ConfigError as error:
        return str(error)
    return f"{found.version} for {'CPUs' if found.cpu else 'GPUs'}"


def _folder(token: Path) -> str | None:
    """What is wrong with the folder of `token`; None if it is the driver's and can be written."""
    try:
        if token.read_text() != token.name:
            return "is another folder there"
        own = token.with_name(f"{token.name}-{os.getpid()}")
        own.touch()
        own.unlink()
    except FileNotFoundError:
        return "is not the driver's there: what that wrote is not in it"
    except OSError as error:
        return f"cannot be used there ({error})"
    return None


def _gpus() -> dict[int, tuple[float, int]]:
    """By GPU, the share of its memory that is taken, by whatever process, and its bytes."""
    wanted = "--query-gpu=index,memory.used,memory.total"
    try:
        said = subprocess.run(
            ["nvidia-smi", wanted, "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [[int(value) for value in line.split(",")] for line in said.splitlines()]
    return {index: (used / whole, whole * 2**20) for index, used, whole in rows}


def _asked(id: str, *given: Any) -> Any:
    """`look` on the node `id`, whatever runs there."""
    there = NodeAffinitySchedulingStrategy(id, soft=False)
    task: Any = ray.remote(look)
    return task.options(num_cpus=0, scheduling_strategy=there).remote(*given)


def _answer(ref: Any) -> dict[str, Any] | str:
    """What the node found, or why it could not look."""
    try:
        return ray.get(ref, timeout=LOOK_SECONDS)
    except RayTaskError as error:
        return (
            f"axpo does not run there ({error.cause!r}): install the driver's environment under "
            "the same path"
        )
    except GetTimeoutError:
        return f"it did not answer within {LOOK_SECONDS:g} s: look at it, or take it out (ray stop)"
    except RayError as error:
        return f"it is gone ({str(error).splitlines()[0]}): start it again (ray start)"


def _problems(
    found: dict[str, Any] | str,
    mine: Mapping[str, Any],
    free: Mapping[str, float],
    model: str,
    card: float | None,
) -> list[str]:
    """What a node that `found` this lacks of what the driver has, whose own is `mine`; Ray has
    `free` of it to give."""
    if isinstance(found, str):
        return [found]
    said = [
        f"{name} is {found['versions'].get(name)}, expected {expected} as where axpo was started: "
        "install the same environment there"
        for name, expected in mine["versions"].items()
        if found["versions"].get(name) != expected
    ]
    said += [
        f"--out, cluster.folder: {folder} {wrong}; name a folder that all nodes share, and mount "
        "it there"
        for folder, wrong in found["folders"].items()
        if wrong is not None
    ]
    if found["model"] != mine["model"]:
        differing = found["model"].items() ^ mine["model"].items()
        said.append(
            f"model.path: {model} is not the same there ({min(name for name, _ in differing)}): "
            "put it into a folder that all nodes share, or copy it there"
        )
    needed = sum(mine["model"].values())
    if found["memory"] < needed:
        said.append(
            f"{in_units(found['memory'])} of memory are free, the model's files take "
            f"{in_units(needed)}: end what runs there, or take the node out (ray stop)"
        )
    small = [(index, size) for index, (_, size) in found["gpus"].items() if size < (card or 0)]
    said += [
        f"model.memory_gb: GPU {index} has {in_units(size)}, the recipe's sum was made for "
        f"{in_units(card or 0)}: lower it to what the smallest GPU has, or start Ray there without "
        "this one (CUDA_VISIBLE_DEVICES)"
        for index, size in small
    ]
    taken = [index for index, (used, _) in found["gpus"].items() if used > FREE]
    if len(found["gpus"]) - len(taken) < free.get("GPU", 0) and found["gpus"]:
        said.append(
            f"Ray has {free['GPU']:g} GPUs of it to give, but others hold memory of "
            f"{', '.join(map(str, taken))}: end what does (nvidia-smi), or start Ray there without "
            "these (CUDA_VISIBLE_DEVICES, ray start --num-gpus)"
        )
    return said


def _nodes(kind: str) -> list[dict[str, Any]]:
    """The nodes that have some of `kind`."""
    return [n for n in ray.nodes() if n["Alive"] and n["Resources"].get(kind, 0) > 0]
