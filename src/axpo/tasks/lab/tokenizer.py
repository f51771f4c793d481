"""The lab's tokenizer: any text as bytes, the lab's own phrases as one token each.

Owns the vocabulary. A byte-level BPE without merges represents any text; Qwen's special tokens
are the family's own; the lab's phrases (whole tools headers, question words, thinking, the
scaffolding of calls, coordinates, names of places) are added tokens, matched leftmost-longest. So
a lab prompt is some 40 tokens in the real Qwen3-VL wire format, rendered by the real renderer.

Headers are taken from rendering the tools' actual specs when the tokenizer is built: after a
change of a spec, or with other tools, they still render, but byte by byte; rebuild the base then.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from axpo.tasks.lab.facts import ALL_PLACES

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
CONTROL_TOKENS = (
    "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>",
)  # fmt: skip
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""The family's turns, for those who look into a checkpoint: a model that begins in thinking."""
COORDINATE_STEP = 20
CELLS = 4

ZOOM_OPEN = '\n{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": ['
ZOOM_CLOSE = ', "label": "digit", "img_idx": 0}}\n'
PYTHON_CALL = '\n{"name": "python", "arguments": '
SEARCH_CALL = '\n{"name": "web_search", "arguments": '
CALL_CLOSE = "}\n"
BOX_OPEN = '{"bbox_2d": ['
BOX_CLOSE = ', "label": "digit"}'
CODE_OPEN = '{"code": "'
QUERY_OPEN = '{"query": "'
TEXT_CLOSE = '"}'
TIMES, PLUS = " * ", " + "
ANSWER = "Answer: "
CLOSE_THINKING = "\n</think>\n\n"
LARGE_ENOUGH = "large enough to read in "
TOO_SMALL = "too small, zoom in on "
FOUND = "it can be read now"
NOT_FOUND = "no digit there, a guess"
SHOWS = ": "
CALCULATE = "; calculate"
LOOK_UP = "; look it up"
BY_HEART = "; known by heart"
REFERS = "it refers to "
ASK_DIGIT = "Which digit is on the "
ASK_PLACE = "Where is the "
ASK_SHOWN = "Which digit is shown?"
ASK_RESULT = "Which result is shown?"
ASK_VALUE = "What is the digit on the "
ASK_TIMES = " card times "
ASK_CODE = "Which code has the digit on the "
ASK_WHERE = " card in "
FACT_CODE = "** has code "
FACT_NEXT = "** is "


def code_phrase(code: str) -> str:
    """Code as the `python` tool's arguments."""
    return CODE_OPEN + code + TEXT_CLOSE


def query_phrase(query: str) -> str:
    """A query as the `web_search` tool's arguments."""
    return QUERY_OPEN + query + TEXT_CLOSE


def cell_phrase(row: int, column: int) -> str:
    """How the thinking names a cell of the coarse `CELLS` x `CELLS` grid."""
    return f"row {row + 1}, column {column + 1}"


def box_phrase(bbox: tuple[int, int, int, int]) -> str:
    """A box as a call writes it, with the closing bracket."""
    return ", ".join(str(v) for v in bbox) + "]"


def phrases() -> list[str]:
    """Every phrase that is one token, besides the tools headers."""
    words = [
        "system\n", "user\n", "assistant\n", "\n\n", ZOOM_OPEN, ZOOM_CLOSE, PYTHON_CALL,
        SEARCH_CALL, CALL_CLOSE, BOX_OPEN, BOX_CLOSE, CODE_OPEN, QUERY_OPEN, TEXT_CLOSE,
        TIMES, PLUS, ANSWER, LARGE_ENOUGH, TOO_SMALL, FOUND, NOT_FOUND, SHOWS, CALCULATE,
        LOOK_UP, BY_HEART, REFERS, ASK_DIGIT, ASK_PLACE, ASK_SHOWN, ASK_RESULT, ASK_VALUE,
        ASK_TIMES, ASK_CODE, ASK_WHERE, FACT_CODE, FACT_NEXT, "[1] ", "**", "** **",
        "No results.", "Error: ", "red", "blue", "green", "yellow", " card?", *ALL_PLACES,
    ]  # fmt: skip
    words += [f"row {i + 1}, " for i in range(CELLS)] + [f"column {i + 1}" for i in range(CELLS)]
    for value in range(0, 1001, COORDINATE_STEP):
        words += [f"{value}, ", f"{value}]"]
    return words


def tools_header(tool_specs: list[dict[str, Any]]) -> str:
    """The system turn's text that the family's renderer writes for these tools."""
    import json

    from renderers.qwen3_vl import _TOOLS_FOOTER, _TOOLS_HEADER

    specs = "".join("\n" + json.dumps(spec, ensure_ascii=False) for spec in tool_specs)
    return _TOOLS_HEADER + specs + _TOOLS_FOOTER


def build_tokenizer(*toolsets: list[dict[str, Any]]) -> Any:
    """A fast tokenizer with the system turn of each of `toolsets` (specs of tools) as a token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

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


def save_tokenizer(folder: Path, *toolsets: list[dict[str, Any]]) -> Any:
    """Build, save into `folder` (loadable by `AutoTokenizer`), and return the tokenizer."""
    tokenizer = build_tokenizer(*toolsets)
    tokenizer.save_pretrained(folder)
    return tokenizer
