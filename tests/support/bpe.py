"""A byte-level tokenizer with merges, as those of published models: learned from a few lines in
several scripts, so that some of its tokens are parts of characters."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from axpo.models.loading import Checkpoint
from tests.support.families import CALLS, SMOLLM2, TEXT, TURNS, checkpoint_of, shipped

LINES = (
    "The answer is 42, because 6 times 7 is 42.",
    "Look at the picture again, then call the tool and read what it says.",
    '<tool_call>\n{"name": "look", "arguments": {"at": [1, 2]}}\n</tool_call>',
    "答案是四十二。图片里有一只猫和一只狗。",
    "Ответ: сорок два. Ещё раз посмотри на картинку.",
    "😀😁😂🤣 “quoted” – naïve café, ½ × ⅓ ≈ 0.17",
    "<tool_call>“ <tool_call>” <tool_call>–",
)
WORDS = 420
"""The number of learned tokens, bytes included: characters of rare scripts take several."""
KINDS = {"llama": (TURNS, SMOLLM2), "qwen2": ((*TURNS, *CALLS), "qwen2_5")}
"""Families by whether `<tool_call>` is text or a token: their special tokens and template."""


@cache
def bpe_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a family of `KINDS`."""
    special, template = KINDS[kind]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    core.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=WORDS, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator([LINES[0], *LINES * 2], trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    template = template if template == SMOLLM2 else shipped(template)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
    )


def bpe_checkpoint(kind: str, seed: int = 0, **config: Any) -> Checkpoint:
    """A tiny random text model of the family with that tokenizer."""
    tokenizer = bpe_tokenizer(kind)
    return checkpoint_of(kind, seed, tokenizer, **{"vocab_size": len(tokenizer), **TEXT, **config})
