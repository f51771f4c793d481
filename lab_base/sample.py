"""Draws the sample rows of `src/axpo/tasks/sample/`: `python -m lab_base.sample`.

Every picture is drawn with Pillow's own font, from a seed that is the name of its row.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from axpo.tasks.sample import FILES

SIZE = (640, 448)
INK, PAPER = "#2b2b33", "#f6f3ec"
COLOURS = {"red": "#c8453c", "blue": "#3b6fb6", "green": "#4c9a58", "yellow": "#e3b341"}
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun")
Row = dict[str, Any]
Picture = Image.Image
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def _canvas(colour: str = PAPER) -> tuple[Picture, ImageDraw.ImageDraw]:
    image = Image.new("RGB", SIZE, colour)
    return image, ImageDraw.Draw(image)


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: float, fill: str = INK
) -> None:
    draw.text(at, text, fill, ImageFont.load_default(size), anchor="mm")


def street(rng: random.Random, plate: str) -> tuple[Picture, Box]:
    """A street with a parked car; also where its number plate is."""
    image, draw = _canvas("#bcd6ea")
    draw.rectangle((0, 330, 640, 448), "#8d8d92")
    for left in range(0, 640, 160):
        wall = rng.choice(("#d9b99b", "#c9c2b4", "#b7a08e", "#d6cfa8"))
        top = rng.randint(60, 130)
        draw.rectangle((left + 6, top, left + 150, 330), wall)
        for x in range(left + 24, left + 130, 42):
            for y in range(top + 20, 290, 56):
                draw.rectangle((x, y, x + 22, y + 32), rng.choice(("#6f8698", "#f0e2a0")))
    x, body = rng.randint(60, 380), rng.choice(list(COLOURS.values()))
    draw.rounded_rectangle((x, 290, x + 190, 360), 16, body)
    draw.polygon([(x + 34, 292), (x + 60, 246), (x + 138, 246), (x + 164, 292)], body)
    draw.polygon([(x + 48, 288), (x + 66, 254), (x + 132, 254), (x + 150, 288)], "#dce9f2")
    for wheel in (x + 16, x + 138):
        draw.ellipse((wheel, 340, wheel + 38, 378), INK)
    box = (x + 66.0, 322.0, x + 126.0, 340.0)
    draw.rectangle(box, "white", INK)
    _write(draw, ((box[0] + box[2]) / 2, 331), plate, 12)
    return image, box


def board(rng: random.Random, notes: Mapping[str, str]) -> tuple[Picture, dict[str, Box]]:
    """A pin board with a note of each colour and small writing on it; also where they are."""
    image, draw = _canvas("#b98d5e")
    draw.rectangle((12, 12, 628, 436), "#cfa675", "#8a6440", 8)
    places = rng.sample([(x, y) for x in (50, 240, 430) for y in (50, 240)], len(notes))
    boxes: dict[str, Box] = {}
    for (colour, text), (x, y) in zip(notes.items(), places, strict=True):
        boxes[colour] = (x, y, x + 150, y + 140)
        draw.rectangle(boxes[colour], COLOURS[colour])
        draw.rectangle((x + 12, y + 46, x + 138, y + 94), "#fffdf5")
        draw.ellipse((x + 69, y + 6, x + 81, y + 18), INK)
        _write(draw, (x + 75, y + 70), text, 13)
    return image, boxes


def bars(values: Sequence[int]) -> Picture:
    """A bar chart of months with its values above the bars."""
    image, draw = _canvas("white")
    _write(draw, (320, 26), "Parcels a month", 20)
    draw.line((60, 390, 600, 390), INK, 2)
    for place, (month, value) in enumerate(zip(MONTHS, values, strict=False)):
        x = 90 + place * 84
        top = 390 - value * 300 / max(values)
        draw.rectangle((x, top, x + 50, 390), COLOURS["blue"])
        _write(draw, (x + 25, top - 12), str(value), 16)
        _write(draw, (x + 25, 410), month, 16)
    return image


def shapes(rng: random.Random, counts: Mapping[tuple[str, str], int]) -> Picture:
    """A picture with this many of each (colour, shape), none over another."""
    image, draw = _canvas()
    cells = rng.sample([(x, y) for x in range(8) for y in range(5)], sum(counts.values()))
    wanted = [kind for kind, count in counts.items() for _ in range(count)]
    for (colour, shape), (column, row) in zip(wanted, cells, strict=True):
        x, y = 40 + column * 76 + rng.randint(-8, 8), 46 + row * 86 + rng.randint(-8, 8)
        r, fill = rng.randint(16, 26), COLOURS[colour]
        if shape == "circle":
            draw.ellipse((x - r, y - r, x + r, y + r), fill, INK)
        elif shape == "square":
            draw.rectangle((x - r, y - r, x + r, y + r), fill, INK)
        else:
            draw.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill, INK)
    return image


def clock(hour: int, minute: int) -> Picture:
    """A clock on a wall."""
    image, draw = _canvas("#d8cdbd")
    middle, radius = (320, 224), 170
    draw.circle(middle, radius, "white", INK, 8)
    for number in range(1, 13):
        _write(draw, _hand(middle, 140, number / 12), str(number), 24)
    draw.line((middle, _hand(middle, 84, (hour + minute / 60) / 12)), INK, 10)
    draw.line((middle, _hand(middle, 122, minute / 60)), INK, 6)
    draw.circle(middle, 9, INK)
    return image


def _hand(middle: tuple[int, int], length: float, turn: float) -> tuple[float, float]:
    angle = 2 * math.pi * turn
    return middle[0] + length * math.sin(angle), middle[1] - length * math.cos(angle)


def _zoom(box: Box, label: str, thought: str) -> str:
    """A turn of the teacher that looks closer at `box`, with a margin."""
    scale = [1000 / side for side in (*SIZE, *SIZE)]
    wider = (box[0] - 20, box[1] - 20, box[2] + 20, box[3] + 20)
    relative = [min(1000, max(0, round(a * b))) for a, b in zip(wider, scale, strict=True)]
    call = {
        "name": "image_zoom_in_tool",
        "arguments": {"bbox_2d": relative, "label": label, "img_idx": 0},
    }
    return f"{thought}\n</think>\n\n<tool_call>\n{json.dumps(call)}\n</tool_call>"


def _answer(thought: str, answer: str) -> str:
    return f"{thought}\n</think>\n\n<answer>{answer}</answer>"


class Sample:
    """Rows by split, and their pictures by file name."""

    def __init__(self) -> None:
        self.rows: dict[str, list[Row]] = {"train": [], "sft": [], "test": []}
        self.pictures: dict[str, Picture] = {}

    def add(
        self, split: str, pictures: Sequence[Picture], question: str, answer: str, kind: str,
        demonstration: Sequence[str] = (), **more: Any,
    ) -> None:  # fmt: skip
        """Add a row; `kind` is what it is about."""
        id = f"{split}-{len(self.rows[split]) + 1}"
        names = [f"{id}{'ab'[i] if len(pictures) > 1 else ''}.png" for i in range(len(pictures))]
        self.pictures |= dict(zip(names, pictures, strict=True))
        row: Row = {"id": id, "question": question, "images": names, "answer": answer, **more}
        if demonstration:
            row["demonstration"] = list(demonstration)
        self.rows[split].append(row | {"meta": {"kind": kind}})

    def plate(self, split: str, text: str) -> None:
        """A row that asks for the number plate of a car."""
        image, box = street(random.Random(f"{split}/{text}"), text)
        turns = (
            _zoom(box, "number plate", "The plate is too small to read from here. I look closer."),
            _answer(f"Now I can read it: {text}.", text),
        )
        question = "What does the car's number plate say?"
        self.add(split, [image], question, text, "plate", turns if split == "sft" else ())

    def note(self, split: str, notes: Mapping[str, str], colour: str) -> None:
        """A row that asks for the writing on one of the notes."""
        image, boxes = board(random.Random(f"{split}/{notes}"), notes)
        turns = (
            _zoom(boxes[colour], f"{colour} note", f"The {colour} note has small writing."),
            _answer(f"It says {notes[colour]}.", notes[colour]),
        )
        question = f"What is written on the {colour} note?"
        self.add(split, [image], question, notes[colour], "note", turns if split == "sft" else ())

    def total(self, split: str, values: Sequence[int]) -> None:
        """A row that asks for the sum of the bars."""
        said = " + ".join(map(str, values))
        turns = (_answer(f"The bars say {said} = {sum(values)}.", str(sum(values))),)
        self.add(
            split, [bars(values)], "How many parcels were there in all months together?",
            str(sum(values)), "chart", turns if split == "sft" else (), grading="math",
        )  # fmt: skip

    def most(self, split: str, values: Sequence[int]) -> None:
        """A row that asks for the month with the highest bar, with options."""
        options = list(MONTHS[: len(values)])
        right = options[max(range(len(values)), key=values.__getitem__)]
        question = "Which month has the highest bar?"
        self.add(split, [bars(values)], question, right, "chart", options=options)

    def count(self, split: str, counts: Mapping[tuple[str, str], int]) -> None:
        """A row that asks how many there are of the first (colour, shape)."""
        (colour, shape), number = next(iter(counts.items()))
        image = shapes(random.Random(f"{split}/{counts}"), counts)
        turns = (_answer(f"I count the {colour} {shape}s: there are {number}.", str(number)),)
        self.add(
            split, [image], f"How many {colour} {shape}s are there?", str(number), "count",
            turns if split == "sft" else (), grading="math",
        )  # fmt: skip

    def time(self, split: str, hour: int, minute: int) -> None:
        """A row that asks for the time on a clock."""
        text = f"{hour}:{minute:02}"
        turns = (_answer(f"The hour hand is past {hour}, the long one at {minute}.", text),)
        self.add(
            split, [clock(hour, minute)], "What time is it? Answer as 3:05.", text, "clock",
            turns if split == "sft" else (),
        )  # fmt: skip

    def later(self, split: str, first: tuple[int, int], second: tuple[int, int]) -> None:
        """A row that asks which of two clocks shows the later time."""
        images = [clock(*first), clock(*second)]
        question = "<image1>\n<image2>\nWhich clock shows the later time?"
        right = "the first" if first > second else "the second"
        self.add(split, images, question, right, "clock", options=["the first", "the second"])


def sample() -> Sample:
    """All rows."""
    made = Sample()
    made.plate("train", "KP-417")
    made.plate("train", "BX-902")
    made.note("train", {"red": "call Noor", "blue": "bread, tea", "green": "room 214"}, "green")
    made.note("train", {"yellow": "bus 38", "red": "pay Anna", "blue": "door 7"}, "yellow")
    made.total("train", (12, 7, 19, 4))
    made.most("train", (31, 18, 44, 40, 22))
    made.count("train", {("blue", "triangle"): 5, ("blue", "circle"): 4, ("red", "triangle"): 6})
    made.later("train", (4, 25), (7, 50))
    made.plate("sft", "TR-358")
    made.plate("sft", "LM-076")
    made.note("sft", {"blue": "code 5519", "green": "gym 18:30", "yellow": "eggs"}, "blue")
    made.total("sft", (8, 15, 23))
    made.count("sft", {("red", "square"): 7, ("green", "square"): 3, ("red", "circle"): 5})
    made.time("sft", 10, 10)
    made.plate("test", "QD-641")
    made.note("test", {"green": "flight 82", "red": "Lisbon", "yellow": "seat 14C"}, "yellow")
    made.total("test", (21, 9, 16, 30, 5))
    made.most("test", (14, 27, 25, 11))
    made.count("test", {("yellow", "circle"): 6, ("yellow", "square"): 4, ("green", "circle"): 5})
    made.time("test", 2, 40)
    return made


def build(folder: Path) -> None:
    """Write the rows and their pictures into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = sample()
    for split, rows in made.rows.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    for name, picture in made.pictures.items():
        few = picture.quantize(32, dither=Image.Dither.NONE)
        few.save(folder / name, optimize=True)


if __name__ == "__main__":
    build(Path(FILES).parent)
