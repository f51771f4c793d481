"""A random Qwen3-VL of 5M parameters and trajectory trees of known shape: what is trained.

The tree is AXPO's: 8 rollouts of one question, one of which is cut inside its text and grows 4
continuations. Tokens are random, pictures are noise, and every policy token is credited but the
failed rest of the source, which AXPO masks. Responses vary by a quarter around their mean.

Real models are larger. Widths are chosen so that the vision tower costs, against the text model,
about what it does in the real family (between 8B and 2B); `flops` gives a comparison's ratio by
operations for this model and for the 8B one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from axpo.models.families import family_of
from axpo.models.loading import Checkpoint, Processor, token_id
from axpo.pictures import picture_digest
from axpo.tools.zoom import SPEC
from axpo.training.packing import OldLogprobs
from axpo.tree import Credit, Group, ImageSpan, Origin, Segment, Stream, Trajectory
from lab_base.tokenizer import build_tokenizer

PATCH, MERGE = 16, 2
TOKEN_SIDE = PATCH * MERGE
"""Pixels a side that one image token covers."""
VOCABULARY = 2048
WORDS = range(1024, VOCABULARY)
"""Ids of plain words, above all special tokens."""
CROP_SHARE = 4
"""A crop has this many times fewer tokens than the question's picture."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One question's tree: `response` is the mean of policy tokens per path.

    With `turns` t > 0 every second rollout and every continuation calls a tool t times: its
    policy tokens are cut by t crops of image_tokens / 4. The prompt has `words` beside its picture
    (none with 0 image tokens). Each of the first `sources` rollouts has `continuations`, after the
    share `frozen` of its text before the first call (of the mean text if it is longer).
    """

    image_tokens: int
    response: int
    turns: int = 0
    rollouts: int = 8
    continuations: int = 4
    words: int = 32
    sources: int = 1
    frozen: float = 0.5


def training_checkpoint(
    device: str = "cpu",
    *,
    stock: bool = False,
    seed: int = 0,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The model in memory, fp32; `stock` leaves transformers' own kernels in place.

    `text` and `vision` are sizes of another model.
    """
    tokenizer = build_tokenizer([SPEC])
    model: Any = _model(_config(tokenizer, text or {}, vision or {}), seed)
    if not stock:
        family_of(model.config).settle(model)
    images = Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": TOKEN_SIDE**2, "longest_edge": 2048**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Processor.of(f"training-{seed}", model.config, tokenizer, images)
    return Checkpoint(processor, model.to(device))


def cold(checkpoint: Checkpoint) -> Checkpoint:
    """The same model, with no picture preprocessed yet."""
    return replace(checkpoint, processor=replace(checkpoint.processor))


def _config(tokenizer: Any, text: Mapping[str, Any], vision: Mapping[str, Any]) -> Qwen3VLConfig:
    own = {"vocab_size": VOCABULARY, "intermediate_size": 1024, "tie_word_embeddings": True}
    seen = {"hidden_size": 64, "depth": 2, "num_heads": 2}
    return family_config(tokenizer, {**own, **text}, {**seen, **vision})


