"""What one training seed can show and what it cannot, with the lab's study beside it.

The study's figures are those of `docs/study/study.json` (`axpo study study`), which does not ship
with the package; a test compares them.
"""

from __future__ import annotations

from axpo.wording import Bounded, interval_text, signed_text

SEEDS, STEPS, QUESTIONS = 5, 200, 300
PASS: Bounded = {"value": 0.080, "low": 0.020, "high": 0.140}
"""AXPO's Pass@1 minus GRPO's, as the mean over the seeds."""
BY_SEED = (0.017, 0.127)
"""The same difference of the worst and of the best seed."""
COMPARISONS, HOLM, WITH_LOOK = 6, 0.06, 0.12
"""The number of comparisons, and the p-value after Holm's correction for them, without and with an
earlier look counted."""
FIND_RATES = (0.99, 0.00)
"""The tool rates of AXPO and of GRPO on *find*."""
PAIR = ("AXPO", "GRPO")
ONE_SEED = (
    "This is one run of each, from one seed. The intervals are over questions: they say how sure "
    "the difference between these two models is, not how another seed would come out."
)


def one_seed(pair: tuple[str, str], task: str) -> list[str]:
    """What one seed can show, and what the lab's study shows if it compared this `pair`."""
    if pair != PAIR or task != "lab":
        return [f"{ONE_SEED} Only more seeds can show that (axpo study)."]
    value = f"{signed_text(PASS['value'], 3)} {interval_text(PASS, 3, signed=True)}"
    least, best = (signed_text(difference, 3) for difference in BY_SEED)
    kept, gone = (f"{rate:.2f}" for rate in FIND_RATES)
    return [
        f"{ONE_SEED} Pass@1 moves by several points from seed to seed.",
        f"The study ({SEEDS} seeds, {STEPS} steps, {QUESTIONS} questions; docs/study.md): AXPO "
        f"over GRPO {value} Pass@1, by seed {least} to {best}; p {HOLM:.2f} after Holm's "
        f"correction for {COMPARISONS} comparisons, {WITH_LOOK:.2f} with an earlier look counted: "
        "likely, not settled. On every seed AXPO kept the zoom and GRPO gave it up (tried in "
        f"{kept} against {gone} of the find rollouts, p < 0.001).",
    ]
