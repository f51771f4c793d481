"""The lab's questions: scenes with one verifiable answer, and demonstrations for SFT.

"train" and "sft" are made from training digits, photo regions and places, from disjoint ranges of
scene seeds; "val" and "test" from held-out ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from axpo.tasks.base import Example
from axpo.tasks.lab import calculate, facts, look_up, recognise, teacher, words
from axpo.tasks.lab.pictures import TARGET, Scene, Split, make_scene
from axpo.tasks.lab.task import Family

QUESTION = f"{words.ASK_DIGIT}{TARGET} card?"
SFT_OFFSET = 2**40


@dataclass(frozen=True, slots=True)
class Position:
    """The position of an example. `pixels` is the split of its digits, photos and places; an `easy`
    example needs no tool."""

    split: str
    index: int
    pixels: Split
    seed: int
    easy: bool

    @property
    def id(self) -> str:
        """The example's id."""
        return f"lab-{self.split}-{self.index}"

    def random(self, of: str) -> random.Random:
        """The example's own generator for one purpose."""
        return random.Random(f"lab-{of}/{self.split}/{self.seed}")


def make(family: Family, split: str, index: int) -> Example:
    """The `index`-th example of a split, from this family; the same numbers give the same
    example."""
    pixels: Split = split if split == "val" or split == "test" else "train"
    seed = index + SFT_OFFSET * (split == "sft")
    easy = random.Random(f"lab-easy/{split}/{seed}").random() < facts.KNOWN_SHARE
    example = MAKERS[family](Position(split, index, pixels, seed, easy))
    return replace(example, meta={**example.meta, "family": family})


def _find(place: Position) -> Example:
    scene = make_scene(place.pixels, place.seed, easy=place.easy)
    rng = place.random("teacher")
    return _on_scene(
        place, scene, QUESTION, scene.target.digit,
        lambda: teacher.find_demonstration(scene, rng, teacher.NOISY),
    )  # fmt: skip


def _calculate(place: Position) -> Example:
    scene = make_scene(place.pixels, place.seed, easy=True)
    digit = scene.target.digit
    number = calculate.make_number(place.easy, digit, place.random("number"))
    rng = place.random("teacher")
    return _on_scene(
        place, scene, calculate.product_question(number), digit * number,
        lambda: calculate.product_demonstration(scene, number, rng, teacher.NOISY_WRITING),
    )  # fmt: skip


def _look_up(place: Position) -> Example:
    scene = make_scene(place.pixels, place.seed, easy=True)
    digit = scene.target.digit
    where = look_up.make_place(place.easy, place.pixels, digit, place.random("place"))
    rng = place.random("teacher")
    example = _on_scene(
        place, scene, look_up.code_question(where), facts.code(where, digit),
        lambda: look_up.code_demonstration(scene, where, rng, teacher.NOISY_WRITING),
    )  # fmt: skip
    hops = len(facts.path(where, digit))
    return replace(example, meta={**example.meta, "hops": hops})


def _recognise(place: Position) -> Example:
    rng = place.random("photo")
    where = rng.choice(recognise.shown_places())
    picture = recognise.picture(where, rng)
    return Example(place.id, recognise.QUESTION, (picture,), where, meta={"easy": False})


def _on_scene(
    place: Position, scene: Scene, question: str, answer: int,
    demonstrate: Callable[[], list[str]],
) -> Example:  # fmt: skip
    return Example(
        id=place.id,
        question=question,
        images=(scene.picture,),
        answer=str(answer),
        demonstration=tuple(demonstrate()) if place.split == "sft" else (),
        meta={
            "easy": place.easy,
            "target_box": scene.target.digit_box,
            "cards": [(c.colour, c.digit, c.box) for c in scene.cards],
        },
    )


MAKERS: dict[Family, Callable[[Position], Example]] = {
    "find": _find,
    "calculate": _calculate,
    "look_up": _look_up,
    "recognise": _recognise,
}
