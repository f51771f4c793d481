"""The lab's tokenizer: any text as bytes, the lab's own phrases as one token each.

Owns the vocabulary. A byte-level BPE without merges represents any text; Qwen's special tokens
are the family's own; the lab's phrases (whole tools headers, question words, thinking, the
scaffolding of calls, coordinates, names of places) are added tokens, matched leftmost-longest. So
a lab prompt is some 40 tokens in the real Qwen3-VL wire format, rendered by the real renderer.

Headers are taken from rendering the tools' actual specs when the tokenizer is built: after a
change of a spec, or with other tools, they still render, but byte by byte; rebuild the base then.
"""

from __future__ import annotations

import json
from typing import Any

from renderers.qwen3_vl import _TOOLS_FOOTER, _TOOLS_HEADER
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from axpo.models.tiny import CHAT_TEMPLATE
from axpo.tasks.lab import facts, words

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CONTROL_TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
COORDINATE_STEP = 20


def phrases() -> list[str]:
    """Every phrase that is one token, besides the tools headers."""
    w = words
    found = [
        "system\n", "user\n", "assistant\n", "\n\n", w.ZOOM_OPEN, w.ZOOM_CLOSE, w.PYTHON_CALL,
        w.SEARCH_CALL, w.CALL_CLOSE, w.BOX_OPEN, w.BOX_CLOSE, w.CODE_OPEN, w.QUERY_OPEN,
        w.TEXT_CLOSE, w.TIMES, w.PLUS, w.ANSWER, w.LARGE_ENOUGH, w.TOO_SMALL, w.FOUND, w.NOT_FOUND,
        w.SHOWS, w.CALCULATE, w.LOOK_UP, w.BY_HEART, w.REFERS, w.ASK_DIGIT, w.ASK_PLACE,
        w.ASK_SHOWN, w.ASK_RESULT, w.ASK_VALUE, w.ASK_TIMES, w.ASK_CODE, w.ASK_WHERE, w.FACT_CODE,
        w.FACT_NEXT, "[1] ", "**", "** **", "No results.", "Error: ", "red", "blue", "green",
        "yellow", " card?", *facts.ALL_PLACES,
    ]  # fmt: skip
    cells = range(1, w.CELLS + 1)
    found += [f"row {i}, " for i in cells] + [f"column {i}" for i in cells]
    for value in range(0, 1001, COORDINATE_STEP):
        found += [f"{value}, ", f"{value}]"]
    return found


def tools_header(tool_specs: list[dict[str, Any]]) -> str:
    """The system turn's text that the family's renderer writes for these tools."""
    specs = "".join("\n" + json.dumps(spec, ensure_ascii=False) for spec in tool_specs)
    return _TOOLS_HEADER + specs + _TOOLS_FOOTER


def build_tokenizer(*toolsets: list[dict[str, Any]]) -> Any:
    """A fast tokenizer with the system turn of each of `toolsets` (specs of tools) as a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL_TOKENS])
    texts = [*CONTROL_TOKENS, *map(tools_header, toolsets), *phrases()]
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in texts])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
        chat_template=CHAT_TEMPLATE,
    )
