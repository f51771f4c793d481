"""Each rule by hand: what it finds, and what it must leave alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from axpo.contamination.index import EQUAL, LOOKS, PIXELS, SHARED, Index, Pair, Row
from axpo.contamination.prints import Print, Prints
from axpo.contamination.words import question_words
from tests.support.scenes import compressed, scene

ASKED = "What is the colour of the car?"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def row(text: str, *pictures: Image.Image | Print, id: str = "x") -> Row:
    prints = Prints()
    found = [one if isinstance(one, Print) else prints.of(one) for one in pictures]
    prints.close()
    return Row(f"rows:{id}", id, question_words(text), tuple(one for one in found if one))


def matches(train: Row, *benchmark: Row) -> list[Pair]:
    index = Index()
    assert index.add("bench", benchmark) == len(benchmark)
    return index.matches(train)


def rules(train: Row, *benchmark: Row) -> list[tuple[str, float]]:
    return [(pair.rule, pair.distance) for pair in matches(train, *benchmark)]


def cropped(picture: Image.Image) -> Image.Image:
    width, height = picture.size
    return picture.crop((width // 200, height // 200, width - width // 200, height - height // 200))


def test_equal_pixels_whatever_is_asked() -> None:
    photo = scene(1, 256)
    (pair,) = matches(row("Who is it?", scene(2), photo, id="t"), row(ASKED, photo, id="b"))
    assert pair == Pair("rows:t", "t", "bench", "b", "rows:b", PIXELS, 0)
    assert not rules(row("Who is it?", scene(2, 256)), row(ASKED, photo))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "compressed": lambda one: compressed(one, 40),
    "half the size": lambda one: one.resize((one.width // 2, one.height // 2)),
    "squeezed": lambda one: one.resize((one.width, one.height * 2 // 3)),
    "cropped": cropped,
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_with_the_same_question(copy: str) -> None:
    photo = scene(1, 512)
    other = COPIES[copy](photo)
    asked = f"{ASKED}\n(A) red\n(B) blue"
    rotated = f"{ASKED}\n(A) blue\n(B) red\nAnswer with the option's letter."
    ((rule, bits),) = rules(row(rotated, other), row(asked, photo))
    assert rule == LOOKS
    assert bits <= 4
    assert not rules(row("What is the shape of the car?", other), row(asked, photo))
    assert not rules(row(rotated, scene(2, 512)), row(asked, photo))


def test_four_bits_and_no_more() -> None:
    """Against counting bits one by one, over pictures of one question."""
    random.seed(0)
    looks = [random.getrandbits(64) for _ in range(200)]
    known = [Print(n.to_bytes(16), look) for n, look in enumerate(looks)]
    benchmark = [row(ASKED, known[n], known[n + 1], id=str(n)) for n in range(0, 200, 2)]
    for flips in range(8):
        look = looks[7]
        for bit in random.sample(range(64), flips):
            look ^= 1 << bit
        found = matches(row(ASKED, Print(b"t", look)), *benchmark)
        assert [(pair.row, pair.distance) for pair in found] == [("6", flips)][: flips <= 4]


def test_pictures_of_one_shade_are_none() -> None:
    """Sets whose rows must have pictures give the others a white one."""
    white = Image.new("RGB", (64, 64), "white")
    assert row(ASKED, white).pictures == ()
    assert not rules(row("Who?", white), row("When?", white))


LONG = "A train leaves at noon and goes 60 miles an hour for 3 hours. How far does it go?"


def test_equal_questions_without_pictures() -> None:
    assert rules(row(LONG), row(LONG)) == [(EQUAL, 0)]
    assert rules(row("What is gravity?"), row("what is gravity")) == [(EQUAL, 0)]
    assert not rules(row("What is gravity?"), row("What is entropy?"))
    assert not rules(row("?"), row("!"))


def test_eight_words_in_a_row() -> None:
    said = LONG.split()
    assert rules(row("Think. " + " ".join(said[:8]) + " then?"), row(LONG)) == [(SHARED, 0.917)]
    assert not rules(row("Think. " + " ".join(said[:7]) + " then?"), row(LONG))


def test_a_question_of_seven_words_is_found_whole() -> None:
    seven = "Which river flows through Basel and Cologne?"
    assert len(question_words(seven)) == 7
    inside = f"Look it up. {seven} Name its mouth."
    assert rules(row(inside), row(seven)) == [(SHARED, 0)]
    assert not rules(row(inside.replace("Cologne", "Bonn")), row(seven))
    assert not rules(row(seven), row(inside.replace("Name", "Then name")))  # of its own length


def test_under_five_words_a_part_is_nothing() -> None:
    assert not rules(row("What is gravity on the moon, in metres?"), row("What is gravity"))
    assert rules(row("Tell me: who wrote the novel Emma, and when?"),
                 row("Who wrote the novel Emma?")) == [(SHARED, 0)]  # fmt: skip


def test_one_picture_less_takes_eight_words() -> None:
    photo = scene(1)
    for train, bench in ((row("What is shown?"), row("What is shown?", photo)),
                         (row("What is shown?", photo), row("What is shown?"))):  # fmt: skip
        assert not rules(train, bench)
    assert rules(row(LONG), row(LONG, photo)) == rules(row(LONG, photo), row(LONG)) == [(EQUAL, 0)]
    assert rules(row(f"Say. {LONG}"), row(LONG, photo)) == [(SHARED, 0)]
    assert not rules(row(LONG, scene(2)), row(LONG, photo))  # two pictures, and other ones


def test_what_many_questions_of_a_benchmark_say_is_its_form() -> None:
    spatial = "Is the {} on the left or right side of the {}?"
    benchmark = [row(spatial.format(f"cup {n}", f"dog {n}"), id=str(n)) for n in range(12)]
    assert not rules(row(spatial.format("hat", "cat")), *benchmark)
    (pair,) = matches(row("Tell: " + spatial.format("cup 3", "dog 3")), *benchmark)
    assert pair.row == "3"


def test_the_surest_rule_is_named_once() -> None:
    photo = scene(1)
    assert rules(row(ASKED, photo, photo), row(ASKED, photo)) == [(PIXELS, 0)]
    rows = [row(ASKED, photo, id=str(n)) for n in range(4)]  # four rotations
    assert [pair.row for pair in matches(row(ASKED, photo), *rows)] == ["0", "1", "2", "3"]


def test_prints_are_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "photo.png"
    scene(1).save(file)
    first = Prints()
    found = first.of(file)
    first.close()
    monkeypatch.setattr("axpo.contamination.prints.read_picture", None)  # nothing is decoded
    again = Prints()
    assert again.of(file.read_bytes()) == found is not None
    with pytest.raises(TypeError):
        again.of(file.read_bytes() + b"more")
    again.close()


def test_no_cache_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert row(ASKED, scene(1)).pictures
