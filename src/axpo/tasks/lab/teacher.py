"""The teacher: demonstrations for the supervised cold start, precise or noisy on purpose.

Owns how the teacher errs, and its demonstrations of *find* (those of the other families are in
`calculate` and `look_up`). Its thinking commits to something seen, a cell of a coarse grid or a
digit, and its call builds on it. If the thinking saw something wrong, no call that follows can
help; a wrong call can be recovered by another. Resampling from a tool call needs this structure.
The rates of both mistakes are settings.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from axpo.tasks.lab import words
from axpo.tasks.lab.pictures import Scene, SceneBox, SceneCard, shown_card, to_relative

WINDOW_STEP = 80
WINDOW_HARD, WINDOW_EASY = 160, 340
GridCell = tuple[int, int]
ZoomWindow = tuple[int, int, int, int]


@dataclass(frozen=True)
class TeacherSettings:
    """How often the teacher calls a tool and errs. All values are our choices, tuned to the paper's
    gap."""

    tool_easy: float = 0.28
    tool_hard: float = 0.36
    wrong_thought: float = 0.0
    wrong_call: float = 0.0
    other_card: float = 0.7
    """The share of wrong thoughts that are about another card; the others are about anything."""

    def calls(self, easy: bool, rng: random.Random) -> bool:
        """Whether a demonstration calls a tool."""
        return rng.random() < (self.tool_easy if easy else self.tool_hard)


NOISY = TeacherSettings(wrong_thought=0.3, wrong_call=0.3)
NOISY_WRITING = TeacherSettings(wrong_thought=0.4, wrong_call=0.6)
"""The teacher of code and queries; the policy corrects more of its mistakes by itself."""


def _centre(box: SceneBox) -> tuple[float, float]:
    x1, y1, x2, y2 = to_relative(box)
    return (x1 + x2) / 2, (y1 + y2) / 2


def cell_of(card: SceneCard) -> GridCell:
    """(row, column) of the coarse cell that holds the card's digit."""
    return cell_at(card.digit_box)


def cell_at(box: SceneBox) -> GridCell:
    """(row, column) of the coarse cell that holds the middle of `box`."""
    x, y = _centre(box)
    size = 1000 / words.CELLS
    return min(int(y / size), words.CELLS - 1), min(int(x / size), words.CELLS - 1)


def _snap(centre: float, width: int) -> int:
    return min(max(WINDOW_STEP * round((centre - width / 2) / WINDOW_STEP), 0), 1000 - width)


def window_of(card: SceneCard) -> ZoomWindow:
    """The grid window whose centre is nearest to the card's digit; it always shows the digit."""
    width = WINDOW_EASY if card.easy else WINDOW_HARD
    x, y = (_snap(v, width) for v in _centre(card.digit_box))
    return x, y, x + width, y + width


def window_in(cell: GridCell) -> ZoomWindow:
    """The window in the middle of a cell, where the teacher looks if no card is there."""
    size = 1000 / words.CELLS
    x, y = (_snap((v + 0.5) * size, WINDOW_HARD) for v in (cell[1], cell[0]))
    return x, y, x + WINDOW_HARD, y + WINDOW_HARD


def moved(window: ZoomWindow, dx: int, dy: int) -> ZoomWindow:
    """The window, moved so far that little of its card's digit is left in it."""
    width = window[2] - window[0]
    far = WINDOW_STEP * (3 if width == WINDOW_EASY else 2)
    x, y = (min(max(v + far * d, 0), 1000 - width) for v, d in ((window[0], dx), (window[1], dy)))
    return x, y, x + width, y + width


def drifted(window: ZoomWindow, rng: random.Random) -> ZoomWindow:
    """The window with the noisy teacher's mistake: too far to the left or to the right.

    At the picture's edge it goes the other way. There are only two mistakes, along one axis, so a
    prefix leads to few distinct calls and a small model learns them without mixing them up.
    """
    dx = rng.choice((-1, 1))
    off = moved(window, dx, 0)
    return off if abs(off[0] - window[0]) >= WINDOW_HARD else moved(window, -dx, 0)


