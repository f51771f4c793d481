"""Sixteen demonstrations, and the rows that are trained on, in DeepEyes-47k's form (verl's schema).

Each of the four questions is demonstrated four times: answered at sight, right and wrong, and with
a zoom. In every second question there are two zooms, of which one leads to the right answer; in the
others there is one, which does not. So a model that knows nothing but these has mixed rewards,
calls a tool in three of eight rollouts, and has all-wrong tool use, some of which another call
recovers. Every text is short: a rollout samples at most 64 tokens.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

TRUTHS = ("red", "blue", "green", "yellow")
WRONG = ("black", "white")


def write_data(folder: Path) -> None:
    """Write `sft.jsonl`, `images/` and `train.parquet` into `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    demonstrations: list[str] = []
    rows: list[dict[str, object]] = []
    for i, truth in enumerate(TRUTHS):
        question = f"What is the colour of card {i + 1}?"
        picture = _picture(truth, i)
        picture.save(folder / "images" / f"{i}.png")
        data = io.BytesIO()
        picture.save(data, "PNG")
        for number, turns in enumerate(_turns(i, truth)):
            demonstrations.append(
                json.dumps(
                    {
                        "id": f"{i}-{number}", "question": question, "images": [f"images/{i}.png"],
                        "answer": truth, "demonstration": turns,
                    }
                )
            )  # fmt: skip
        rows.append(_row(i, question, truth, data.getvalue()))
    (folder / "sft.jsonl").write_text("\n".join(demonstrations) + "\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")


def _turns(i: int, truth: str) -> list[list[str]]:
    """The turns of question `i`'s four demonstrations."""
    at_sight = [[_answer("Clear", truth)], [_answer("Clear", WRONG[0])]]
    zoomed = [[_call(i), _answer("So", WRONG[0])], [_call(i + 1), _answer("So", truth)]]
    if i % 2:
        return [*at_sight, *zoomed]
    return [*at_sight, [_answer("Clear", WRONG[1])], zoomed[0]]


def _answer(thought: str, answer: str) -> str:
    return f"{thought}.\n</think>\n\n<answer>{answer}</answer>"


def _call(corner: int) -> str:
    box = [corner, corner, corner + 5, corner + 5]
    arguments = {"bbox_2d": box, "label": "card", "img_idx": 0}
    call = {"name": "image_zoom_in_tool", "arguments": arguments}
    return f"Small.\n</think>\n\n<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _picture(colour: str, i: int) -> Image.Image:
    picture = Image.new("RGB", (256, 256), "grey")
    ImageDraw.Draw(picture).rectangle((40 + 20 * i, 60, 120 + 20 * i, 160), fill=colour)
    return picture


def _row(i: int, question: str, truth: str, png: bytes) -> dict[str, object]:
    return {
        "data_source": "rehearsal",
        "prompt": [{"role": "user", "content": f"<image>\n{question}"}],
        "images": [{"bytes": png, "path": None}],
        "ability": "visual",
        "env_name": "visual_toolbox_v2",
        "reward_model": {"ground_truth": truth, "style": "model"},
        "extra_info": {"answer": truth, "id": i, "image": f"{i}.png", "question": question},
    }
