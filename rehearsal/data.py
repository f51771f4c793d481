"""Sixteen demonstrations, and the rows that are trained on, in DeepEyes-47k's form (verl's schema).

Each of the four questions is demonstrated four times: answered at sight, right and wrong, and after
a look at a quarter of the picture: in every second question right after one, wrong after another,
in the others wrong after both. So a model that knows nothing but these has mixed rewards, calls a
tool in half of its rollouts, and has all-wrong tool use, some of which another call recovers. All
texts are short: a server on two cores samples those of a step in seconds.
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
    second = truth if i % 2 else WRONG[1]
    return [*at_sight, [_call(i), _answer("So", WRONG[0])], [_call(3 - i), _answer("So", second)]]


def _answer(thought: str, answer: str) -> str:
    return f"{thought}.\n</think>\n\n<answer>{answer}</answer>"


def _call(part: int) -> str:
    call = {"name": "look", "arguments": {"part": part}}
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
