"""How long a step is expected to take, by formula: operations, memory traffic, exchange.

Unlike the sums of memory these are no bounds: trajectories have an expected length, and devices
reach an assumed share of their data sheets. Nothing has been measured on GPUs, so each constant
here is an assumption, but for what a data sheet says. Tools' and judges' time is left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from axpo.costs import memory
from axpo.costs.account import Account
from axpo.costs.flops import causal_pairs
from axpo.costs.operations import UTILISATION, Device, step_operations
from axpo.costs.sizes import TREES, Sizes

LENGTH = 0.5
"""The share of its token limit that a trajectory takes; the longest of a step takes all of it."""
PROMPT, PICTURES = 3072, 2048
"""The tokens of a prompt, and of its pictures among them, where longer ones are allowed."""
TRAFFIC = 0.6
"""The share of a card's memory traffic that decoding reaches."""
BUSY, BUSY_HELD = 0.75, 0.97
"""How full ranks are with layers gathered pass by pass, and with held ones, where an update has
enough trees (`sizes.TREES`): simulated, of trees of 60K and 100K tokens (docs/performance.md)."""
NODE, LINK, NETWORK = 8, 450e9, 50e9
"""The GPUs of a node; the bytes per second that one of them receives from others of its node
(NVLink of an H100, by its data sheet, each way), and from other nodes (400 Gb/s InfiniBand)."""
STORAGE = 2e9
"""Bytes per second of the folder through which weights reach servers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The seconds of a step's parts; with `ahead`, it trains while the next one is sampled."""

    sampling: float
    tail: float
    training: float
    sending: float
    ahead: bool

    @property
    def total(self) -> float:
        """The seconds of the step."""
        sampled = max(self.sampling, self.tail)
        both = max(sampled, self.training) if self.ahead else sampled + self.training
        return both + self.sending


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What one of several ranks exchanges: the bytes that it gathers and reduces for each training
    pass, and once for each update."""

    gathered: int
    reduced: int
    gathered_once: int
    reduced_once: int


def exchange(told: Account) -> Exchange:
    """The bytes that ranks exchange; 0 with one rank. A layer is gathered for the forward and for
    the backward pass, and reduced in float32."""
    counts, size, cluster = told.found.counts, told.loop.value_size, told.loop.config.cluster
    ranks = 1 if cluster is None else cluster.shard or cluster.trainers
    hold = cluster is not None and cluster.hold
    models = 1 + told.loop.separate

    def from_others(count: int) -> int:
        return count * (ranks - 1) // ranks

    layers, gradients = counts.layers * size, counts.trained_layers * memory.FLOAT32
    return Exchange(
        gathered=0 if hold else from_others(2 * layers),
        reduced=0 if hold else from_others(gradients),
        gathered_once=from_others(models * (counts.root * size + hold * layers)),
        reduced_once=from_others(counts.trained_root * memory.FLOAT32 + hold * gradients),
    )


def usual_sizes(told: Account) -> Sizes:
    """The sizes of a step as they are expected."""
    sizes = told.found.sizes
    prompt, answer = min(sizes.prompt, PROMPT), sizes.path - sizes.prompt
    pictures, path = min(sizes.pictures, PICTURES), prompt + round(LENGTH * answer)
    return replace(sizes, prompt=prompt, pictures=pictures, path=path)


def expected_step(told: Account, device: Device) -> Step:
    """The seconds that a step is expected to take on cards of this kind."""
    config, usual = told.loop.config, usual_sizes(told)
    work = step_operations(told.loop, replace(told.found, sizes=usual), 1)
    ranks, busy = 1, 1.0
    if config.cluster is not None:
        ranks, needed = config.cluster.trainers, TREES * config.cluster.trainers
        busy = BUSY_HELD if config.cluster.hold else BUSY
        busy = 1.0 if ranks == 1 else busy * min(1.0, usual.trees / needed)
    training = work.training / ranks / busy / device.operations / UTILISATION
    training = max(training, _exchanging(told, usual))
    sampling = tail = sending = 0.0
    if told.loop.kind == "rl":
        sampling, tail = _sampling(told, usual, work.sampling, device)
        sent = told.found.counts.trained * told.loop.value_size
        if config.model.lora is None:
            sent = told.found.counts.all * told.loop.value_size
        sending = 2 * sent / STORAGE  # written, then read
    ahead = told.loop.kind == "rl" and config.rl.max_staleness > 0
    return Step(sampling=sampling, tail=tail, training=training, sending=sending, ahead=ahead)


def _exchanging(told: Account, usual: Sizes) -> float:
    """The seconds of a step in which ranks exchange bytes, which overlaps with computing."""
    config, found, cluster = told.loop.config, exchange(told), told.loop.config.cluster
    if cluster is None:
        return 0.0
    rl = told.loop.kind == "rl"
    updates = config.rl.updates if rl else 1
    answers = usual.rows if rl else usual.trees
    tokens = updates * usual.trees * usual.prompt + answers * (usual.path - usual.prompt)
    passes = max(updates, tokens / cluster.trainers / told.found.budget)
    # A forward pass alone gathers half of what a training pass does.
    plain = 0.0
    if rl:
        plain = 0.5 * ((config.algorithm.kl > 0) + (config.rl.old_logprobs == "recompute"))
    each = (1 + plain) * found.gathered + found.reduced
    once = found.gathered_once + found.reduced_once
    within = (cluster.shard or cluster.trainers) <= NODE
    return (passes * each + updates * once) / (LINK if within else NETWORK)


def _sampling(told: Account, usual: Sizes, operations: int, device: Device) -> tuple[float, float]:
    """The seconds of a step's sampling with all places taken, and those of its longest path."""
    text, servers, cluster = told.loop.text, told.servers, told.loop.config.cluster
    size, slots = told.loop.value_size, told.loop.config.engine.slots
    count, weights, token = 1, told.found.counts.text * size, memory.keys_values(text, 1, size)
    at_once, cards = slots, 1 if cluster is None else cluster.gpus_per_server
    answer, longest = usual.path - usual.prompt, told.found.sizes.path - told.found.sizes.prompt
    if servers is not None:
        count, weights, token = servers.count, servers.weights, servers.token
        # A rollout on its way has half of its tokens.
        at_once = min(slots, servers.room // (usual.prompt + answer // 2))
    rows = -(-usual.rows // count)
    at_once = max(1, min(rows, at_once))
    traffic = device.traffic * TRAFFIC
    read = rows / at_once * answer * weights + token * causal_pairs([(usual.prompt, answer)] * rows)
    computed = operations / count / cards / device.operations / UTILISATION
    alone = longest * weights + token * causal_pairs([(usual.prompt, longest)])
    return max(read / traffic, computed), alone / traffic
