"""The grader `choice`: the one letter that a multiple-choice answer concludes with.

The rules, in this order, on the final answer without its dress (`prose.plain`):

1. **Letter**: it is a letter (`B`, `(b)`, `B.`, `Option B`), or a letter and that option's text. A
   letter and another option's text are nothing.
2. **Text**: it is exactly one option's text.
3. **Letters of a sentence**: those that it names, without those that it rules out ("not A", "it
   can't be (B)", "A, B and C are wrong"), those in a reason ("because A is too dark"), and "A" and
   "I" as words. What follows the last "so" or "therefore" decides if it names any; else the letters
   said to be right ("C is correct", "I choose C") if there are any; else all.
4. **Texts of a sentence**, likewise, where it names no letter: "The glove is blue."

3 and 4 look at the last `SENTENCES` characters.

Several letters are no letter, in whatever order: "A or B", "A, B, C, D", "Both (A) and (B)". They
go as far as there are options, up to Z where the options are not known. A letter stands for its
option even where it is another option's text. Only Latin letters are letters, full-width ones too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase

from axpo.errors import GradingError
from axpo.tasks.base import Example
from axpo.tasks.grading.final import final_answer
from axpo.tasks.grading.prose import normalise, plain
from axpo.tasks.grading.verdict import BuiltIn, Verdict, best, compared, truths_of

SENTENCES = 2000
"""Characters at the end of an answer whose sentences are read (choice)."""

_ALONE = re.compile(
    r"[\s()\[\].:*#-]{0,4}(?:(?:option|choice|letter|answer)[:\s]{1,2})?"
    r"[\s()\[\].:*]{0,4}([a-z])[\s()\[\].:*]{0,4}",
    re.I,
)
_LABEL = re.compile(r"\(?([a-z])[).:]{1,2}\s*(\S.*)", re.I | re.S)
_LETTERS = re.compile(
    r"""
      [(\[]\s?([a-zA-Z])\s?[)\]]
    | \A([a-z])[).:](?=\s|\Z)
    | \b(?:[Oo]ption|[Cc]hoice|[Ll]etter|[Aa]nswer)s?:?\s\(?([a-zA-Z])(?![\w'-])
    | (?<![\w'.-])([A-Z])(?![\w'-]|\.\w)
    """,
    re.X,
)
"""A letter as an option's name: bracketed, as a label, after "option", or a capital alone."""
_TEXTS = re.compile("⟦([A-Z])⟧")
"""An option's text, where `_replaced` has put its letter."""
_VERBS = (
    "is|are|was|has|can|could|does|do|would|will|should|must|may|might|fits?|match|matches|seems?|"
    "looks?|shows?|and|or|nor|but|because|since|as|so|while|rather|instead|not|also|then|for|with"
)
_ARTICLE = re.compile(rf"\s(?!(?:{_VERBS})\b)[a-z0-9]")
_SENTENCE_START = re.compile(r"(?:\A|[.!?:;]\s)\Z")
_JOINED = re.compile(
    r"[\s,/&+|]{0,4}(?:(?:and|or|nor|both|either|option|choice)[\s,]{1,3}){0,2}[(\[]?", re.I
)
"""What stands between the letters of one list."""
_BOUNDARY = re.compile(
    r"[.;!?:\n]|\b(?:so|but|therefore|thus|hence|then|because|since|as|while|whereas|although|"
    r"though|which|that|where|however)\b",
    re.I,
)
_RULED_OUT_BEFORE = re.compile(
    r"\b(?:not|cannot|never|neither|nor|none of|rather than|instead of|unlike|except|exclud\w+|"
    r"eliminat\w+|rul(?:ed?|es|ing) out|discard\w*|reject\w*)\b|n't\b",
    re.I,
)
_WRONG = (
    r"(?:wrong|incorrect|false|impossible|eliminated|excluded|out|cannot|\w+n't|"
    r"(?:is|are|was|were|does|do|did|can|could|would|should|must|may|might) not)\b"
)
_RULED_OUT_AFTER = re.compile(  # "B cannot be", "B, C, are wrong", but not "No, it is not red"
    rf"\s?(?!(?:it|this|that|there|they|he|she|we)\b)(?:\w+ ){{0,3}}?{_WRONG}"
    rf"|[\s,.:()\-]{{1,4}}(?:(?:all|both|also|clearly|is|are|was|were) ){{0,2}}{_WRONG}",
    re.I,
)
_RIGHT_BEFORE = re.compile(
    r"\b(?:choose|chose|pick|select|go(?:ing)? with|opt for|must be|correct|best|"
    r"right (?:answer|option|choice))\W{0,3}(?:\w+ ){0,3}\W{0,3}\Z",
    re.I,
)
_RIGHT_AFTER = re.compile(
    r"[\s,.:()\-]{0,4}(?:\w+ ){0,2}?(?:fits|matches|(?:is|as|looks|seems) (?:the |only ){0,2}"
    r"(?:correct|right(?! of| side)|true|best|better|answer))\b",
    re.I,
)
_CONCLUSION = re.compile(r"\b(?:so|therefore|thus|hence|consequently|actually)\b", re.I)
_REASON = re.compile(
    r"\b(?:because|since|as|while|whereas|although|though|due to)\b[^.,;!?]*"
    r"|\b(?:explanation|reason|reasoning|rationale|justification):.*",
    re.I,
)


def chosen_letter(answer: str, options: Sequence[str] = ()) -> tuple[str | None, str]:
    """The letter that an answer chooses, None where there is none or no single one, and the rule
    that read it."""
    said = plain(final_answer(answer))
    letters = ascii_uppercase[: len(options)] if options else ascii_uppercase
    texts = [_text(option, letter) for letter, option in zip(letters, options, strict=False)]
    if (alone := _ALONE.fullmatch(said)) and alone[1].upper() in letters:
        return alone[1].upper(), "letter"
    if (label := _LABEL.fullmatch(said)) and (same := _same(label[2], texts)):
        letter = label[1].upper()
        return letter if letter in same else None, "letter and text"
    if len(same := _same(said, texts)) == 1:
        return same, "text"
    said, rule = said[-SENTENCES:], "letters of a sentence"
    named = _concluded(_replaced(said, texts, lambda _: "x"), _LETTERS, letters)
    if not named and texts:
        marked = _replaced(said, texts, lambda found: "".join(f"⟦{one}⟧" for one in found))
        named, rule = _concluded(marked, _TEXTS, letters), "texts of a sentence"
    return named.pop() if len(named) == 1 else None, rule


def _same(said: str, texts: Sequence[str]) -> str:
    """The letters of the options whose text is said."""
    said = normalise(said)
    return "".join(
        letter
        for letter, text in zip(ascii_uppercase, texts, strict=False)
        if normalise(text) == said
    )


def _text(option: str, letter: str) -> str:
    """An option's text without its letter and its full stop."""
    text = plain(option)
    label = re.match(rf"\(?{letter}[).:]{{1,2}}\s*(?=\S)", text)
    return text[label.end() if label else 0 :].removesuffix(".")


def _replaced(said: str, texts: Sequence[str], marked: Callable[[list[str]], str]) -> str:
    """`said` with the options' texts replaced by what `marked` makes of their letters; texts of
    one letter stay, for they may be names of options."""
    letters: dict[str, list[str]] = {}
    for letter, text in zip(ascii_uppercase, texts, strict=False):
        if text and not re.fullmatch("[a-zA-Z]", text):
            letters.setdefault(text.lower(), []).append(letter)
    if not letters:
        return said
    longest = "|".join(re.escape(text) for text in sorted(letters, key=len, reverse=True))
    pattern = re.compile(rf"(?<![\w.\-])(?:{longest})(?!\w|[.,]\d)", re.I)
    return pattern.sub(lambda found: marked(letters.get(found[0].lower(), [])), said)


def _concluded(said: str, names: re.Pattern[str], letters: str) -> set[str]:
    """The letters that a sentence ends up with; empty where it names none or rules out all."""
    found = [name for name in names.finditer(said) if _is_name(name, said, letters)]
    groups: list[list[re.Match[str]]] = []
    for name in found:
        if groups and _JOINED.fullmatch(said, groups[-1][-1].end(), name.start()):
            groups[-1].append(name)
        else:
            groups.append([name])
    reasons = [reason.span() for reason in _REASON.finditer(said)]
    kept: list[tuple[int, bool, bool, set[str]]] = []  # start, in a reason, said right, letters
    for place, group in enumerate(groups):
        start, end = group[0].start(), group[-1].end()
        before = said[groups[place - 1][-1].end() if place else 0 : start]
        after = said[end : groups[place + 1][0].start() if place + 1 < len(groups) else None]
        before = before[max((cut.end() for cut in _BOUNDARY.finditer(before)), default=0) :]
        if cut := _BOUNDARY.search(after, 1):
            after = after[: cut.start()]
        if _RULED_OUT_BEFORE.search(before) or _RULED_OUT_AFTER.match(after):
            continue
        in_reason = any(a <= start < b for a, b in reasons)
        right = bool(_RIGHT_BEFORE.search(before) or _RIGHT_AFTER.match(after))
        kept.append((start, in_reason, right, {_letter(name) for name in group}))
    concluded = max((cue.end() for cue in _CONCLUSION.finditer(said)), default=0)
    for rule in (
        lambda one: not one[1],
        lambda one: one[0] >= concluded,
        lambda one: one[2],
    ):
        kept = [one for one in kept if rule(one)] or kept
    return set().union(*(one[3] for one in kept))


def _letter(name: re.Match[str]) -> str:
    return next(one for one in name.groups() if one).upper()


def _is_name(name: re.Match[str], said: str, letters: str) -> bool:
    """Whether a letter that was found is an option's, and no word of the sentence."""
    if _letter(name) not in letters:
        return False
    if name[0] == "I":
        return not re.match(r"\s(?!is\b)[a-z]", said[name.end() : name.end() + 4])
    begins = _SENTENCE_START.search(said[max(0, name.start() - 2) : name.start()])
    return not (name[0] == "A" and begins and _ARTICLE.match(said, name.end()))


def true_letter(truth: str) -> str:
    """The letter that a multiple choice's truth is; raises `GradingError` where it is none."""
    letter = re.fullmatch(r"\s*\(?([a-zA-Z])\)?\s*", truth)
    if letter is None:
        raise GradingError(f"truth {truth!r} is not a letter, as the grader 'choice' needs")
    return letter[1].upper()


async def _choice(example: Example, answer: str) -> Verdict:
    letter, rule = chosen_letter(answer, example.options)
    return best(
        compared(letter == true_letter(truth), f"choice: {rule}", letter, true_letter(truth))
        for truth in truths_of(example)
    )


def _check_choice(example: Example) -> None:
    for truth in truths_of(example):
        place = ascii_uppercase.index(true_letter(truth))
        if example.options and place >= len(example.options):
            raise GradingError(
                f"truth {truth!r} is beyond the {len(example.options)} options; expected a letter "
                f"up to {ascii_uppercase[len(example.options) - 1]}"
            )


choice = BuiltIn(_choice, _check_choice)
"""1.0 where the answer concludes with a truth's letter."""
