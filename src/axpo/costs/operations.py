"""What a step of a recipe computes and reads at most, and how long a device takes at least.

Every rollout and continuation is assumed to reach its token limit on a path of its own, which is
what the engine samples. Training computes shared prefixes once, so it takes less. Pictures of tool
results are left out, because their number is not known before.
"""

from __future__ import annotations

from dataclasses import dataclass

from axpo.costs import memory
from axpo.costs.estimate import MemoryEstimate
from axpo.costs.flops import ForwardPass, causal_pairs, forward_flops, vision_flops
from axpo.costs.sizes import Loop
from axpo.models.families import family_of


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU by its data sheet: dense bfloat16 operations and bytes of memory traffic per second."""

    name: str
    operations: float
    traffic: float


DEVICES = (
    Device("H200", 989e12, 4.8e12),
    Device("H100", 989e12, 3.35e12),
    Device("A100", 312e12, 2.04e12),
    Device("L40S", 362e12, 0.864e12),
)
"""GPUs by NVIDIA's data sheets (SXM with 80 GB or more if there are several)."""
REFERENCE = DEVICES[1]
UTILISATION = 0.4
"""The share of a device's peak for which times are given; the real share depends on the shapes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """The floating-point operations of `sampling` and `training`; decoding reads `read` bytes."""

    sampling: int
    training: int
    read: int

    def seconds(self, device: Device) -> tuple[float, float]:
        """The seconds of sampling (by operations or by traffic, whichever take longer) and of
        training, at `UTILISATION`."""
        sampling = max(self.sampling / device.operations, self.read / device.traffic)
        return sampling / UTILISATION, self.training / device.operations / UTILISATION


def step_operations(loop: Loop, found: MemoryEstimate, at_once: int) -> Operations:
    """The operations of one step of the loop whose estimate is `found`, with `at_once` rollouts
    sampled at once."""
    config, sizes = loop.config, found.sizes
    groups, answer = config.sft.batch, sizes.path - sizes.prompt
    paths = config.sft.batch
    if loop.kind == "rl":
        groups, paths = config.rl.questions, sizes.rows
    forward, pictures = _forward(loop, found, groups, paths, answer)
    training = _passes(loop, True) * forward + _passes(loop, found.pictures > 0) * pictures
    if loop.kind == "sft":
        return Operations(sampling=0, training=training, read=0)
    read = _read(loop, found, paths, answer, at_once)
    return Operations(sampling=forward + pictures, training=training, read=read)


def validation_operations(loop: Loop, found: MemoryEstimate, at_once: int) -> Operations:
    """Of one evaluation while training (`eval.every`), which samples and trains nothing."""
    settings, answer = loop.config.eval, loop.config.rollout.max_tokens
    groups = settings.validation_questions
    paths = groups * settings.validation_samples
    forward, pictures = _forward(loop, found, groups, paths, answer)
    at_once = min(at_once, found.sizes.rows)
    read = _read(loop, found, paths, answer, at_once)
    return Operations(sampling=forward + pictures, training=0, read=read)


def _forward(
    loop: Loop, found: MemoryEstimate, groups: int, paths: int, answer: int
) -> tuple[int, int]:
    """Operations of one forward pass over the prompts of `groups` and `paths` of `answer` tokens
    after them; of the text model and of the vision tower."""
    config = loop.model.config
    dimensions, prompt = family_of(config).dimensions(config), found.sizes.prompt
    answers = [(prompt, answer)] * paths
    work = ForwardPass(
        tokens=groups * prompt + paths * answer,
        pairs=causal_pairs([(0, prompt)] * groups + answers),
        rows=paths * answer,
        pictures=(),
    )
    pictures = groups * vision_flops(dimensions, found.sizes.pictures)
    return forward_flops(dimensions, work), pictures


def _read(loop: Loop, found: MemoryEstimate, paths: int, answer: int, at_once: int) -> int:
    """Bytes that decoding `paths` of `answer` tokens reads, `at_once` of them beside each other."""
    size, text = loop.value_size, loop.text
    waves = -(-paths // min(paths, at_once))
    pairs = causal_pairs([(found.sizes.prompt, answer)] * paths)
    return waves * answer * found.counts.text * size + memory.keys_values(text, pairs, size)


def _passes(loop: Loop, trained: bool) -> int:
    """The number of forward passes that cost as much as training one token; backward to the inputs
    costs one, backward to the weights another."""
    config, passes = loop.config, 1
    if trained:
        passes += 1 if config.model.lora is not None else 2
        passes += config.model.gradient_checkpointing
    if loop.kind == "rl":
        passes += config.algorithm.kl > 0
        passes += config.rl.old_logprobs == "recompute"
    return passes
