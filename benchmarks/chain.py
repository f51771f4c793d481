"""A random Qwen3-VL of 5M parameters that calls the zoom tool every turn, and questions for it.

Timing needs rollouts of known shape from a model that nobody trained. Here the shape is built
into the weights: every layer's output is scaled down, so the last hidden state is mostly the
current token's embedding, and the LM head maps that to the logits of a Markov chain. Sampling at
temperature 1 then walks the chain, with no hook and a whole forward pass per token. A turn is a
countdown of thinking (its length is drawn uniformly from `THINKING`, so turns are ragged),
`</think>`, a zoom call whose box is drawn from `BOXES`, `<|im_end|>`. What the layers add still
moves logprobs by far more than float error, so a wrong mask or position is seen in them.

Sizes are those of a toy: about 500 words of vocabulary (a real one makes the LM head and the
sampler cost more on every side) and whole phrases as tokens (the tools header is one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from axpo.models.families import family_of
from axpo.models.loading import Checkpoint, Processor
from axpo.tasks.base import Example
from axpo.tasks.lab.words import ZOOM_CLOSE, ZOOM_OPEN
from axpo.tools.zoom import SPEC
from benchmarks.models import family_config
from lab_base.tokenizer import build_tokenizer

THINKING = (16, 48)
"""Least and most thinking tokens of a turn."""
CALL_TOKENS = 8
"""Tokens of a turn after its thinking: </think>, a line break, the call in 5, <|im_end|>."""
TOKEN_SIDE = 32
"""Pixels a side that one image token covers (patch 16 x merge 2)."""
CROP_TOKENS = 64
"""Tokens of every crop: it is cut smaller than this and enlarged to the processor's minimum."""
_EIGHTHS = range(0, 751, 125)
BOXES = tuple(f"{x}, {y}, {x + 250}, {y + 250}]" for x in _EIGHTHS for y in _EIGHTHS)
"""A quarter of a side each, on whole pixels of every case's pictures: all crops are square. The
opening bracket belongs to the call, the closing one is here."""
HIDDEN = 256
LOGIT = 30.0
"""Of each next token that the chain allows; the others have 0."""
LAYER_GAIN = 0.06
"""Standard deviation of what a layer adds, where its input has 1."""


def chain_checkpoint(seed: int = 0) -> Checkpoint:
    """The model in memory; the same weights for the same `seed`."""
    tokenizer = chain_tokenizer()
    return walker(tokenizer, transitions(tokenizer), seed)


def walker(tokenizer: Any, chain: Mapping[int, tuple[int, ...]], seed: int = 0) -> Checkpoint:
    """A model in memory that walks `chain` (token id -> ids that may follow, `HIDDEN` at most)."""
    side = int(CROP_TOKENS**0.5) * TOKEN_SIDE
    model = _model(tokenizer, chain, seed)
    images = Qwen2VLImageProcessorPil(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": side**2, "longest_edge": 2048**2},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = Processor.of(f"chain-{seed}", model.config, tokenizer, images)
    model.generation_config.eos_token_id = list(processor.stop)
    return Checkpoint(processor, model)


def chain_examples(count: int, image_tokens: int, seed: int = 0) -> list[Example]:
    """`count` questions, each with its own square picture of `image_tokens` (a square number)."""
    side = math.isqrt(image_tokens) * TOKEN_SIDE
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        examples.append(Example(f"chain-{seed}-{i}", "Which digit is shown?", (picture,), "0"))
    return examples


def chain_tokenizer() -> Any:
    """The lab's tokenizer with the chain's words as one token each."""
    tokenizer = build_tokenizer([SPEC])
    words = [*(tick(k) for k in range(1, THINKING[1] + 1)), *BOXES]
    tokenizer.add_tokens([AddedToken(w, special=False, normalized=False) for w in words])
    return tokenizer


def transitions(tokenizer: Any) -> Mapping[int, tuple[int, ...]]:
    """Token id -> the ids that may follow it, all equally likely."""
    before = ("</think>", "\n\n", "<tool_call>", ZOOM_OPEN)
    return turn_chain(tokenizer, THINKING, before, BOXES, (ZOOM_CLOSE, "</tool_call>"))


def turn_chain(
    tokenizer: Any,
    thinking: tuple[int, int],
    before: Sequence[str],
    choices: Sequence[str],
    after: Sequence[str],
) -> Mapping[int, tuple[int, ...]]:
    """A turn: a countdown of thinking (least, most), `before`, one of `choices`, `after`, its end.

    All texts are one token each.
    """

    def one(text: str) -> int:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"{text!r} is {len(ids)} tokens; the chain needs one")
        return ids[0]

    low, high = thinking
    start = tokenizer.encode("<think>\n", add_special_tokens=False)[-1]
    head = [one(text) for text in before]
    tail = [one(text) for text in (*after, "<|im_end|>")]
    chosen = tuple(one(text) for text in choices)
    chain = {start: tuple(one(tick(k)) for k in range(low, high + 1))}
    chain |= {one(tick(k)): (one(tick(k - 1)),) for k in range(2, high + 1)}
    chain[one(tick(1))] = (head[0],)
    chain |= {a: (b,) for a, b in pairwise(head)}
    chain[head[-1]] = chosen
    chain |= dict.fromkeys(chosen, (tail[0],))
    chain |= {a: (b,) for a, b in pairwise(tail)}
    return chain


def tick(k: int) -> str:
    """The thinking of which `k` tokens are left."""
    return f"tick {k}; "


def _config(tokenizer: Any) -> Qwen3VLConfig:
    text = {"vocab_size": len(tokenizer), "intermediate_size": 640, "tie_word_embeddings": False}
    return family_config(tokenizer, text, {"hidden_size": 128, "depth": 3, "num_heads": 4})


def _model(tokenizer: Any, chain: Mapping[int, tuple[int, ...]], seed: int) -> Any:
    """Seeded fp32 weights with the chain in embeddings and LM head; global RNG untouched."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(_config(tokenizer))
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                module.weight.normal_(0, 1 / math.sqrt(module.weight[0].numel()))
        model.model.visual.pos_embed.weight.normal_(0, 0.5)
        text = model.model.language_model
        for layer in text.layers:
            for output in (layer.self_attn.o_proj, layer.mlp.down_proj):
                output.weight.mul_(LAYER_GAIN)
        text.embed_tokens.weight.normal_()
        directions = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN)).Q[: len(chain)]
        model.lm_head.weight.zero_()
        for direction, (token, following) in zip(directions, chain.items(), strict=True):
            # The final norm gives the state length sqrt(HIDDEN), whatever the embedding's.
            text.embed_tokens.weight[token] = direction * math.sqrt(HIDDEN)
            model.lm_head.weight[list(following)] += direction * LOGIT / math.sqrt(HIDDEN)
    family_of(model.config).settle(model)
    return model.eval()
