"""Rows to questions: options, several truths, placeholders, and the public sets' own schemas."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from axpo.errors import DataError
from axpo.tasks.base import Example
from axpo.tasks.data.fields import Fields
from axpo.tasks.data.sets import SetSettings
from axpo.tree import Point
from tests.support.data_sets import colour, picture, task_of, write_jsonl, write_parquet


def read(row: dict[str, Any], grading: str | None = None, **columns: Any) -> Example:
    return read_with({"columns": columns, "grading": grading}, **row)


def read_with(settings: dict[str, Any], **row: Any) -> Example:
    """A row as an example; its pictures, as the row holds them, stand for the decoded ones."""
    fields = Fields(SetSettings.model_validate(settings))
    example, images = fields.read({"question": "?", **row}, "here")
    return replace(example, images=images)


def truths(example: Example) -> tuple[str, ...]:
    return (example.answer, *example.alternatives)


def asked(question: str, *images: str) -> Example:
    return read({"question": question, "images": list(images), "answer": "7"})


def test_placeholders_place_pictures() -> None:
    found = asked("say", "b", "a")
    assert (found.question, found.images) == ("say", ("b", "a"))
    found = asked("<image> or <image>?", "a", "b")
    assert (found.question, found.images) == ("<image> or <image>?", ("a", "b"))
    found = asked("Is <image2> like <image 1>?", "a", "b")
    assert (found.question, found.images) == ("Is <image> like <image>?", ("b", "a"))
    row = {"question": "Which is <image1>?", "images": ["a", "b", "c"], "answer": "B"}
    record = read({**row, "options": ["<image3>", "<image2>"]})
    assert record.question == "Which is <image>?\nA. <image>\nB. <image>"
    assert record.images == ("a", "c", "b")


@pytest.mark.parametrize(
    ("question", "images"),
    [("<image>", []), ("<image>", ["a", "b"]), ("<image2>", ["a"]), ("<image1> <image1>", ["a"])],
)
def test_placeholders_that_do_not_fit(question: str, images: list[str]) -> None:
    with pytest.raises(DataError, match=rf"here: question: it places .*has {len(images)} pictures"):
        asked(question, *images)


def test_several_columns_are_put_together() -> None:
    row = {"image1": "a", "image2": None, "image3": ["b", "c"], "gt": "cat", "other": ["feline", 3]}
    record = read(row, images=["image1", "image2", "image3"], answer=["gt", "other"])
    assert record.images == ("a", "b", "c")
    assert truths(record) == ("cat", "feline", "3")
    meta = {"level": 3, "source": {"name": "x"}, "answer": "7"}
    record = read(meta, meta=["level", "source"])
    assert record.meta == {"level": 3, "name": "x"}
    dotted = read({"reward_model.ground_truth": "7"}, answer="reward_model.ground_truth")
    assert truths(dotted) == ("7",)


def test_options_cluster_and_provenance(tmp_path: Path) -> None:
    record = read({"options": ["red", "blue"], "answer": "A", "cluster": 12, "provenance": "MMMU"})
    assert (record.options, record.cluster, record.provenance) == (("red", "blue"), "12", "MMMU")
    record = read({"answer": "7", "picture": {"id": "p1"}}, cluster="picture.id")
    assert (record.options, record.cluster, record.provenance) == ((), "p1", "")
    with pytest.raises(DataError, match="here: cluster: got '', expected a text"):
        read({"answer": "7", "cluster": ""})
    rows = [{"question": "?", "answer": "7"}, {"question": "?", "answer": "7", "source": "a"}]
    path = write_jsonl(tmp_path / "train.jsonl", *rows)
    task = task_of(f"path = '{path}'\ncolumns = {{provenance = 'source', cluster = 'answer'}}")
    first, second = (task.example("train", i) for i in range(2))
    assert (first.provenance, second.provenance) == (f"{path}:1", "a")
    assert (first.cluster, first.options) == ("7", ())


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("Blue.", "B"),
        (2, "C"),
        (["A", "green"], "AC"),
        (r"\boxed{C}", "C"),
        ("<answer> C </answer>", "C"),
        ("<think>red?</think><answer>green</answer>", "C"),
    ],
)
def test_answers_of_a_multiple_choice_become_letters(answer: Any, letters: str) -> None:
    record = read({"options": ["red", "blue", "green"], "answer": answer})
    assert (truths(record), record.grading) == (tuple(letters), "choice")
    assert record.question == "?\nA. red\nB. blue\nC. green"


def test_tags_around_a_truth_are_taken_off() -> None:
    """The rows of R1-style sets have their answers so."""
    assert read({"answer": "<answer> 17 cm </answer>"}).answer == "17 cm"
    assert read({"answer": "<answer>17 cm"}).answer == "<answer>17 cm"


def test_options_in_columns_of_their_own_and_as_a_dict() -> None:
    columns = {"options": ["A", "B", "C", "D"]}
    record = read({"A": "one", "B": "two", "C": None, "D": None, "answer": "B"}, **columns)
    assert (record.question, truths(record)) == ("?\nA. one\nB. two", ("B",))
    record = read({"A": None, "B": None, "C": None, "D": None, "answer": "B"}, **columns)
    assert (record.question, record.grading) == ("?", "short")
    record = read({"options": {"A": "one", "B": "two"}, "answer": "two"}, "math")
    assert (truths(record), record.grading) == (("B",), "math")
    assert read({"options": ["(A) x", "(B) y"], "answer": "A"}).question == "?\n(A) x\n(B) y"
    assert read({"options": ["A", "B"], "answer": "A"}).question == "?"


@pytest.mark.parametrize(
    ("options", "answer", "message"),
    [
        (["red", "blue"], "C", "here: answer: got 'C', expected a letter up to B"),
        (["red", "blue"], "yellow", "here: answer: got 'yellow'"),
        (["red", "red"], "red", "here: answer: got 'red'"),
        (["1", "2", "3"], 1, "here: answer: got 1"),
        (["red"], "A", r"here: options: got \['red'\]"),
        (["red", None, "blue"], "A", "here: options: got None"),
        ({"A": "x", "C": "y"}, "A", "here: options: letters"),
    ],
)
def test_options_that_no_answer_fits(options: Any, answer: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read({"options": options, "answer": answer})


def test_a_letter_that_is_another_options_text_stays_the_letter() -> None:
    assert read({"options": ["B", "A"], "answer": "A"}).answer == "A"


# Public training sets, with their own columns -------------------------------------------------


def test_deepeyes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ChenShawn/DeepEyes-Datasets-47k: verl's columns, pictures in the Parquet file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    row = {
        "data_source": "vstar",
        "prompt": [
            {"content": "You are a helpful assistant.\n# Tools ...", "role": "system"},
            {"content": "<image>\nWhat colour is the kite?\nThink first, call ...", "role": "user"},
        ],
        "images": [{"bytes": picture("blue", (64, 32), "JPEG"), "path": None}],
        "ability": "vl_reasoning",
        "env_name": "visual_toolbox_v2",
        "reward_model": {"ground_truth": "The kite is blue.", "style": "model"},
        "extra_info": {"answer": "The kite is blue.", "index": "0", "question": "Which colour?",
                       "split": "train"},
    }  # fmt: skip
    write_parquet(tmp_path / "data_0.1.2_visual_toolbox_v2.parquet", [row])
    other = {name: row[name] for name in row if name != "ability"}
    other["extra_info"] = {"question": "Which?", "id": 4}  # each file has a schema of its own
    write_parquet(tmp_path / "data_v0.8_visual_toolbox_v2.parquet", [other])
    task = task_of(f"""
        path = '{tmp_path}/*_visual_toolbox_v2.parquet'
        [task.columns]
        question = "extra_info.question"
        answer = "reward_model.ground_truth"
        meta = ["data_source", "env_name"]
    """)
    first, second = task.example("train", 0), task.example("train", 1)
    assert (first.question, first.answer) == ("Which colour?", "The kite is blue.")
    assert (first.images[0].size, first.meta["data_source"]) == ((64, 32), "vstar")
    assert second.question == "Which?"
    as_prompted = task_of(f"""
        path = '{tmp_path}/data_0.1.2_visual_toolbox_v2.parquet'
        columns = {{question = "prompt.-1.content", answer = "reward_model.ground_truth"}}
    """)
    assert as_prompted.example("train", 0).question.startswith("<image>\nWhat colour is the kite?")


def test_virl39k(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TIGER-Lab/ViRL39K: boxed answers, paths into images.zip as unpacked beside the file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "images").mkdir()
    for name, shade in (("a", "red"), ("b", "blue")):
        (tmp_path / f"images/{name}.png").write_bytes(picture(shade))
    row = {"question": "<image>\n<image>\nHow large is the angle?", "answer": r"\boxed{17^\circ}",
           "PassRate_32BTrained": 0.5, "PassRate_7BBase": -1.0, "category": "(GradeSchool)",
           "source": "MMMath", "qid": "MMMath-1",
           "image": ["images/a.png", "images/b.png"]}  # fmt: skip
    write_parquet(tmp_path / "39Krelease.parquet", [row])
    task = task_of(f"""
        path = '{tmp_path}/39Krelease.parquet'
        grading = "math"
        columns = {{id = "qid", images = "image", meta = ["category", "PassRate_32BTrained"]}}
    """)
    example = task.example("train", 0)
    assert (example.id, example.answer, example.grading) == ("MMMath-1", r"17^\circ", "math")
    assert [colour(image) for image in example.images] == [(255, 0, 0), (0, 0, 255)]
    assert example.meta == {"category": "(GradeSchool)", "PassRate_32BTrained": 0.5}


def test_visual_probe(tmp_path: Path) -> None:
    """Mini-o3/VisualProbe_train: one JSON array, paths that begin with the data set's name."""
    (tmp_path / "VisualProbe_train/data").mkdir(parents=True)
    (tmp_path / "VisualProbe_train/data/visual_probe_train_7.jpg").write_bytes(picture("lime"))
    row = {"doc_id": "visual_probe_train_7", "problem": "<image>\nWhat is on the sign?",
           "solution": "7-Eleven", "data_source": "visual_probe_train",
           "images": ["VisualProbe_train/data/visual_probe_train_7.jpg"]}  # fmt: skip
    (tmp_path / "VisualProbe_train/train.json").write_text(json.dumps([row]))
    task = task_of(f"""
        path = '{tmp_path}/VisualProbe_train/{{split}}.json'
        image_folder = '{tmp_path}'
        columns = {{id = "doc_id", question = "problem", answer = "solution"}}
    """)
    example = task.example("train", 0)
    assert (example.id, example.answer) == ("visual_probe_train_7", "7-Eleven")
    assert colour(example.images[0]) == (0, 255, 0)


