"""The tiny Qwen3-VL: its configuration, its initial weights, and a fast pass for training it.

Owns the sizes (about 1.4M parameters) and the one picture size, 64 x 64 px = 16 tokens, that scenes
and square zoom crops share. `encode` runs transformers' own vision modules over a batch of
equal-size pictures in one attention call; `forward` hands the result to the text model.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from axpo.models.loading import token_id
from axpo.models.tiny import whole_config

VIEW = 64
PATCH = 8
MERGE = 2
MIN_PIXELS, MAX_PIXELS = 3600, 4400
"""The processor's caps: nearly square pictures of any size become exactly `VIEW` x `VIEW`."""
TOKENS_PER_SIDE = VIEW // (PATCH * MERGE)
IMAGE_TOKENS = TOKENS_PER_SIDE**2
HIDDEN = 128
VISION_HIDDEN = 96


def build_config(tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    """Sizes of the tiny model; ids as the tokenizer has them."""

    text = {
        "vocab_size": len(tokenizer), "hidden_size": HIDDEN, "intermediate_size": 320,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4,
        "head_dim": 32, "max_position_embeddings": 4096, "tie_word_embeddings": True,
        "pad_token_id": token_id(tokenizer, "<|endoftext|>", "lab-base"),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "hidden_size": VISION_HIDDEN, "depth": 4, "num_heads": 3, "intermediate_size": 256,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
        "out_hidden_size": HIDDEN, "num_position_embeddings": (VIEW // PATCH) ** 2,
        "deepstack_visual_indexes": [1],
    }  # fmt: skip
    return whole_config(tokenizer, text, vision)


def build_model(tokenizer: PreTrainedTokenizerFast) -> Any:
    """A fresh model: matrices at 1/sqrt(fan in), vision positions start as sines and cosines."""
    model = Qwen3VLForConditionalGeneration(build_config(tokenizer))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, 1 / math.sqrt(module.in_features))
        patches = model.model.visual.patch_embed.proj.weight
        patches.normal_(0, 1 / math.sqrt(patches[0].numel()))
        model.model.visual.pos_embed.weight.copy_(_sines(VIEW // PATCH, VISION_HIDDEN) * 0.5)
        model.model.language_model.embed_tokens.weight.normal_(0, 1 / math.sqrt(HIDDEN))
    model.tie_weights()
    return model


def _sines(side: int, width: int) -> torch.Tensor:
    freq = 1 / 50 ** (torch.arange(width // 4) / (width // 4))
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * freq for axis in (rows, columns)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)


def view(picture: Image.Image, box: tuple[float, float, float, float] | None = None) -> np.ndarray:
    """What the model sees of a picture, or of a box of it in pixels: uint8 [64, 64, 3].

    The box is rounded outwards, as the zoom tool does.
    """
    if box is not None:
        left, top = (math.floor(v) for v in box[:2])
        right, bottom = (math.ceil(v) for v in box[2:])
        picture = picture.crop((left, top, right, bottom))
    return np.array(picture.resize((VIEW, VIEW), Image.Resampling.BICUBIC))


def patchify(views: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 64, 64, 3] to the image processor's patch order: float [N, 64, 3 * 2 * 8 * 8]."""
    n, t = views.shape[0], TOKENS_PER_SIDE
    x = views.float().div(127.5).sub(1).view(n, t, MERGE, PATCH, t, MERGE, PATCH, 3)
    x = x.permute(0, 1, 4, 2, 5, 7, 3, 6)  # n, row, column, merge row, merge column, rgb, y, x
    x = x.reshape(n, t * t * MERGE * MERGE, 3, 1, PATCH, PATCH).expand(-1, -1, -1, 2, -1, -1)
    return x.reshape(n, t * t * MERGE * MERGE, -1)


def _patch_positions() -> torch.Tensor:
    """(row, column) of each patch in the processor's order: [64, 2]."""
    t = TOKENS_PER_SIDE
    grid = torch.arange(VIEW // PATCH)
    rows, columns = torch.meshgrid(grid, grid, indexing="ij")
    both = torch.stack([rows, columns], -1).view(t, MERGE, t, MERGE, 2)
    return both.permute(0, 2, 1, 3, 4).reshape(-1, 2)


def encode(visual: Any, views: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Vision tower over [N, 64, 64, 3]: features [N, 16, hidden] and DeepStack's, one a layer."""
    n = views.shape[0]
    positions = _patch_positions()
    count, heads = positions.shape[0], visual.config.num_heads
    x = visual.patch_embed(patchify(views).reshape(n * count, -1)).view(n, count, -1)
    x = x + visual.pos_embed(positions[:, 0] * (VIEW // PATCH) + positions[:, 1])
    cos, sin = visual.rotary_pos_emb(x, positions)
    cos, sin = cos.repeat(n, 1), sin.repeat(n, 1)
    deep = []
    for index, block in enumerate(visual.blocks):
        q, k, v = block.attn.qkv(block.norm1(x)).view(n * count, 3, heads, -1).unbind(1)
        q, k = apply_rotary_pos_emb_vision(q, k, cos, sin)
        q, k, v = (z.view(n, count, heads, -1).transpose(1, 2) for z in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, count, -1)
        x = x + block.attn.proj(mixed)
        x = x + block.mlp(block.norm2(x))
        if index in visual.deepstack_visual_indexes:
            rank = list(visual.deepstack_visual_indexes).index(index)
            merger = visual.deepstack_merger_list[rank]
            deep.append(merger(x.reshape(n * count, -1)).view(n, IMAGE_TOKENS, -1))
    return visual.merger(x.reshape(n * count, -1)).view(n, IMAGE_TOKENS, -1), deep


def text_positions(ids: torch.Tensor, image_token: int) -> torch.Tensor:
    """M-RoPE positions [3, L] of one sequence whose pictures are all 64 x 64 px."""
    columns: list[torch.Tensor] = []
    tokens, at, position = ids.tolist(), 0, 0
    t = TOKENS_PER_SIDE
    while at < len(tokens):
        if tokens[at] == image_token:
            grid = torch.arange(t)
            rows, cols = torch.meshgrid(grid, grid, indexing="ij")
            axes = torch.stack([torch.zeros(t, t, dtype=torch.long), rows, cols])
            columns.append(axes.reshape(3, -1) + position)
            at, position = at + t * t, position + t
        else:
            columns.append(torch.full((3, 1), position))
            at, position = at + 1, position + 1
    return torch.cat(columns, dim=1)


def forward(
    model: Any, ids: torch.Tensor, positions: torch.Tensor, views: torch.Tensor
) -> torch.Tensor:
    """Hidden states [B, L, hidden]. `ids` [B, L] right-padded (causal, so no mask is needed),
    `positions` [3, B, L], `views` all pictures in placeholder order."""
    features, deep = encode(model.model.visual, views)
    embeds = model.model.language_model.embed_tokens(ids)
    mask = ids == model.config.image_token_id
    embeds = embeds.masked_scatter(mask.unsqueeze(-1), features)
    return model.model.language_model(
        inputs_embeds=embeds,
        position_ids=positions,
        visual_pos_masks=mask,
        deepstack_visual_embeds=[d.reshape(-1, d.shape[-1]) for d in deep],
        use_cache=False,
    ).last_hidden_state
