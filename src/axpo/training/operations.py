"""What a step of a recipe computes and reads at most, and how long a device takes at least.

Every rollout and continuation is taken at its token limit and on a path of its own, which is what
the engine samples; training computes shared prefixes once, so it is below this. Pictures of tool
results are left out: how many there are nobody knows before.
"""

from __future__ import annotations

from dataclasses import dataclass

from axpo.config import Config
from axpo.models.flops import Sizes, Work, causal_pairs, forward_flops, vision_flops
from axpo.training import memory
from axpo.training.estimate import Estimate, Kind, Shaped


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet: dense bfloat16 operations and bytes of memory traffic a second."""

    name: str
    operations: float
    traffic: float


DEVICES = (
    Device("H200", 989e12, 4.8e12),
    Device("H100", 989e12, 3.35e12),
    Device("A100", 312e12, 2.04e12),
    Device("L40S", 362e12, 0.864e12),
)
"""NVIDIA's data sheets (SXM with 80 GB or more where there are several)."""
REFERENCE = DEVICES[1]
UTILISATION = 0.4
"""Share of a device's peak at which times are stated; what is reached depends on the shapes."""


@dataclass(frozen=True, slots=True)
class Operations:
    """`sampling` and `training` in floating-point operations; `read`, bytes that decoding reads."""

    sampling: int
    training: int
    read: int

    def seconds(self, device: Device) -> tuple[float, float]:
        """Of sampling (the larger of operations and traffic) and of training at `UTILISATION`."""
        sampling = max(self.sampling / device.operations, self.read / device.traffic)
        return sampling / UTILISATION, self.training / device.operations / UTILISATION


def step_operations(
    config: Config, kind: Kind, shaped: Shaped, found: Estimate, at_once: int
) -> Operations:
    """Of one step of `config`, whose sizes are `found`, with `at_once` rollouts sampled at once."""
    some, text = found.sizes, shaped.model.config.text_config
    sizes = Sizes.of(shaped.model.config)
    groups, answer = config.sft.batch, some.path - some.prompt
    paths = config.sft.batch
    if kind == "rl":
        groups, paths = config.rl.questions, some.rows
    pieces = [(0, some.prompt)] * groups + [(some.prompt, answer)] * paths
    tokens = groups * some.prompt + paths * answer
    forward = forward_flops(sizes, Work(tokens, causal_pairs(pieces), paths * answer, ()))
    pictures = groups * vision_flops(sizes, some.pictures)
    training = _passes(config, kind, True) * forward
    training += _passes(config, kind, found.pictures > 0) * pictures
    if kind == "sft":
        return Operations(0, training, 0)
    size = 4 if config.model.dtype == "float32" else 2
    waves = -(-paths // min(paths, at_once))
    seen = paths * causal_pairs([(some.prompt, answer)])
    read = waves * answer * (found.counts.text * size) + memory.keys_values(text, seen, size)
    return Operations(forward + pictures, training, read)


def _passes(config: Config, kind: Kind, trained: bool) -> int:
    """Forward passes that one token's training is worth: backward to the inputs is one more, to
    weights another."""
    passes = 1
    if trained:
        passes += 1 if config.model.lora is not None else 2
        passes += config.model.gradient_checkpointing
    if kind == "rl":
        passes += config.algorithm.kl > 0
        passes += config.rl.old_logprobs == "recompute"
    return passes
