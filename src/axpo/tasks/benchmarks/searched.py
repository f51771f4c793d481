"""What the two benchmarks with web search share: the words that scorers compare, and the reading of
a judge."""

from __future__ import annotations

import re
import string
from collections import Counter

from axpo.tasks.base import Example
from axpo.tasks.benchmarks.base import reply_of
from axpo.tasks.grading.verdict import Verdict, truths_of

_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.S)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
SENSENOVA = "SenseNova-MARS"
SENSENOVA_ROWS = "drive.google.com/drive/folders/1ClHduHWMaARbraNaaCnSE3DTKgJDDIiM"
"""Both benchmarks as SenseNova-MARS evaluates them, with answers."""


def squad_words(text: str) -> list[str]:
    """The words of SQuAD's normalisation: lower case, ASCII's punctuation deleted (so "3.5" is
    "35"), then the articles."""
    return re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split()


def squad_f1(answer: str, truth: str) -> float:
    """Token F1 of two texts; two without words agree."""
    found, right = squad_words(answer), squad_words(truth)
    if not found or not right:
        return float(found == right)
    return 2 * (Counter(found) & Counter(right)).total() / (len(found) + len(right))


def last_answer(answer: str) -> str:
    """The last `<answer>` of what a policy said, else all of it."""
    found = _ANSWER.findall(answer)
    return (found[-1] if found else answer).strip()


def sensenova(example: Example, answer: str, verdict: Verdict) -> Verdict:
    """The verdict of OpenSenseNova/SenseNova-MARS (inference/eval.py): equal words, else the judge.

    The judge is asked in our own words, and once about all truths, where the source asks about each
    until one is right. Where ours found the answer to be the truth itself, it was not asked.
    """
    words = _words(last_answer(answer))
    if words in [_words(truth) for truth in truths_of(example)]:
        return Verdict(1.0, f"{SENSENOVA}: same words")
    asked = "judge" if reply_of(verdict) is not None else verdict.rule
    return Verdict(verdict.reward, f"{SENSENOVA}: {asked}")


def _words(text: str) -> list[str]:
    kept = text.lower().translate(_PUNCTUATION)
    return ["a"] if kept.strip() == "a" else squad_words(text)
