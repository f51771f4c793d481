"""*Look up*: the code that a corpus has for a digit in the picture and a place in the question.

Owns its questions and demonstrations. Some codes are known by heart, the others need the
`web_search` tool: once or, if the document names another place, twice.
"""

from __future__ import annotations

import itertools
import random

from axpo.tasks.lab import facts, words
from axpo.tasks.lab.pictures import TARGET, Scene, Split
from axpo.tasks.lab.teacher import (
    TeacherSettings,
    answer_turn,
    call_turn,
    cell_of,
    choose_seen,
    recalling_turn,
    seeing,
)


def is_known_code(place: str, digit: int) -> bool:
    """Whether the base model knows the code by heart."""
    return facts.is_known(facts.key(place, digit))


def make_place(easy: bool, split: Split, digit: int, rng: random.Random) -> str:
    """Any place where the digit's code is known by heart (easy), or one of the split's own places
    where it is not."""
    places = facts.ALL_PLACES if easy else facts.PLACES[split]
    return rng.choice([place for place in places if is_known_code(place, digit) is easy])


def code_question(place: str) -> str:
    """The question for the code of the digit in `place`."""
    return f"{words.ASK_CODE}{TARGET}{words.ASK_WHERE}{place}?"


def search_turn(thinking: str, query: str) -> str:
    """A turn that searches."""
    call = words.SEARCH_CALL + words.query_phrase(query) + words.CALL_CLOSE
    return call_turn(thinking + words.LOOK_UP, call)


def following(found: facts.Entry) -> str:
    """Thinking about a document that names another place."""
    assert found.next is not None
    return words.REFERS + facts.key(*found.next)


def code_demonstration(
    scene: Scene, place: str, rng: random.Random, settings: TeacherSettings
) -> list[str]:
    """The policy turns of one trajectory.

    A wrong call asks for a digit one higher or lower; a code that is not known by heart is mistaken
    for the next digit's.
    """
    digit = scene.target.digit
    easy = is_known_code(place, digit)
    if not settings.calls(easy, rng):
        believed = facts.code(place, digit if easy else (digit + 1) % 10)
        return [recalling_turn(seeing(cell_of(scene.target), digit), believed)]
    cell, digit = choose_seen(scene, rng, settings)
    off = rng.choice((-1, 1)) if rng.random() < settings.wrong_call else 0
    found = facts.path(place, (digit + off) % 10)
    turns = [search_turn(seeing(cell, digit), found[0].title)]
    turns += [search_turn(following(a), b.title) for a, b in itertools.pairwise(found)]
    return [*turns, answer_turn(words.FOUND, facts.code(place, (digit + off) % 10))]
