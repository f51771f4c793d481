"""Qwen's true vocabulary from the BPE ranks that PyPI's `dashscope` ships (Apache-2.0).

151,643 byte-level tokens and Qwen3-VL's 26 added ones make ids 0 to 151,668, as in its published
tokenizer.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tokenizers import AddedToken, normalizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

RANKS = "resources/qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen splits text before BPE (tokenizer.json of every Qwen2 and Qwen3)."""
ADDED = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", "<tool_call>",
    "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
"""From id 151,643 on."""
NOT_SPECIAL = ("tool_call>", "fim_", "repo_name", "file_sep", "tool_response>", "think>")
"""Added tokens whose names hold one of these are not "special" in the published tokenizer."""
TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{%- endfor -%}{%- if add_generation_prompt -%}<|im_start|>assistant\n<think>\n{%- endif -%}"
)
"""Says no more than that the model thinks: prompts are rendered by `renderers`."""


def true_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen3-VL's tokenizer. Raises `FileNotFoundError` where `dashscope` is not installed."""
    converter = TikTokenConverter(str(ranks()), PATTERN)
    core = converter.converted()
    core.normalizer = normalizers.NFC()  # pyright: ignore
    special = [not any(name in token for name in NOT_SPECIAL) for token in ADDED]
    core.add_tokens(
        [AddedToken(t, special=s, normalized=False) for t, s in zip(ADDED, special, strict=True)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def ranks() -> Path:
    """The file of BPE ranks; the package is not imported, as its own dependencies are not here."""
    found = importlib.util.find_spec("dashscope")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / RANKS).is_file():
            return path
    raise FileNotFoundError(
        "no BPE ranks: `make rehearsal` installs them (pip install --no-deps dashscope)"
    )