def test_columns_of_benchmarks_and_math_vr(tmp_path: Path) -> None:
    """Pictures in numbered columns, options in lettered ones, several truths."""
    (tmp_path / "1.png").write_bytes(picture())
    path = write_jsonl(
        tmp_path / "t.jsonl",
        {"q": "In <image1>?", "image1": "1.png", "A": "x", "B": "y", "gt_answer": "y", "more": []},
        {"q": "Who?", "image1": "1.png", "gt_answer": "Ann", "more": ["Anna"]},
    )
    task = task_of(f"""
        path = '{path}'
        [task.columns]
        question = "q"
        images = ["image1"]
        options = ["A", "B"]
        answer = ["gt_answer", "more"]
    """)
    first, second = task.example("train", 0), task.example("train", 1)
    assert (first.question, first.answer, first.grading) == (
        "In <image>?\nA. x\nB. y", "B", "choice",
    )  # fmt: skip
    assert (second.answer, second.alternatives, second.grading) == ("Ann", ("Anna",), "short")


@pytest.mark.parametrize("field", ["question", "answer", "id", "demonstration"])
def test_half_a_character_is_refused_by_name(field: str) -> None:
    """Neither a tokenizer nor Parquet takes it, steps after the row was sampled."""
    row = {"question": "?", "answer": "7", field: "bad \ud83d"}
    with pytest.raises(DataError, match=rf"here: {field}: character 4 of .* is half of one"):
        read(row)


