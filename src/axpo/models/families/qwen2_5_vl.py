"""Qwen2.5-VL: a text model with M-RoPE in sections, and a vision tower whose layers see windows.

It writes boxes in pixels of the picture as it sees it, after its processor has resized it. Its
template knows pictures but no tools, and its vocabulary has tokens for a call's tags but none for
thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from axpo.models.attention import VARLEN_VISION
from axpo.models.device import to_device
from axpo.models.families.base import Dimensions, Wire, text_dimensions
from axpo.models.families.chatml import ChatML
from axpo.models.families.vision import VisionFamily
from axpo.models.lean import use_lean_layers
from axpo.models.vision import Features


class Qwen25VL(VisionFamily):
    """The models from 3B to 72B. Only pictures are shown: for these, positions are Qwen3-VL's."""

    kind = "qwen2_5_vl"
    architecture = Qwen2_5_VLForConditionalGeneration
    query_norm = False
    gated_vision = True
    absolute = True
    spelled = ("<tool_response>", "</tool_response>")
    vision_layers = (
        r"model\.visual\..*\.(?:qkv|attn\.proj|gate_proj|up_proj|down_proj|merger\.mlp\.[02])"
    )
    served = (
        ("text_config", (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act",
        )),
        ("vision_config", (
            "depth", "hidden_size", "intermediate_size", "num_heads", "patch_size",
            "spatial_merge_size", "temporal_patch_size", "out_hidden_size", "window_size",
            "fullatt_block_indexes",
        )),
        (None, (
            "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
        )),
    )  # fmt: skip

    def own_name(self, stored: str) -> str:
        # Published checkpoints are older than the class's names.
        if stored.startswith("visual."):
            return f"model.{stored}"
        first, _, rest = stored.partition(".")
        own = first != "model" or rest.startswith(("language_model.", "visual."))
        return stored if own else f"model.language_model.{rest}"

    def settle(self, model: Any) -> None:
        super().settle(model)
        model.model.visual.config._attn_implementation = VARLEN_VISION
        use_lean_layers(model.model.visual)

    def encode(self, model: Any, values: torch.Tensor, grids: torch.Tensor) -> list[Features]:
        visual = model.model.visual
        values = to_device(values.to(visual.dtype), visual.device)
        out = model.model.get_image_features(values, grids.to(visual.device))
        return [Features(embeds, ()) for embeds in out.pooler_output]

    def hidden_states(
        self,
        model: Any,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pictures: Sequence[Features],
        **kwargs: Any,
    ) -> torch.Tensor:
        shown = None
        if pictures:
            embeds: Any = tuple(picture.embeds for picture in pictures)
            shown = {"image": BaseModelOutputWithPooling(pooler_output=embeds)}
        return model.model(
            input_ids=tokens, position_ids=positions, mm_encoder_outputs=shown, **kwargs
        ).last_hidden_state

    def dimensions(self, config: Any) -> Dimensions:
        vision = config.vision_config
        return Dimensions(
            **text_dimensions(config.text_config),
            vision_hidden=vision.hidden_size,
            vision_layers=vision.depth,
            vision_mlp=vision.intermediate_size,
            vision_matrices=3,
            vision_window=(vision.window_size // vision.patch_size) ** 2,
            vision_whole=len(vision.fullatt_block_indexes),
            patch=vision.in_channels * vision.temporal_patch_size * vision.patch_size**2,
            merge=vision.spatial_merge_size,
            deepstack=0,
        )

    def wire(self, tokenizer: Any, stop: tuple[int, ...]) -> Wire:
        return ChatML(tokenizer, stop, picture="<|vision_start|><|image_pad|><|vision_end|>")
