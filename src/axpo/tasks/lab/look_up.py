"""*Look up*: a digit of the picture and a place of the question have a code that a corpus tells.

Owns its questions and demonstrations. Codes of known places are known by heart; others need the
`web_search` tool, once or, where the document sends on, twice.
"""

from __future__ import annotations

import itertools
import random

from axpo.tasks.lab import facts
from axpo.tasks.lab import tokenizer as words
from axpo.tasks.lab.pictures import TARGET, Scene, Split
from axpo.tasks.lab.teacher import (
    TeacherSettings,
    answer_turn,
    call_turn,
    cell_of,
    choose_seen,
    seeing,
)


def make_place(easy: bool, split: Split, rng: random.Random) -> str:
    """A place that is known by heart (easy), or one of the split's own."""
    return rng.choice(facts.KNOWN if easy else facts.PLACES[split])


def question(place: str) -> str:
    return f"{words.ASK_CODE}{TARGET}{words.ASK_WHERE}{place}?"


def search_turn(thinking: str, query: str) -> str:
    """A turn that searches."""
    call = words.SEARCH_CALL + words.query_phrase(query) + words.CALL_CLOSE
    return call_turn(thinking + words.LOOK_UP, call)


def recalling_turn(thinking: str, code: int) -> str:
    """A turn that answers at once."""
    return answer_turn(thinking + words.BY_HEART, code)


def following(found: facts.Entry) -> str:
    """Thinking about a document that names another place."""
    assert found.next is not None
    return words.REFERS + facts.key(*found.next)


def demonstration(
    scene: Scene, place: str, rng: random.Random, settings: TeacherSettings
) -> list[str]:
    """The policy turns of one trajectory. The wrong call asks for the next digit, up or down; the
    code of a place that is not known by heart is a guess."""
    easy = place in facts.KNOWN
    if not settings.calls(easy, rng):
        digit = scene.target.digit
        code = facts.path(place, digit)[-1].code if easy else rng.randrange(10, 100)
        assert code is not None
        return [recalling_turn(seeing(cell_of(scene.target), digit), code)]
    cell, digit = choose_seen(scene, rng, settings)
    off = rng.choice((-1, 1)) if rng.random() < settings.wrong_call else 0
    found = facts.path(place, (digit + off) % 10)
    turns = [search_turn(seeing(cell, digit), found[0].title)]
    turns += [search_turn(following(a), b.title) for a, b in itertools.pairwise(found)]
    code = found[-1].code
    assert code is not None
    return [*turns, answer_turn(words.FOUND, code)]
