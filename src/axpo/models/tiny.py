"""A random Qwen3-VL of half a million parameters that stands in for a real one.

It has everything that the family has: DeepStack, grouped query heads, interleaved M-RoPE, tied
embeddings, 16-pixel patches merged 2 x 2, the processor's real limits (64 to 16,384 tokens per
picture), and the special tokens by their real names. Its text tokens are bytes. Its answers are
noise, but every step of a recipe runs:

    python -m axpo.models.tiny runs/tiny
    axpo train qwen3-vl qwen3-vl-2b --out runs/try model.path=runs/tiny engine={}

The weights are large enough that a wrong mask, position or picture changes logprobs by far more
than rounding does.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from axpo.models.families import family_of
from axpo.models.families.qwen3_vl import Qwen3VL
from axpo.models.loading import Checkpoint, Processor, token_id

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *Qwen3VL.unsampled,
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""The family's turns. They show a reader of the checkpoint that its turns begin in thinking."""
PATCH, MERGE = 16, 2
MIN_PIXELS, MAX_PIXELS = 64 * 32**2, 16384 * 32**2
"""The limits in Qwen3-VL's own preprocessor_config.json: 65,536 and 16,777,216."""
POSITIONS = 262_144
"""The family's max_position_embeddings."""


def tiny_tokenizer(
    special: Sequence[str] = SPECIAL_TOKENS, template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 words and the `special` tokens, by default the family's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def whole_config(
    tokenizer: PreTrainedTokenizerFast, text: dict[str, Any], vision: dict[str, Any]
) -> Any:
    """A model's config from its two parts.

    It is float32, with one matrix for input and output embeddings, and has the ids that `tokenizer`
    gives to the tokens around pictures.
    """

    def token(name: str) -> int:
        return token_id(tokenizer, name, "tiny")

    return AutoConfig.for_model(
        Qwen3VL.kind,
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def tiny_config(
    tokenizer: PreTrainedTokenizerFast,
    head_dim: int = 16,
    patch: int = PATCH,
    positions: int = POSITIONS,
) -> Any:
    """The config: width 64, 3 text layers of 4 heads (2 of keys and values), 3 vision layers."""

    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": head_dim, "max_position_embeddings": positions, "tie_word_embeddings": True,
        "pad_token_id": token_id(tokenizer, "<|endoftext|>", "tiny"),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True,
            "mrope_section": [head_dim // 4, head_dim // 8, head_dim // 8],
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 64,
        "patch_size": patch, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
        "out_hidden_size": 64, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    return whole_config(tokenizer, text, vision)


def tiny_model(config: Any, seed: int) -> Any:
    """A model with float32 weights drawn by `seed`, of standard deviation about 1/sqrt(fan in).

    The global random generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        family = family_of(config)
        model = family.architecture(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv3d):
                    module.weight.normal_(0, 1 / math.sqrt(module.weight[0].numel()))
            for module in family.vision(model).modules():
                if isinstance(module, nn.Embedding):
                    module.weight.normal_(0, 0.5)
            family.decoder(model).embed_tokens.weight.normal_(0, 2 / math.sqrt(64))
        model.tie_weights()
    family.settle(model)
    return model.eval()


def tiny_processor(
    patch: int = PATCH, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS
) -> Qwen2VLImageProcessorPil:
    """The family's image processor, for pictures of `min_pixels` to `max_pixels`."""
    return Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": min_pixels, "longest_edge": max_pixels},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def write_tiny(folder: Path, seed: int = 0) -> Checkpoint:
    """Write the stand-in into `folder`, in the form of the family's on the Hub; return it."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(tokenizer), seed)
    processor = Processor.of(str(folder), model.config, tokenizer, tiny_processor())
    checkpoint = Checkpoint(processor, model)
    checkpoint.save(folder)
    video = {"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor"}
    video |= {"patch_size": PATCH, "merge_size": MERGE, "temporal_patch_size": 2}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=1))
    return checkpoint


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny random Qwen3-VL.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_tiny(given.folder, given.seed)
    print(f"A tiny random Qwen3-VL: {given.folder}")
