"""Rows of public sets in their own schemas, by the recipes that docs/data.md prints.

The rows in `tests/data_rows` are made by hand: invented texts and pictures, the sets' columns.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from axpo.errors import DataError, DataWarning
from axpo.tasks.base import Example
from axpo.tasks.data.task import DataTask
from tests.support.data_sets import ROWS, printed_recipe, task_of


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(ROWS)


def recipe(heading: str) -> DataTask:
    """The recipe below a heading of docs/data.md, as it is printed."""
    return task_of(printed_recipe(heading).removeprefix('[task]\nname = "data"\n'))


def rows(task: DataTask) -> list[Example]:
    return [task.example("train", index) for index in range(task.size("train") or 0)]


def test_deepeyes() -> None:
    found = rows(recipe("DeepEyes-47k"))
    assert [(e.meta["set"], e.answer, e.grading) for e in found] == [
        ("visual", "The color of the box is red.", "judge"),
        ("visual", "The box is on the left side.", "judge"),
        ("visual", "Yes, there is a box.", "judge"),
        ("chart", "A", "choice"),
        ("chart", "C", "choice"),
        ("chart", "A", "choice"),
        ("thinklite", "2", "math"),
        ("thinklite", "3", "math"),
        ("thinklite", "4", "math"),
    ]
    assert found[0].question == "Is the box red or blue?" and len(found[0].images) == 1
    assert found[3].question == "How many boxes are drawn?\nA. 1\nB. 2\nC. 3"
    assert found[6].question == "What is 0+2? <image>"
    assert found[6].id.startswith("thinklite/") and found[6].provenance.startswith("thinklite: ")


def test_deepeyes_prompts_with_two_places_for_one_picture() -> None:
    columns = "question = 'prompt.-1.content', answer = 'reward_model.ground_truth'"
    task = task_of(
        f"path = 'DeepEyes-Datasets-47k/data_thinklite*.parquet'\ncolumns = {{{columns}}}"
    )
    with pytest.raises(
        DataError, match=r"row 0: question: it places <image>, <image>, the row has 1"
    ):
        task.size("train")


def test_visual_probe() -> None:
    found = rows(recipe("VisualProbe"))
    assert [(e.id, e.question, e.answer, e.grading) for e in found[:1]] == [
        ("vp_0", "<image>\nWhat is sign 0?", "Shop 0", "judge")
    ]
    assert len(found) == 4


def test_fvqa() -> None:
    first, _, third = rows(recipe("FVQA (MMSearch-R1)"))
    assert (first.answer, first.alternatives) == ("Spain", ("Kingdom of Spain", "ESP", "ES"))
    assert (third.answer, third.alternatives, third.grading) == ("The Louvre", (), "short")


def test_fvqa_without_saying_what_lists_are() -> None:
    columns = "question = 'prompt.0.content', answer = 'reward_model.candidate_answers'"
    task = task_of(f"path = 'FVQA/fvqa_train.parquet'\ncolumns = {{{columns}}}")
    with pytest.raises(
        DataError, match=r"row 0: answer: .* list written as text: set task.answer_"
    ):
        task.size("train")


def test_mars() -> None:
    found = rows(recipe("SenseNova-MARS"))
    assert [(e.meta["set"], e.answer, e.alternatives, e.grading) for e in found] == [
        ("fvqa", "Spain", ("Kingdom of Spain",), "judge"),
        ("fvqa", "Le Corbusier", (), "judge"),
        *[("mcq", "A", (), "choice"), ("mcq", "B", (), "choice")] * 2,
    ]
    assert [e.id for e in found[2:]] == ["mcq/0", "mcq/1"] * 2
    assert found[0].question == (
        "<image>\nWhich country is it from?\nPut the answer inside <answer></answer>."
    )
    assert all(len(e.images) == 1 for e in found)


def test_the_manifest_of_mars_is_no_data() -> None:
    with pytest.raises(DataError, match=r"8b\.json: got dict, expected an array of objects"):
        task_of("path = 'SenseNova-MARS-Data/train_qwen3_vl_8b.json'").size("train")


def test_virl39k() -> None:
    found = rows(recipe("ViRL39K"))
    assert [(e.id, e.answer, len(e.images)) for e in found] == [
        ("P-0", r"30^\circ", 1), ("P-1", "2", 0), ("P-2", "A", 2),
    ]  # fmt: skip
    assert found[1].question == "What is $1+1$?\nPut the final answer in \\boxed{}."


def test_virl39k_with_bad_rows() -> None:
    text = """path = 'ViRL39K-bad/39Krelease.parquet'
    grading = 'math'
    columns = {id = 'qid', images = 'image'}"""
    with pytest.raises(DataError, match=r"row 1: question: it places <image>, <image>"):
        task_of(text).size("train")
    skipping = f"{text}\nbad_rows = 'skip'"
    with pytest.raises(
        DataError, match=r"2 of 3 rows cannot be used, more than task.bad_share = 0"
    ):
        task_of(skipping).size("train")
    task = task_of(f"{skipping}\nbad_share = 0.7")
    with pytest.warns(
        DataWarning, match=r"1 of 3 rows, 2 cannot be used: question 1 \(first .*row 1: .*answer 1"
    ):
        assert [e.id for e in rows(task)] == ["P-1"]


def test_pixel_reasoner() -> None:
    assert [(e.id, e.answer) for e in rows(recipe("PixelReasoner-RL"))] == [
        ("pr-0", "A"), ("pr-1", "A"), ("pr-2", "A"),
    ]  # fmt: skip
    text = "path = 'PixelReasoner-RL/release.parquet'\ncolumns = {id = 'qid', images = 'image'}"
    with pytest.raises(DataError, match=r"row 3: video: the question places a video; .*task.where"):
        task_of(text).size("train")
    skipping = task_of(f"{text}\nbad_rows = 'skip'\nbad_share = 0.25")
    with pytest.warns(DataWarning, match=r"3 of 4 rows, 1 cannot be used: video 1"):
        assert skipping.size("train") == 3


def test_trl() -> None:
    first = rows(recipe("TRL"))[0]
    assert (first.question, first.answer) == ("<image>What colour is box 0?", "red")


def test_ms_swift() -> None:
    first, second = rows(recipe("ms-swift, Thyme-RL"))
    assert (first.question, first.answer) == ("<image>\nWhat is on the sign?", "A red box.")
    assert (second.grading, second.images[0].mode) == ("judge", "RGB")


def test_verl() -> None:
    first = rows(recipe("verl"))[0]
    assert (first.question, first.answer, first.grading) == (
        "<image>Find x0.\nPut the final answer in \\boxed{}.", r"2\sqrt{2}", "math",
    )  # fmt: skip


def test_math_vr() -> None:
    found = rows(recipe("Math-VR"))
    assert [(e.id, e.question, len(e.images)) for e in found] == [
        ("0", "As shown<image>, find the minimum of $PA+PB$.", 1),
        ("2", "Compare <image> and <image>.", 2),
    ]


CONVERSATION = 'conversation of .*docs/data.md, "Conversations", .*axpo convert'


@pytest.mark.parametrize(
    ("path", "columns", "message"),
    [
        ("DeepEyesV2_SFT/json/sft_part_0.json", "", "'messages' seems to hold conversations"),
        ("Mini-o3-sharegpt/Mini-o3-Coldstart.json", "", "'conversations' seems to hold conv"),
        ("Mini-o3-Coldstart/data/*.parquet", "", "'conversations' seems to hold conversations"),
        ("openai-sft/sft.jsonl", "", "'messages' seems to hold conversations"),
        ("PixelReasoner-SFT/release.json", "", "'message_list' seems to hold conversations"),
        ("DeepEyesV2_SFT/json/sft_part_0.json",
         "question = 'messages.1.content', answer = 'messages.-1.content', "
         "demonstration = 'messages'", CONVERSATION),
        ("Mini-o3-sharegpt/Mini-o3-Coldstart.json",
         "question = 'conversations.1.value', answer = 'conversations.-1.value', "
         "demonstration = 'conversations'", CONVERSATION),
        ("Mini-o3-Coldstart/data/*.parquet",
         "question = 'data_source', answer = 'data_source', demonstration = 'conversations'",
         CONVERSATION),
        ("Mini-o3-Coldstart/data/*.parquet",
         "question = 'conversations', answer = 'data_source'", CONVERSATION),
        ("openai-sft/sft.jsonl",
         "question = 'messages.0.content', answer = 'messages.-1.content', "
         "demonstration = 'messages'", CONVERSATION),
        ("openai-sft/sft.jsonl", "question = 'messages', answer = 'messages.-1.content'",
         "conversation of 4 messages: name the text in it"),
        ("Thyme-SFT/*.parquet",
         "images = 'image', answer = 'question', demonstration = 'response'",
         "a turn with '<code>"),
    ],
)  # fmt: skip
def test_what_must_be_converted_first(path: str, columns: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(f"path = '{path}'\ncolumns = {{{columns}}}").size("sft")


@pytest.mark.parametrize("name", ["abs_pixels", "no_idx", "unit_coords", "wrong_answer"])
def test_demonstrations_of_turns(name: str) -> None:
    """What tools make of the calls is seen when they run."""
    (turns,) = [e.demonstration for e in rows(task_of(f"path = 'zoom-sft/{name}.jsonl'"))]
    assert len(turns) == 2 and "<tool_call>" in turns[0]