def test_half_a_character_in_a_file_names_its_row(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", {"question": "?", "answer": "7"})
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('\n{"question": "?", "answer": "\\ud83d"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: answer: character 0"):
        task_of(f"path = '{tmp_path}/a.jsonl'").size("train")


@pytest.mark.parametrize(
    ("value", "text"), [(5.0, "5"), (-0.0, "0"), (2.5, "2.5"), (1e300, "1e+300"), (12, "12")]
)
def test_a_number_is_the_text_that_people_write(value: float, text: str) -> None:
    assert read({"answer": value}).answer == text


def test_a_missing_truth() -> None:
    nan = float("nan")
    assert truths(read({"answer": [nan, 3.0]})) == ("3",)
    for value in (nan, [nan], None, float("inf")):
        with pytest.raises(DataError, match="here: answer: got "):
            read({"answer": value})
    assert read({"options": [10.0, 2.5, nan], "answer": 1.0}).question == "?\nA. 10\nB. 2.5"
    assert read({"options": [10.0, 2.5, nan], "answer": 1.0}).answer == "B"
    record = read({"answer": "7", "id": nan, "cluster": nan})
    assert (record.id, record.cluster) == ("here", None)


@pytest.mark.parametrize("text", ['["Spain", "ESP"]', "['Spain', 'ESP']", " [ 'Spain' ,'ESP'] "])
def test_a_list_that_is_written_as_text(text: str) -> None:
    assert truths(read_with({"answer_lists": True}, answer=text)) == ("Spain", "ESP")
    assert truths(read_with({"answer_lists": True}, answer=["x", text])) == ("x", "Spain", "ESP")
    assert truths(read_with({"answer_lists": False}, answer=text)) == (text,)
    with pytest.raises(
        DataError, match=r"here: answer: .* is a list written as text: set task.ans"
    ):
        read({"answer": text})


def test_texts_that_are_no_lists_of_truths() -> None:
    assert truths(read({"answer": "[0, 1]"})) == ("[0, 1]",)
    assert truths(read_with({"answer_lists": True}, answer="[0, 1.0]")) == ("0", "1")
    deep = "[" * 5000 + "]" * 5000
    for text in ("[a, b]", "[x for x in 'ab']", "[__import__('os')]", deep, "['a'", "[1"):
        assert truths(read_with({"answer_lists": True}, answer=text)) == (text,)
    with pytest.raises(DataError, match="side by side without a comma, as NumPy prints them"):
        read_with({"answer_lists": True}, answer="['a' 'b']")
    with pytest.raises(DataError, match=r"here: answer: got '\[\]', expected a text, a number or"):
        read_with({"answer_lists": True}, answer="[]")
    with pytest.raises(DataError, match=r"here: answer: got {'a': 1}, expected a text"):
        read_with({"answer_lists": True}, answer='[{"a": 1}]')
    for boxed in (r"\boxed{}", "<answer></answer>"):
        with pytest.raises(DataError, match="expected something within the mark"):
            read({"answer": boxed})


def test_options_that_are_written_as_text() -> None:
    """As MMMU has them; "[]" stands for a question without options."""
    assert read({"options": "['red', 'blue']", "answer": "B"}).options == ("red", "blue")
    assert read({"options": "[]", "answer": "blue"}).options == ()


def test_an_instruction_stands_behind_the_options() -> None:
    row = {"options": ["red", "blue"], "answer": "A"}
    record = read_with({"instruction": "Box the letter."}, **row)
    assert record.question == "?\nA. red\nB. blue\nBox the letter."


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("rubric", {"rubric": [{"text": "names it", "value": 2}, {"id": "says why", "value": 1}]}),
        (["said", "worth"], {"said": ["names it", "says why"], "worth": [2, 1.0]}),
        (["said", "worth"], {"said": '["names it", "says why"]', "worth": "[2, 1]"}),
    ],
)
def test_rubrics(columns: Any, row: dict[str, Any]) -> None:
    found = read({"answer": "7", **row}, rubric=columns).rubric
    assert found == (Point("names it", 2.0), Point("says why", 1.0))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"rubric": ["names it"]},
            r"here: rubric: got \['names it'\], expected a list of {text, v",
        ),
        ({"rubric": [{"text": "x", "value": 0}]}, "here: rubric: a value of 0, expected a number"),
        ({"rubric": [{"value": 1}]}, "here: rubric: got None, expected a text"),
        ({"demonstration": "['a', 'b']"}, "here: demonstration: .* is a list written as text"),
        ({"demonstration": "a<think>b<think>c"}, "a turn with 2 <think>, expected one at most"),
        ({"demonstration": "<tool_response>3</tool_response>7"}, "a turn with '<tool_response'"),
        ({"question": "<video>What?"}, "here: video: the question places a video"),
    ],
)
def test_values_that_would_be_read_wrong(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read({"answer": "7", **row})


def test_files_of_videos_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.MP4").write_bytes(b"")
    row = {"question": "?", "answer": "7", "images": ["a.MP4"]}
    with pytest.raises(DataError, match=r"t\.jsonl:1: video: 'a\.MP4' is a video; only pictures"):
        task_of(f"path = '{write_jsonl(tmp_path / 't.jsonl', row)}'").size("train")
