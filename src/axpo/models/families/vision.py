"""Models with a text model and a vision tower side by side, laid out as Qwen's are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from axpo.models.families.base import Family


class VisionFamily(Family):
    """What such families have in common; their pages name their classes and what differs."""

    unsampled = (
        "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
    )  # fmt: skip
    stop = ("<|im_end|>", "<|endoftext|>")
    text_layers = r"model\.language_model\.layers\..*\."

    def decoder(self, model: Any) -> Any:
        return model.model.language_model

    def vision(self, model: Any) -> nn.Module:
        return model.model.visual

    def vision_blocks(self, model: Any) -> Sequence[nn.Module]:
        return model.model.visual.blocks

    def in_vision(self, name: str) -> bool:
        return ".visual." in name

    def image_token(self, config: Any) -> int:
        return config.image_token_id

    def merge_size(self, config: Any) -> int:
        return config.vision_config.spatial_merge_size
