"""What a page says of its family (`Family`), and how the family writes a conversation (`Wire`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from axpo.chat.parsing import ParsedTurn
from axpo.models.lean import use_lean_layers
from axpo.models.vision import Features

Message = dict[str, Any]
"""A message as chat templates take it; a picture is a part {"type": "image"} of its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimensions:
    """A model's widths and depths; `query` and `key` are the text model's heads times head size.

    `vision_matrices` is the number of matrices in an MLP of the vision part. Of its layers
    `vision_whole` see the whole picture, by default all; the others see at most `vision_window`
    patches.
    """

    hidden: int
    layers: int
    mlp: int
    query: int
    key: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_mlp: int
    patch: int
    merge: int
    deepstack: int
    vision_matrices: int = 2
    vision_window: int = 0
    vision_whole: int | None = None


def head_dim(text: Any) -> int:
    """The size of an attention head in a text model's config, which may leave it out."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def text_dimensions(text: Any) -> dict[str, int]:
    """The dimensions of a text model, from its config."""
    return {
        "hidden": text.hidden_size,
        "layers": text.num_hidden_layers,
        "mlp": text.intermediate_size,
        "query": text.num_attention_heads * head_dim(text),
        "key": text.num_key_value_heads * head_dim(text),
        "vocabulary": text.vocab_size,
    }


class Family(ABC):
    """Everything that differs between model families; a family's page derives from it.

    `model` and `config` are transformers' of the family. Positions are [3, ...] for all families
    (`axpo.models.positions`).
    """

    kind: str
    """The `model_type` of its configs."""
    architecture: type[Any]
    """The class of the model with its output layer (`lm_head`), as config.json names it."""
    sees: bool = True
    """Whether it takes pictures. One that does not has no image processor, an empty vision part,
    and refuses tasks and tools that need eyes."""
    query_norm: bool = True
    """Whether the text model normalises queries and keys."""
    gated_vision: bool = False
    """Whether vision blocks have an MLP with a gate, and norms that compute in float32."""
    absolute: bool = False
    """Whether it writes boxes in pixels of the picture as it sees it; otherwise from 0 to 1000."""
    unsampled: tuple[str, ...]
    """Tokens that a policy must never sample: placeholders that would have no picture."""
    spelled: tuple[str, ...] = ()
    """Tags that some of the family's vocabularies have no token for; a recipe that bans them bans
    nothing there, because text cannot be banned."""
    stop: tuple[str, ...]
    """The tokens that end a turn; the first is the one that all turns end with."""
    text_layers: str
    """A regular expression for what stands before the last part of the names of linear layers in
    the text model that adapters may change."""
    vision_layers: str
    """A regular expression for the full names of such layers of the vision part."""
    served: tuple[tuple[str | None, tuple[str, ...]], ...]
    """By section of the config (None: the config itself), the values that a server's model must
    have in common with the trainer's."""

    def flaw(self, config: Any) -> str | None:
        """Why a model of the family with this config cannot be trained or sampled exactly; None if
        it can."""
        text = config.get_text_config()
        others = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
        if others:
            return (
                f"some of its layers have {' and '.join(sorted(others))}; attention over packed "
                "trees and the engine's memory know full attention alone"
            )
        rope = (text.rope_parameters or {}).get("rope_type", "default")
        if rope in ("dynamic", "longrope"):
            return (
                f"its positions are scaled by the length of a path (rope_type {rope!r}); branches "
                "of one tree, which share their prefix, would each need another scale"
            )
        return None

    def own_name(self, stored: str) -> str:
        """The model's name of the weight that a published checkpoint calls `stored`."""
        return stored

    @abstractmethod
    def decoder(self, model: Any) -> Any:
        """The text model, with `embed_tokens` and `layers`, whose config chooses its attention."""

    @abstractmethod
    def vision(self, model: Any) -> nn.Module:
        """The vision part, whose weights `freeze_vision` freezes; an empty module without one."""

    @abstractmethod
    def vision_blocks(self, model: Any) -> Sequence[nn.Module]:
        """Its blocks, each of which may be computed a second time for backward."""

    @abstractmethod
    def in_vision(self, name: str) -> bool:
        """Whether the layer or weight of this full name belongs to the vision part."""

    def settle(self, model: Any) -> None:
        """Make a model that was just made compute with our code, where it takes less time or
        memory than transformers'."""
        use_lean_layers(self.decoder(model))

    @abstractmethod
    def encode(self, model: Any, values: torch.Tensor, grids: torch.Tensor) -> list[Features]:
        """The features of pictures by one call of the vision part; differentiable.

        `values` are their pixels one below the other, and `grids` [pictures, 3] their sizes in
        patches, on the CPU.
        """

    @abstractmethod
    def hidden_states(
        self,
        model: Any,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        pictures: Sequence[Features],
        **kwargs: Any,
    ) -> torch.Tensor:
        """The last hidden states [n, L, hidden] of `tokens` [n, L] at `positions` [3, n, L].

        `pictures` are the features of their placeholders in order. `kwargs` go to the text model
        and reach its attention: a cache and its mask, or the `tree` of a packed forest.
        """

    @abstractmethod
    def image_token(self, config: Any) -> int:
        """The id of the placeholder that stands for a part of a picture; -1 without vision."""

    @abstractmethod
    def merge_size(self, config: Any) -> int:
        """The number of patches per side that become one token."""

    @abstractmethod
    def dimensions(self, config: Any) -> Dimensions:
        """The sizes from which operations are counted."""

    @abstractmethod
    def wire(self, tokenizer: Any, stop: tuple[int, ...]) -> Wire:
        """How conversations are written in `tokenizer`'s tokens; `stop` ids end turns."""


class Wire(ABC):
    """Writes and reads a family's conversations in token ids, one placeholder per picture.

    `generation_prompt` is what stands before every turn of the policy, `turn_end` the token that
    closes it; `thinking` tells whether the generation prompt has opened thinking.
    """

    generation_prompt: list[int]
    thinking: bool
    turn_end: int

    @abstractmethod
    def prompt(self, messages: Sequence[Message], specs: Sequence[Any]) -> list[int]:
        """The conversation's beginning, with the tools' `specs`, up to where the policy starts."""

    @abstractmethod
    def results(self, turn: Sequence[int], messages: Sequence[Message]) -> list[int] | None:
        """What follows the policy's `turn`, which need not be closed: the results of its calls
        (role "tool"), up to where the policy goes on. None if that cannot be told."""

    @abstractmethod
    def reply(self, message: Message) -> list[int]:
        """What follows a turn that the policy closed: a user's message, up to where it goes on."""

    @abstractmethod
    def parse(self, turn: Sequence[int], call_at: int | None) -> ParsedTurn:
        """What the policy's `turn` says; spans count from its first token. `call_at` is the
        `ParsedCall.start` of a call that the turn is known to have begun."""
