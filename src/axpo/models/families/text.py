"""Text models with one stack of layers: no vision, positions that count tokens, ChatML turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from axpo.models.families.base import Dimensions, Family, Wire, text_dimensions
from axpo.models.families.chatml import ChatML
from axpo.models.vision import Features


class TextFamily(Family):
    """What such families have in common; their pages name their class."""

    sees = False
    unsampled = ()
    spelled = ("<tool_response>", "</tool_response>")
    stop = ("<|im_end|>", "<|endoftext|>")
    text_layers = r"model\.layers\..*\."
    vision_layers = r"(?!)"
    served = (
        (None, (
            "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "hidden_act",
        )),
    )  # fmt: skip

    def decoder(self, model: Any) -> Any:
        return model.model

    def vision(self, model: Any) -> nn.Module:
        return nn.Module()

    def vision_blocks(self, model: Any) -> Sequence[nn.Module]:
        return ()

    def in_vision(self, name: str) -> bool:
        return False

    def encode(self, model: Any, values: torch.Tensor, grids: torch.Tensor) -> list[Features]:
        raise TypeError(f"{self.kind} takes no pictures")

    def hidden_states(
        self,
        model: Any,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pictures: Sequence[Features],
        **kwargs: Any,
    ) -> torch.Tensor:
        if kwargs.get("tree") is not None:
            # Positions that fall at a branch would let transformers build a mask [L, L] for packed
            # rows, which attention over a tree ignores. It takes a mask of four axes as it is.
            kwargs["attention_mask"] = torch.zeros(1, 1, 1, 1, device=tokens.device)
        return model.model(input_ids=tokens, position_ids=positions[0], **kwargs).last_hidden_state

    def image_token(self, config: Any) -> int:
        return -1

    def merge_size(self, config: Any) -> int:
        return 1

    def dimensions(self, config: Any) -> Dimensions:
        return Dimensions(
            **text_dimensions(config),
            vision_hidden=0,
            vision_layers=0,
            vision_mlp=0,
            patch=0,
            merge=1,
            deepstack=0,
        )

    def wire(self, tokenizer: Any, stop: tuple[int, ...]) -> Wire:
        return ChatML(tokenizer, stop)
