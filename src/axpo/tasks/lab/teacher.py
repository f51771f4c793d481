"""The teacher: demonstrations for the supervised cold start, precise or noisy on purpose.

Owns what a good zoom is (a window on a coarse grid that shows a card's digit whole) and how the
teacher errs. Its thinking commits to a cell of a coarse grid; its call refines it to a window.
A wrong cell is hopeless whatever call follows, a right cell can be recovered by another call: that
is the structure that resampling from a tool call needs. The two rates are settings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from axpo.tasks.lab import tokenizer as words
from axpo.tasks.lab.pictures import Box, Card, Scene, shown_card, to_relative

WINDOW_STEP = 80
WINDOW_HARD, WINDOW_EASY = 160, 340
Cell = tuple[int, int]
Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class TeacherSettings:
    """How often the teacher zooms and errs. All are our choices, tuned to the paper's gap."""

    tool_easy: float = 0.28
    tool_hard: float = 0.36
    wrong_cell: float = 0.0
    wrong_window: float = 0.0
    wrong_cell_on_card: float = 0.7
    """Of the wrong cells, how many are the cell of another card (else: any other cell)."""


PRECISE = TeacherSettings(tool_easy=0.5, tool_hard=0.6)
NOISY = TeacherSettings(wrong_cell=0.3, wrong_window=0.3)


def _centre(box: Box) -> tuple[float, float]:
    x1, y1, x2, y2 = to_relative(box)
    return (x1 + x2) / 2, (y1 + y2) / 2


def cell_of(card: Card) -> Cell:
    """(row, column) of the coarse cell that holds the card's digit."""
    x, y = _centre(card.digit_box)
    size = 1000 / words.CELLS
    return min(int(y / size), words.CELLS - 1), min(int(x / size), words.CELLS - 1)


def _snap(centre: float, width: int) -> int:
    return min(max(WINDOW_STEP * round((centre - width / 2) / WINDOW_STEP), 0), 1000 - width)


def window_of(card: Card) -> Window:
    """The grid window whose centre is nearest to the card's digit: always a hit."""
    width = WINDOW_EASY if card.easy else WINDOW_HARD
    x, y = (_snap(v, width) for v in _centre(card.digit_box))
    return x, y, x + width, y + width


def window_in(cell: Cell) -> Window:
    """The window in the middle of a cell: where the teacher looks when no card is there."""
    size = 1000 / words.CELLS
    x, y = (_snap((v + 0.5) * size, WINDOW_HARD) for v in (cell[1], cell[0]))
    return x, y, x + WINDOW_HARD, y + WINDOW_HARD


def _moved(window: Window, dx: int, dy: int) -> Window:
    """The window moved so far that little of its card's digit is left in it."""
    width = window[2] - window[0]
    far = WINDOW_STEP * (3 if width == WINDOW_EASY else 2)
    x, y = (min(max(v + far * d, 0), 1000 - width) for v, d in ((window[0], dx), (window[1], dy)))
    return x, y, x + width, y + width


def shifted(window: Window, rng: random.Random) -> Window:
    """The window moved in x, in y or in both: a miss, unless the picture's edge stops it."""
    while True:
        other = _moved(window, rng.choice((-1, 0, 1)), rng.choice((-1, 0, 1)))
        if other != window:
            return other


def drifted(window: Window, rng: random.Random) -> Window:
    """The noisy teacher's own mistake: too far to the left or to the right.

    At the picture's edge it goes the other way. Only two ways to err, and along one axis, so that
    a prefix leads to few distinct calls and a small model learns them without mixing them up.
    """
    dx = rng.choice((-1, 1))
    moved = _moved(window, dx, 0)
    return moved if abs(moved[0] - window[0]) >= WINDOW_HARD else _moved(window, -dx, 0)


def choose_cell(scene: Scene, rng: random.Random, settings: TeacherSettings) -> Cell:
    """The target's cell, or by mistake another card's, or any other."""
    right = cell_of(scene.target)
    if rng.random() >= settings.wrong_cell:
        return right
    others = [c for c in map(cell_of, scene.cards[1:]) if c != right]
    if others and rng.random() < settings.wrong_cell_on_card:
        return rng.choice(others)
    cells = [(r, c) for r in range(words.CELLS) for c in range(words.CELLS) if (r, c) != right]
    return rng.choice(cells)


def choose_window(
    scene: Scene, cell: Cell, rng: random.Random, settings: TeacherSettings
) -> Window:
    """The window of the card in the cell (the target before others), perhaps a step off."""
    card = next((c for c in scene.cards if cell_of(c) == cell), None)
    window = window_of(card) if card else window_in(cell)
    return drifted(window, rng) if rng.random() < settings.wrong_window else window


def zoom_turn(cell: Cell, window: Window) -> str:
    """First turn of a tool trajectory."""
    return (
        words.TOO_SMALL + words.cell_phrase(*cell) + words.CLOSE_THINKING
        + "<tool_call>" + words.CALL_OPEN + words.box_phrase(window) + words.CALL_CLOSE
        + "</tool_call>"
    )  # fmt: skip


def answer_turn(thinking: str, digit: int) -> str:
    """A turn that ends the trajectory."""
    return f"{thinking}{words.CLOSE_THINKING}{words.ANSWER}{digit}"


def reading_small(card: Card) -> str:
    """The only turn of a trajectory without a tool: where the card is, then its digit."""
    return answer_turn(words.LARGE_ENOUGH + words.cell_phrase(*cell_of(card)), card.digit)


def reading_turn(scene: Scene, window: Window, rng: random.Random) -> str:
    """Second turn: reads whatever digit the crop shows, guesses where it shows none whole."""
    card = shown_card(scene, window)
    if card is None:
        return answer_turn(words.NOT_FOUND, rng.randrange(10))
    return answer_turn(words.FOUND, card.digit)


def demonstration(scene: Scene, rng: random.Random, settings: TeacherSettings) -> list[str]:
    """The policy turns of one teacher trajectory, without the end-of-turn token."""
    rate = settings.tool_easy if scene.target.easy else settings.tool_hard
    if rng.random() >= rate:
        return [reading_small(scene.target)]
    cell = choose_cell(scene, rng, settings)
    window = choose_window(scene, cell, rng, settings)
    return [zoom_turn(cell, window), reading_turn(scene, window, rng)]
