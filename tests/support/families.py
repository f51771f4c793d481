"""Tiny random models of every family, in memory: what `tests.support.tiny` is for one of them."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerFast

from axpo.models.families.qwen2_5_vl import Qwen25VL
from axpo.models.loading import Checkpoint, Processor
from axpo.models.tiny import tiny_model, tiny_processor, tiny_tokenizer
from tests.support.tiny import MERGE, PATCH, tiny_checkpoint

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


def shipped(name: str) -> str:
    """The chat template of published models as TRL ships it; TRL itself is not imported."""
    found = find_spec("trl")
    assert found is not None and found.origin is not None
    return (Path(found.origin).parent / "chat_templates" / f"{name}.jinja").read_text()


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
            special = (*TURNS, *CALLS)
            return text_checkpoint(kind, seed, special, shipped("qwen2_5"), **_heads(head))
        case "qwen3":
            special = (*TURNS, *CALLS, *THOUGHTS)
            return text_checkpoint(kind, seed, special, shipped("qwen3"), head_dim=head)
        case "qwen2_5_vl":
            return _windowed(seed, head)
    raise ValueError(kind)


def _heads(head: int) -> dict[str, int]:
    """Heads of `head` numbers that make up the text model's width, as Qwen2.5's do."""
    return {"num_attention_heads": 64 // head, "num_key_value_heads": 32 // head}


def _windowed(seed: int, head: int) -> Checkpoint:
    """Windows of 2 x 2 tokens in two of three vision layers; the text model is 64 wide."""
    special = (*TURNS, *CALLS, *Qwen25VL.unsampled)
    tokenizer = tiny_tokenizer(special, shipped("qwen2_5_vl"))
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in (
        "image_pad", "video_pad", "vision_start", "vision_end")}  # fmt: skip
    text = TEXT | _heads(head) | {
        "vocab_size": len(tokenizer),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0,
            "mrope_section": [head // 4, head // 8, head // 8],
        },
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "depth": 3, "num_heads": 2, "intermediate_size": 64,
        "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": 2,
        "out_hidden_size": 64, "window_size": 32, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = AutoConfig.for_model(
        "qwen2_5_vl", text_config=text, vision_config=vision, tie_word_embeddings=True,
        image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"],
        dtype="float32",
    )  # fmt: skip
    model = tiny_model(config, seed)
    images = tiny_processor(PATCH, 16 * 16, 128 * 128)
    processor = Processor.of(f"tiny-qwen2_5_vl-{seed}", config, tokenizer, images)
    return Checkpoint(processor, model)
