"""The lab as a task: scenes as questions with one verifiable digit, and demonstrations for SFT.

Owns the splits: "train" and "sft" are endless and made from training digits and photo regions,
from disjoint ranges of scene seeds; "val" and "test" are fixed sets of held-out ones.
"""

from __future__ import annotations

import random

from axpo.tasks.base import Example
from axpo.tasks.lab import tokenizer as words
from axpo.tasks.lab.pictures import TARGET, Scene, Split, make_scene
from axpo.tasks.lab.teacher import NOISY, PRECISE, TeacherSettings, demonstration

QUESTION = f"{words.ASK_DIGIT}{TARGET} card?"
SIZES: dict[str, int | None] = {"train": None, "sft": None, "val": 512, "test": 1024}
SFT_OFFSET = 2**40
EASY_SHARE = 0.62
"""Questions whose red card can be read without a zoom: so many that some no-tool rollout succeeds
on three questions of four, as in the paper's gap."""


class LabTask:
    """Find and read: which digit is on the red card?

    The first `precise` examples of "sft" come from a precise teacher, the rest from a noisy one.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        precise: int = 0,
        noisy_teacher: TeacherSettings = NOISY,
        precise_teacher: TeacherSettings = PRECISE,
    ) -> None:
        self.seed = seed
        self.precise = precise
        self.noisy_teacher = noisy_teacher
        self.precise_teacher = precise_teacher

    def size(self, split: str) -> int | None:
        """Number of examples; None where they never end."""
        try:
            return SIZES[split]
        except KeyError:
            raise ValueError(f"lab: split {split!r} is unknown; one of {list(SIZES)}") from None

    def scene(self, split: str, index: int) -> Scene:
        """The scene behind an example (val and test do not depend on the task's seed)."""
        size = self.size(split)
        if index < 0 or (size is not None and index >= size):
            raise IndexError(f"lab: {split} has {size} examples, got index {index}")
        pixels: Split = "train"
        seed = self.seed * 2**24 + index + SFT_OFFSET * (split == "sft")
        if split == "val" or split == "test":
            pixels, seed = split, index
        easy = random.Random(f"lab-easy/{split}/{seed}").random() < EASY_SHARE
        return make_scene(pixels, seed, easy=easy)

    def example(self, split: str, index: int) -> Example:
        """The `index`-th example of a split; the same numbers give the same example."""
        scene = self.scene(split, index)
        turns: tuple[str, ...] = ()
        if split == "sft":
            settings = self.precise_teacher if index < self.precise else self.noisy_teacher
            rng = random.Random(f"lab-teacher/{self.seed}/{index}")
            turns = tuple(demonstration(scene, rng, settings))
        return Example(
            id=f"lab-{split}-{index}",
            question=QUESTION,
            images=(scene.picture,),
            answer=str(scene.target.digit),
            demonstration=turns,
            meta={
                "easy": scene.target.easy,
                "target_box": scene.target.digit_box,
                "cards": [(c.colour, c.digit, c.box) for c in scene.cards],
            },
        )
