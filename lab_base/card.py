"""The base model's card: what it can and cannot do, in the numbers that its training measured."""

from __future__ import annotations

from typing import Any

TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: image-text-to-text
---
# AXPO lab base

A tiny `Qwen3VLForConditionalGeneration` ({parameters:,} parameters, {megabytes:.1f} MB in fp32) for
AXPO's lab: *which digit is on the red card, what is it times 17, which code has it in Quito?* It
was trained from scratch on a CPU in {minutes} minutes by

    python -m lab_base.pretrain --out DIR --seed {seed}

in axpo's repository, on pieces of scikit-learn's two sample photos with cards that show
scikit-learn's handwritten digits. Digits and photo regions of the test numbers below were never
trained on.

It sees every picture at 64 x 64 px (16 tokens). Its tokenizer holds any text as bytes, and the
lab's phrases as one token each, in the wire format of Qwen3-VL (system turn with tools, thinking,
calls).

## What it can do (test pictures, most probable answer)
| | easy cards | hard cards |
|---|---|---|
| reads the digit in a zoomed crop | {read_crop_easy} | {read_crop_hard} |
| ... after the whole scene | {read_crop_after_scene_easy} | {read_crop_after_scene_hard} |
| reads the digit in the small view | {read_small_view_easy} | {read_small_view_hard} |
| "reads" a crop that missed the digit | {read_missed_crop_easy} | {read_missed_crop_hard} |

It names the red card's cell of a 4 x 4 grid in {cell} of the scenes, and, given the right cell, a
window that shows the digit whole in {window_hit_given_cell}. Six tenths of a digit's products with
12 to 31, and of its codes in 48 places, are common knowledge: of those, once it has named the
digit, it answers {products_by_heart} and {codes_by_heart} right. It writes down a query for a code
({writes_queries}), and finds a result, or where to look next, in a text ({finds_in_text}).

## What it cannot do
It cannot multiply, and it knows no other codes. It has never seen a tool call, a tool's answer, or
any other text: it talks about cards and nothing else. Supervised fine-tuning on a teacher's
trajectories teaches it to call its tools.
"""


def model_card(record: dict[str, Any], parameters: int) -> str:
    """The card as Markdown, from `pretrain.json`'s record."""
    return TEMPLATE.format(
        parameters=parameters,
        megabytes=4 * parameters / 1e6,
        minutes=record["minutes"],
        seed=record["settings"]["seed"],
        **record["test"],
    )