def choose_cell(scene: Scene, rng: random.Random, settings: TeacherSettings) -> GridCell:
    """The target's cell, or by mistake another card's or any other cell."""
    right = cell_of(scene.target)
    if rng.random() >= settings.wrong_thought:
        return right
    others = [c for c in map(cell_of, scene.cards[1:]) if c != right]
    if others and rng.random() < settings.other_card:
        return rng.choice(others)
    cells = [(r, c) for r in range(words.CELLS) for c in range(words.CELLS) if (r, c) != right]
    return rng.choice(cells)


def choose_window(
    scene: Scene, cell: GridCell, rng: random.Random, settings: TeacherSettings
) -> ZoomWindow:
    """The window of the card in the cell (the target before others), perhaps with a mistake."""
    card = next((c for c in scene.cards if cell_of(c) == cell), None)
    window = window_of(card) if card else window_in(cell)
    return drifted(window, rng) if rng.random() < settings.wrong_call else window


def call_turn(thinking: str, call: str) -> str:
    """A turn that calls a tool; `call` is what stands between the tags."""
    return f"{thinking}{words.CLOSE_THINKING}<tool_call>{call}</tool_call>"


def answer_turn(thinking: str, answer: str | int) -> str:
    """A turn that ends the trajectory."""
    return f"{thinking}{words.CLOSE_THINKING}{words.ANSWER}{answer}"


def zoom_turn(cell: GridCell, window: ZoomWindow) -> str:
    """The first turn of a trajectory that zooms."""
    call = words.ZOOM_OPEN + words.box_phrase(window) + words.ZOOM_CLOSE
    return call_turn(words.TOO_SMALL + words.cell_phrase(*cell), call)


def locating(cell: GridCell) -> str:
    """Thinking that names the cell of a card that needs no zoom."""
    return words.LARGE_ENOUGH + words.cell_phrase(*cell)


def seeing(cell: GridCell, digit: int) -> str:
    """Thinking that names a digit and where it is."""
    return f"{locating(cell)}{words.SHOWS}{digit}"


def choose_seen(
    scene: Scene, rng: random.Random, settings: TeacherSettings
) -> tuple[GridCell, int]:
    """The target's cell and digit, or by mistake those of another card, or another digit."""
    right = cell_of(scene.target), scene.target.digit
    if rng.random() >= settings.wrong_thought:
        return right
    if rng.random() < settings.other_card:
        card = rng.choice(scene.cards[1:])
        return cell_of(card), card.digit
    return right[0], rng.choice([d for d in range(10) if d != right[1]])


def recalling_turn(thinking: str, answer: int) -> str:
    """A turn that answers what is known by heart."""
    return answer_turn(thinking + words.BY_HEART, answer)


def reading_small(card: SceneCard) -> str:
    """The only turn of a trajectory without a tool: where the card is, then its digit."""
    return answer_turn(locating(cell_of(card)), card.digit)


def reading_turn(scene: Scene, window: ZoomWindow, rng: random.Random) -> str:
    """The second turn, which reads the digit that the crop shows, or guesses if it shows none
    whole."""
    card = shown_card(scene, window)
    if card is None:
        return answer_turn(words.NOT_FOUND, rng.randrange(10))
    return answer_turn(words.FOUND, card.digit)


def find_demonstration(scene: Scene, rng: random.Random, settings: TeacherSettings) -> list[str]:
    """The policy turns of one teacher trajectory, without the end-of-turn token."""
    if not settings.calls(scene.target.easy, rng):
        return [reading_small(scene.target)]
    cell = choose_cell(scene, rng, settings)
    window = choose_window(scene, cell, rng, settings)
    return [zoom_turn(cell, window), reading_turn(scene, window, rng)]
