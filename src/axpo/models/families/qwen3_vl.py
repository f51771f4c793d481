"""Qwen3-VL, dense: a text model with interleaved M-RoPE and a vision tower with DeepStack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from renderers import Qwen3VLRendererConfig
from renderers.qwen3_vl import Qwen3VLRenderer
from torch.nn.functional import linear
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLVisionPatchEmbed,
)
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from axpo.chat.parsing import ControlTokens, ParsedTurn, family_id, parse_turn
from axpo.models.attention import VARLEN_VISION
from axpo.models.device import to_device
from axpo.models.families.base import Dimensions, Message, Wire, text_dimensions
from axpo.models.families.vision import VisionFamily
from axpo.models.vision import Features


class Qwen3VL(VisionFamily):
    """The dense models from 2B to 32B; those with experts (`qwen3_vl_moe`) are another family."""

    kind = "qwen3_vl"
    architecture = Qwen3VLForConditionalGeneration
    vision_layers = r"model\.visual\..*\.(?:qkv|attn\.proj|linear_fc1|linear_fc2)"
    served = (
        ("text_config", (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_act",
        )),
        ("vision_config", (
            "depth", "hidden_size", "intermediate_size", "num_heads", "patch_size",
            "spatial_merge_size", "temporal_patch_size", "out_hidden_size",
            "num_position_embeddings", "deepstack_visual_indexes",
        )),
        (None, (
            "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
        )),
    )  # fmt: skip

    def settle(self, model: Any) -> None:
        super().settle(model)
        model.model.visual.config._attn_implementation = VARLEN_VISION
        model.model.visual.patch_embed.__class__ = LinearPatchEmbed

    def encode(self, model: Any, values: torch.Tensor, grids: torch.Tensor) -> list[Features]:
        visual = model.model.visual
        values = to_device(values.to(visual.dtype), visual.device)
        out = model.model.get_image_features(values, grids, **_layout(visual, grids))
        layers = zip(*out.deepstack_features, strict=True)
        return [Features(e, tuple(deep)) for e, deep in zip(out.pooler_output, layers, strict=True)]

    def hidden_states(
        self,
        model: Any,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pictures: Sequence[Features],
        **kwargs: Any,
    ) -> torch.Tensor:
        return model.model(
            input_ids=tokens,
            position_ids=positions,
            mm_encoder_outputs=encoder_outputs(pictures),
            **kwargs,
        ).last_hidden_state

    def dimensions(self, config: Any) -> Dimensions:
        vision = config.vision_config
        return Dimensions(
            **text_dimensions(config.text_config),
            vision_hidden=vision.hidden_size,
            vision_layers=vision.depth,
            vision_mlp=vision.intermediate_size,
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge=vision.spatial_merge_size,
            deepstack=len(vision.deepstack_visual_indexes),
        )

    def wire(self, tokenizer: Any, stop: tuple[int, ...]) -> Wire:
        return Qwen3VLWire(tokenizer, stop)


class LinearPatchEmbed(Qwen3VLVisionPatchEmbed):
    """The patch embedding as a matrix product; takes [patches, channels * temporal * patch^2].

    It is a convolution whose stride equals its kernel. As a product it takes a third of the
    convolution's time on a CPU (`benchmarks`).
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        weight = self.proj.weight
        return linear(hidden_states.to(weight.dtype), weight.flatten(1), self.proj.bias)


def _layout(visual: Any, grids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The indices and positions that the tower derives from `grids` [pictures, 3].

    They are computed on the CPU: the tower reads sizes from these numbers, and on a GPU the host
    would have to wait for each. The attention needs its lengths on the host, too.
    """
    indices, weights = get_vision_interpolation_indices_and_weights(
        grids,
        num_grid_per_side=visual.num_grid_per_side,
        mode=visual.interpolation_mode,
        align_corners=visual.interpolation_align_corners,
        spatial_merge_size=visual.spatial_merge_size,
    )
    positions = get_vision_position_ids(grids, visual.spatial_merge_size)
    return {
        "interp_indices": to_device(indices, visual.device),
        "interp_weights": to_device(weights, visual.device),
        "position_ids": to_device(positions, visual.device),
        "cu_seqlens": get_vision_cu_seqlens(grids),
    }


def encoder_outputs(
    features: Sequence[Features],
) -> dict[str, BaseModelOutputWithDeepstackFeatures] | None:
    """The argument `mm_encoder_outputs` of `model.model(...)` for features in placeholder order;
    None without any."""
    if not features:
        return None
    return {
        "image": BaseModelOutputWithDeepstackFeatures(
            pooler_output=tuple(f.embeds for f in features),  # pyright: ignore[reportArgumentType]
            deepstack_features=[
                tuple(layer) for layer in zip(*(f.deepstack for f in features), strict=True)
            ],  # pyright: ignore[reportArgumentType]
        )
    }


class Qwen3VLWire(Wire):
    """The family's turns, written by `renderers`.

    Every turn of a Thinking model starts inside thinking: the generation prompt ends with
    `<|im_start|>assistant\\n<think>\\n`.
    """

    def __init__(self, tokenizer: Any, stop: tuple[int, ...]) -> None:
        def encode(text: str) -> list[int]:
            return tokenizer.encode(text, add_special_tokens=False)

        self._tokenizer = tokenizer
        self._control = ControlTokens.of(tokenizer, stop)
        self.thinking = self._control.thinking
        self._renderer = Qwen3VLRenderer(tokenizer, Qwen3VLRendererConfig())
        self._opening = encode("<think>\n") if self.thinking else []
        self._line_break = encode("\n")
        self.generation_prompt = [*encode("<|im_start|>assistant\n"), *self._opening]
        self.turn_end = family_id(tokenizer, "<|im_end|>")

    def prompt(self, messages: Sequence[Message], specs: Sequence[Any]) -> list[int]:
        given: list[Any] = list(messages)
        rendered = self._renderer.render(
            given,
            tools=list(specs) or None,
            add_generation_prompt=True,
            process_multimodal=False,
        )
        return [*rendered.token_ids, *self._opening]

    def results(self, turn: Sequence[int], messages: Sequence[Message]) -> list[int] | None:
        before = [*self.generation_prompt, *turn]
        given: list[Any] = list(messages)
        # renderers needs the generation prompt to know the turn's state, and nothing before it.
        bridged = self._renderer.bridge_to_next_turn(
            self.generation_prompt, list(turn), given, process_multimodal=False
        )
        if bridged is None or bridged.token_ids[: len(before)] != before:
            return None
        return [*bridged.token_ids[len(before) :], *self._opening]

    def reply(self, message: Message) -> list[int]:
        # renderers' bridge is not used: it refuses a turn that ended inside its thinking.
        return [*self._line_break, *self.prompt([message], ())]

    def parse(self, turn: Sequence[int], call_at: int | None) -> ParsedTurn:
        return parse_turn(turn, self._control, self._decode, call_at)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))
