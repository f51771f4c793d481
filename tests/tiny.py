"""A tiny random Qwen3-VL in memory, and pictures for it: what tests of engine and trainer share.

Everything that the real family has is here: DeepStack, grouped query heads, interleaved M-RoPE,
tied embeddings, the special tokens by their real names. Ids below 256 are plain words. The
weights are large enough that a wrong mask, position or picture moves logprobs by far more than
any tolerance.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from axpo.models.attention import use_fast_vision
from axpo.models.loading import VISION_TOKENS, Checkpoint, token_id

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS,
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
PATCH, MERGE = 8, 2


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 256 words and the family's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def tiny_config(tokenizer: PreTrainedTokenizerFast, head_dim: int = 16) -> Qwen3VLConfig:
    """64 hidden, 3 text layers of 4 heads (2 of keys and values), 3 vision layers."""

    def token(name: str) -> int:
        return token_id(tokenizer, name, "tiny")

    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": head_dim, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "pad_token_id": token("<|endoftext|>"),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_interleaved": True,
            "mrope_section": [head_dim // 4, head_dim // 8, head_dim // 8],
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 64,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
        "out_hidden_size": 64, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
        dtype="float32",
    )


def tiny_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    """Seeded fp32 weights of standard deviation about 1/sqrt(fan in); global RNG untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear | nn.Conv3d):
                    module.weight.normal_(0, 1 / math.sqrt(module.weight[0].numel()))
            model.model.visual.pos_embed.weight.normal_(0, 0.5)
            model.model.language_model.embed_tokens.weight.normal_(0, 2 / math.sqrt(64))
        model.tie_weights()
    use_fast_vision(model)
    return model.eval()


def tiny_checkpoint(seed: int = 0, head_dim: int = 16) -> Checkpoint:
    """A complete checkpoint without a file; the same weights for the same `seed`."""
    tokenizer = tiny_tokenizer()
    return Checkpoint(
        path=f"tiny-{seed}",
        model=tiny_model(tiny_config(tokenizer, head_dim), seed),
        tokenizer=tokenizer,
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=PATCH,
            merge_size=MERGE,
            temporal_patch_size=2,
            size={"shortest_edge": 16 * 16, "longest_edge": 128 * 128},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        banned=tuple(token_id(tokenizer, t, "tiny") for t in VISION_TOKENS),
        stop=tuple(token_id(tokenizer, t, "tiny") for t in ("<|im_end|>", "<|endoftext|>")),
    )


def tiny_picture(seed: int, size: int | tuple[int, int] = 64) -> Image.Image:
    """A random RGB picture of `size` pixels (a side, or width and height): 16 px a token side."""
    width, height = (size, size) if isinstance(size, int) else size
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def in_bfloat16(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` with rounded weights; buffers stay float32, as `from_pretrained` leaves them."""
    for parameter in checkpoint.model.parameters():
        parameter.data = parameter.data.bfloat16()
    return checkpoint
