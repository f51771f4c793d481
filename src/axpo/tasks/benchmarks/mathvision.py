"""MathVision: 3,040 questions of mathematics competitions, and the part `testmini` of 304 of them.

A row has one picture, into which all pictures of a question are merged under labels such as
"<image2>:". The question and five rows' options say where they belong by the same labels, so these
stay as they are, as in the source; the picture stands first. As in the source's models/Qwen-VL.py,
a request for one `\\boxed{}` comes before the question, and options that are just A to E, which the
picture shows, are not listed. The request is in our own words.

`official` is the source's rule (`mathvision_rule`), on the source's own truths. Strict is a letter
(`choice`) or a formula (`math`), on truths that are repaired below. Some options are letters of
others (rows 654, 742, 941 and 1893): a letter always stands for its option.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from axpo.tasks.base import Example
from axpo.tasks.benchmarks import mathvision_rule
from axpo.tasks.benchmarks.averages import Share, mean_by
from axpo.tasks.benchmarks.base import Benchmark, Row, Scorer, Source, lettered, text_of, texts_of
from axpo.tasks.grading.expressions import parse, value_at
from axpo.tasks.grading.verdict import Verdict, compared

REQUEST = (
    "Solve the problem step by step and put the final answer in one \\boxed{}; of a multiple "
    "choice, put only its letter there."
)
LETTERS = ("A", "B", "C", "D", "E")
BOXED, UNIT = "the truth stands in a box of its own", "the unit is glued on"
WRONG = {
    "2804": ("$\\frac{90}{23}^{\\circ}$", "$\\frac{90}{23}$", "the question names the unit"),
    "2825": (
        "$\\frac{7^3}{2^{12} 13^2}$",
        "$\\frac{7^3}{2^{12} \\cdot 13^2}$",
        "`math` reads no numbers side by side",
    ),
    "2828": ("$\\boxed{\\frac{16}{7}}$", "$\\frac{16}{7}$", BOXED),
    "2830": ("\x0crac{36}{13}", "\\frac{36}{13}", "an escape ate the backslash and the f"),
    "2833": ("$\\boxed{\\frac{121}{180}}$", "$\\frac{121}{180}$", BOXED),
    "2875": ("$\\boxed{\\frac{144}{49}}$", "$\\frac{144}{49}$", BOXED),
    "2877": ("$\\boxed{\\frac{3}{4}}$", "$\\frac{3}{4}$", BOXED),
    "2947": ("69{degrees}", "69", UNIT),
    "3007": ("8\\sqrt{3}{squareinches}", "8\\sqrt{3}", UNIT),
    "3008": ("\\frac{3}{4}\\pi{inches}", "\\frac{3}{4}\\pi", UNIT),
}
"""Row -> the source's truth, the truth that it is for `math`, and why."""
DRAWN = ("59", "434")
"""Rows without options whose truth is a letter: the picture shows the options."""
ROUNDED = {
    "2356": "3\\sqrt{2}", "2431": "\\frac{3+\\sqrt{3}}{2}", "2563": "36-9\\pi",
    "2730": "15-\\frac{7\\pi}{2}", "2886": "10\\sqrt{2}-10", "2907": "20\\pi",
    "3016": "\\frac{3\\sqrt{3}}{4}",
}  # fmt: skip
"""Row -> the value that its truth is rounded from: the value is right too, and so it is rounded to
more decimals."""


class MathVision(Benchmark):
    """MathVision, all questions."""

    sources = (Source("MathLLMs/MathVision", "test", 3040),)
    columns = ("id", "question", "options", "answer", "subject", "level")
    pictures = ("decoded_image", "image")
    scorer = Scorer("mathllm/MATH-V", "evaluation/evaluate.py, utils.py", "rule")
    mirrors = ("mathllm.github.io/mathvision",)

    def read(self, row: Row, source: Source) -> Example:
        """A row with other than no or five options is refused."""
        id, options, truth = text_of(row, "id"), texts_of(row, "options"), text_of(row, "answer")
        if len(options) not in (0, 5):
            raise ValueError(f"options: got {len(options)}, expected none or 5")
        if options and truth not in LETTERS:
            raise ValueError(f"answer: got {truth!r}, expected a letter from A to E")
        listed = () if options in ((), LETTERS) else (lettered(options),)
        # Some line ends of the source are a backslash and an n.
        question = re.sub(r"\\n(?![a-z])", "\n", text_of(row, "question"))
        wrong, right, _ = WRONG.get(id, (None, truth, ""))
        return Example(
            id=id,
            question="\n".join((REQUEST, question, *listed)),
            images=(),
            answer=right if truth == wrong else truth.strip(),
            alternatives=_unrounded(ROUNDED[id], truth) if id in ROUNDED else (),
            options=options,
            grading="choice" if options or id in DRAWN else "math",
            meta={
                "family": text_of(row, "subject"),
                "level": text_of(row, "level"),
                "truth": truth,
            },
        )

    def official(self, example: Example, answer: str, verdict: Verdict) -> Verdict:
        """The source's rule."""
        truth, found = example.meta["truth"], mathvision_rule.read(answer)
        text = example.options[LETTERS.index(truth)] if example.options else ""
        right = mathvision_rule.is_right(found, truth, text)
        return compared(right, "MathVision", found, truth)

    def averages(self, shares: Sequence[Share]) -> dict[str, float]:
        """The means over all questions, and by subject and level."""
        return super().averages(shares) | mean_by(shares, "level {level}")


class MathVisionTestmini(MathVision):
    """MathVision's testmini, 19 questions of each subject; they are also in the other one."""

    sources = (Source("MathLLMs/MathVision", "testmini", 304),)


def _unrounded(exact: str, rounded: str) -> tuple[str, ...]:
    """`exact`, and its value to more decimals than `rounded` has, up to six; nothing where
    `rounded` is something else."""
    places = len(rounded.partition(".")[2])
    found = float(value_at(parse(exact), {}) or 0)
    if f"{found:.{places}f}" != rounded:
        return ()
    return (exact, *(f"{found:.{more}f}" for more in range(places + 1, 7)))
