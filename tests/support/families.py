"""Tiny random models of every family, in memory: what `tests.support.tiny` is for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast
from trl.chat_template_utils import qwen2_5_chat_template, qwen3_chat_template

from axpo.models.loading import Checkpoint, Processor
from axpo.models.tiny import tiny_model, tiny_tokenizer
from tests.support.tiny import tiny_checkpoint

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Turns as SmolLM2-Instruct's template writes them: a system turn of its own, no tools."""
TURNS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALLS = ("<tool_call>", "</tool_call>")
THOUGHTS = ("<tool_response>", "</tool_response>", "<think>", "</think>")
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
    "dtype": "float32",
}  # fmt: skip


def text_checkpoint(
    kind: str, seed: int, special: Sequence[str], template: str, **config: Any
) -> Checkpoint:
    """A text model of the model_type `kind`, which cannot sample <|im_start|>."""
    tokenizer = tiny_tokenizer(special, template)
    return checkpoint_of(kind, seed, tokenizer, vocab_size=len(tokenizer), **TEXT | config)


def checkpoint_of(
    kind: str, seed: int, tokenizer: PreTrainedTokenizerFast, **config: Any
) -> Checkpoint:
    model = tiny_model(AutoConfig.for_model(kind, **config), seed)
    banned = ("<|im_start|>",)
    processor = Processor.of(f"tiny-{kind}-{seed}", model.config, tokenizer, None, banned)
    return Checkpoint(processor, model)


def family_checkpoint(kind: str, seed: int = 0, head: int = 16) -> Checkpoint:
    """A complete checkpoint of the family without a file; the same weights for the same `seed`.

    Its attention heads have `head` numbers.
    """
    match kind:
        case "qwen3_vl":
            return tiny_checkpoint(seed, head)
        case "llama":
            return text_checkpoint(kind, seed, TURNS, SMOLLM2, head_dim=head)
        case "qwen2":
            return text_checkpoint(kind, seed, (*TURNS, *CALLS), qwen2_5_chat_template)
        case "qwen3":
            special = (*TURNS, *CALLS, *THOUGHTS)
            return text_checkpoint(kind, seed, special, qwen3_chat_template, head_dim=head)
    raise ValueError(kind)
