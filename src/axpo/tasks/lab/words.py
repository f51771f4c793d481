"""The lab's words: the phrases of its questions, its thinking and its calls.

The base model's tokenizer has each of these phrases as one token, so a lab prompt has about 40
tokens in the real Qwen3-VL wire format. A change here needs a new base model (`lab_base/`, in
axpo's repository).
"""

from __future__ import annotations

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
    """The arguments of a call of the `python` tool."""
    return CODE_OPEN + code + TEXT_CLOSE


def query_phrase(query: str) -> str:
    """The arguments of a call of the `web_search` tool."""
    return QUERY_OPEN + query + TEXT_CLOSE


def cell_phrase(row: int, column: int) -> str:
    """The thinking's name for a cell of the coarse `CELLS` x `CELLS` grid."""
    return f"row {row + 1}, column {column + 1}"


def box_phrase(bbox: tuple[int, int, int, int]) -> str:
    """A box as a call has it, with the closing bracket."""
    return ", ".join(str(v) for v in bbox) + "]"