def family_config(
    tokenizer: Any, text: Mapping[str, Any], vision: Mapping[str, Any]
) -> Qwen3VLConfig:
    """A small Qwen3-VL of text width 256 with the family's patches; ids as the tokenizer has them.

    `text` and `vision` hold what else there is to choose.
    """

    def token(name: str) -> int:
        return token_id(tokenizer, name, "benchmark")

    return Qwen3VLConfig(
        text_config={
            "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8,
            "num_key_value_heads": 4, "head_dim": 32, "max_position_embeddings": 8192,
            "pad_token_id": token("<|endoftext|>"),
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            **text,
        },
        vision_config={
            "intermediate_size": 256, "patch_size": PATCH, "spatial_merge_size": MERGE,
            "temporal_patch_size": 2, "out_hidden_size": 256, "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
            **vision,
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=text["tie_word_embeddings"],
        dtype="float32",
    )  # fmt: skip


def _model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    """Seeded weights of standard deviation about 1/sqrt(fan in); global RNG untouched."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                module.weight.normal_(0, 1 / math.sqrt(module.weight[0].numel()))
        model.model.visual.pos_embed.weight.normal_(0, 0.5)
        model.model.language_model.embed_tokens.weight.normal_(0, 2 / 16)
        model.tie_weights()
    return model.eval()


def training_group(checkpoint: Checkpoint, shape: Shape, seed: int = 0) -> Group:
    """A tree of `shape` with credit; the logprobs of its policy tokens are 0 (not sampled)."""
    return _Builder(checkpoint, shape, seed).group()


class _Builder:
    def __init__(self, checkpoint: Checkpoint, shape: Shape, seed: int) -> None:
        self.processor, self.shape = checkpoint.processor, shape
        self.random = random.Random(seed)
        self.pictures: dict[str, Image.Image] = {}

    def group(self) -> Group:
        shape = self.shape
        prompt = self.shown("prompt", Origin.PROMPT, shape.image_tokens, shape.words // 2)
        group = Group("g", prompt, pictures=self.pictures)
        for i, length in enumerate(self.lengths(shape.rollouts)):
            turns = shape.turns if i % 2 == 0 else 0
            group.rollouts.append(self.trajectory(f"r{i}", length, turns))
            self.credit(group.rollouts[i], 0, (1.0, -0.6)[i % 2])
        if shape.continuations:
            for source in group.rollouts[: shape.sources]:
                self.grow(group, source)
        return group

    def grow(self, group: Group, source: Trajectory) -> None:
        """Cut `source` and let its continuations grow; its rest is masked."""
        shape = self.shape
        cut = int(shape.frozen * min(shape.response, len(source.segments[0])))
        source.credit = [Credit(0, cut, 0.8, Stream.PREFIX, 1 / shape.rollouts)]
        branch = group.fork(source, cut)
        first = sum(len(some.continuations) for some in group.branches)
        for k, length in enumerate(self.lengths(shape.continuations, cut), first):
            rest = self.trajectory(f"c{k}", length - cut, shape.turns)
            branch.continuations.append(rest)
            self.credit(rest, cut, (-0.7, 0.9)[k % 2])

    def lengths(self, count: int, frozen: int = 0) -> list[int]:
        """Spread evenly over a quarter around the mean (at most half of what is not `frozen`), in
        random order."""
        mean = self.shape.response
        part = min(0.25, (1 - frozen / mean) / 2)
        found = [round(mean * (1 - part + 2 * part * i / max(1, count - 1))) for i in range(count)]
        self.random.shuffle(found)
        return found

    def credit(self, trajectory: Trajectory, start: int, advantage: float) -> None:
        end, weight = start + trajectory.tokens, 1 / self.shape.rollouts
        stream = Stream.CONTINUATION if start else Stream.ROLLOUT
        trajectory.credit = [Credit(start, end, advantage, stream, weight)]

    def trajectory(self, id: str, length: int, turns: int) -> Trajectory:
        """`length` policy tokens in turns + 1 pieces, a crop after each but the last."""
        pieces = [length // (turns + 1)] * turns
        pieces.append(length - sum(pieces))
        segments: list[Segment] = []
        for number, piece in enumerate(pieces):
            if number:
                crop = self.shape.image_tokens // CROP_SHARE
                segments.append(self.shown(f"{id}/o{number}", Origin.OBSERVATION, crop, 3))
            tokens = self.words(piece)
            segments.append(Segment(f"{id}/{number}", Origin.POLICY, tokens, (0.0,) * piece))
        return Trajectory(id, segments)

    def words(self, count: int) -> tuple[int, ...]:
        return tuple(self.random.choice(WORDS) for _ in range(count))

    def shown(self, id: str, origin: Origin, image_tokens: int, words: int) -> Segment:
        """A new square picture of `image_tokens` in its vision tags, `words` on either side; only
        the words with 0 image tokens."""
        if not image_tokens:
            return Segment(id, origin, self.words(2 * words))
        side = math.isqrt(image_tokens)
        if side**2 != image_tokens:
            raise ValueError(f"{image_tokens} image tokens are not a square picture")
        noise = np.random.default_rng(self.random.randrange(2**32))
        pixels = noise.integers(0, 256, (side * TOKEN_SIDE, side * TOKEN_SIDE, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        digest = picture_digest(picture)
        self.pictures[digest] = picture
        start, end = self.processor.tokenizer.convert_tokens_to_ids(
            ["<|vision_start|>", "<|vision_end|>"]
        )
        pads = (self.processor.image_token,) * image_tokens
        tokens = (*self.words(words), start, *pads, end, *self.words(words))
        return Segment(id, origin, tokens, (), (ImageSpan(digest, words + 1, image_tokens),))


def with_logprobs(group: Group, logprobs: OldLogprobs) -> None:
    """Record `logprobs` (of `Learner.logprobs`) as if their policy had sampled."""
    for trajectory in group.trajectories():
        own = logprobs[group.id, trajectory.id].tolist()
        done = 0
        for i, segment in enumerate(trajectory.segments):
            if segment.origin is Origin.POLICY:
                some = own[done : done + len(segment)]
                trajectory.segments[i] = Segment(
                    segment.id,
                    Origin.POLICY,
                    segment.tokens,
                    tuple(0.0 if p != p else p for p in some),
                )
            done += len(segment)
