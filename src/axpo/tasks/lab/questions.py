"""The lab as a task: scenes as questions with one verifiable answer, and demonstrations for SFT.

Owns the families and the splits: "train" and "sft" are endless and made from training digits,
photo regions and places, from disjoint ranges of scene seeds; "val" and "test" are fixed sets of
held-out ones. Families take turns from one example to the next.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from axpo.config import Family, UserError
from axpo.tasks.base import Example
from axpo.tasks.lab import calculate, critic, facts, look_up, recognise, teacher
from axpo.tasks.lab import tokenizer as words
from axpo.tasks.lab.pictures import TARGET, Scene, Split, make_scene
from axpo.tree import Group, Trajectory

QUESTION = f"{words.ASK_DIGIT}{TARGET} card?"
SIZES: dict[str, int | None] = {"train": None, "sft": None, "val": 512, "test": 1024}
SFT_OFFSET = 2**40


@dataclass(frozen=True, slots=True)
class Place:
    """Where an example stands: `pixels` is the split of its digits, photos and places; an `easy`
    one needs no tool."""

    split: str
    index: int
    pixels: Split
    seed: int
    easy: bool

    @property
    def id(self) -> str:
        return f"lab-{self.split}-{self.index}"

    def random(self, of: str) -> random.Random:
        return random.Random(f"lab-{of}/{self.split}/{self.seed}")


class LabTask:
    """Questions of `families` in turn."""

    def __init__(self, families: Sequence[Family] = ("find",)) -> None:
        self.families = families

    def size(self, split: str) -> int | None:
        """Number of examples; None where they never end.

        Raises `UserError` for a split that is not there, and for one to train on with a family that
        is for evaluation.
        """
        if split not in SIZES:
            raise UserError(f"the lab has no split {split!r}; expected one of {', '.join(SIZES)}")
        if SIZES[split] is None and "recognise" in self.families:
            raise UserError(
                "task.families: 'recognise' is for evaluation, so that its tool is met unseen; "
                "leave it out of training"
            )
        return SIZES[split]

    def example(self, split: str, index: int) -> Example:
        """The `index`-th example of a split; the same numbers give the same example."""
        family = self.families[index % len(self.families)]
        example = MAKERS[family](self._place(split, index))
        return replace(example, meta={**example.meta, "family": family})

    def fingerprint(self, split: str) -> str:
        """Empty: examples are made from their numbers alone."""
        return ""

    def critique(self, group: Group, attempt: Trajectory) -> str:
        """What the scripted critic says of a scored attempt (`axpo.tasks.base.Critic`)."""
        return critic.critique(group, attempt)

    def _place(self, split: str, index: int) -> Place:
        size = self.size(split)
        if index < 0 or (size is not None and index >= size):
            raise IndexError(f"lab: {split} has {size} examples, got index {index}")
        pixels: Split = split if split == "val" or split == "test" else "train"
        seed = index + SFT_OFFSET * (split == "sft")
        easy = random.Random(f"lab-easy/{split}/{seed}").random() < facts.KNOWN_SHARE
        return Place(split, index, pixels, seed, easy)


def _find(place: Place) -> Example:
    scene = make_scene(place.pixels, place.seed, easy=place.easy)
    rng = place.random("teacher")
    return _on_scene(
        place, scene, QUESTION, scene.target.digit,
        lambda: teacher.demonstration(scene, rng, teacher.NOISY),
    )  # fmt: skip


def _calculate(place: Place) -> Example:
    scene = make_scene(place.pixels, place.seed, easy=True)
    digit = scene.target.digit
    number = calculate.make_number(place.easy, digit, place.random("number"))
    rng = place.random("teacher")
    return _on_scene(
        place, scene, calculate.question(number), digit * number,
        lambda: calculate.demonstration(scene, number, rng, teacher.NOISY_WRITING),
    )  # fmt: skip


def _look_up(place: Place) -> Example:
    scene = make_scene(place.pixels, place.seed, easy=True)
    digit = scene.target.digit
    where = look_up.make_place(place.easy, place.pixels, digit, place.random("place"))
    rng = place.random("teacher")
    example = _on_scene(
        place, scene, look_up.question(where), facts.code(where, digit),
        lambda: look_up.demonstration(scene, where, rng, teacher.NOISY_WRITING),
    )  # fmt: skip
    hops = len(facts.path(where, digit))
    return replace(example, meta={**example.meta, "hops": hops})


def _recognise(place: Place) -> Example:
    rng = place.random("photo")
    where = rng.choice(recognise.shown_places())
    picture = recognise.picture(where, rng)
    return Example(place.id, recognise.QUESTION, (picture,), where, meta={"easy": False})


def _on_scene(
    place: Place, scene: Scene, question: str, answer: int,
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


MAKERS: dict[Family, Callable[[Place], Example]] = {
    "find": _find,
    "calculate": _calculate,
    "look_up": _look_up,
    "recognise": _recognise,
}
