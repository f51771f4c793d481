"""Groups on disk: what is saved is what is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from axpo.errors import TreeError
from axpo.pictures import picture_digest
from axpo.store import load_groups, save_groups
from axpo.tree import (
    Call,
    CallStatus,
    Credit,
    Crop,
    Group,
    ImageSpan,
    Origin,
    Segment,
    StopReason,
    Stream,
    Trajectory,
)
from tests.support.groups import group as plain_group
from tests.support.groups import grow, tools_and_plain


def picture(colour: str) -> Image.Image:
    image = Image.new("RGB", (5, 3), colour)
    image.putpixel((2, 1), (1, 2, 3))
    return image


USERS = {"views": 3, "entropies": 0.5, "example": ["x"], "grading": None, "pictures": {"a": 1}}
"""Names of a user's that are ours as well."""


def rich_group() -> Group:
    """Branches (two at one cut, one empty), credit, pictures, faults, unscored and malformed."""
    pictures = {picture_digest(p): p for p in (picture("red"), picture("blue"), picture("green"))}
    prompt_digest, crop_digest, _unseen = pictures
    spans = (ImageSpan(prompt_digest, 1, 2),)
    group = tools_and_plain("q/ü", [0.0, 0.0, None], [1.0, 0.0])
    group.prompt = Segment("q/prompt", Origin.PROMPT, (1, 9, 9, 151_935), images=spans)
    group.question, group.truths = "Welche Ziffer? ✓", ("7", "sieben")
    group.pictures = pictures
    group.example, group.grading, group.cluster, group.provenance = "e1", "math", "ü", "a.jsonl:3"
    group.views = {crop_digest: Crop(prompt_digest, (1, 2, 3, 4))}
    group.options = ("rot", "blau")
    group.entropies = {"q/ü/t0/0": 0.1 + 0.2}
    group.meta = USERS
    first, second, third = group.rollouts[:3]
    first.segments[1] = Segment(
        "crop", Origin.OBSERVATION, (31, 32), images=(ImageSpan(crop_digest, 0, 2),), version=0
    )
    third.segments[1] = Segment("game", Origin.ENVIRONMENT, (31, 32))
    first.segments[2] = Segment("late", Origin.POLICY, (41, 42), (-1e-9, -75.25), version=12)
    first.calls.append(Call(8, 9, None, {"a": [1, None, {"b": 0.1}]}, CallStatus.MALFORMED, "bad"))
    first.credit = [Credit(0, 4, -1 / 3, Stream.PREFIX, 0.25)]
    second.credit = [Credit(0, 5, 0.1 + 0.2, Stream.ROLLOUT, 1 / 3)]
    second.seconds = 1.25
    second.rule, second.detail = "judge:strict", "half of it, ✓"
    third.stop, third.fault, third.answer = StopReason.TOOL_FAULT, "tool zoom: gone", None
    third.answer_start = None
    group.rollouts.append(Trajectory("q/none", stop=StopReason.ENGINE_FAULT, fault="engine: x"))
    grow(group, first.id, [1.0, 0.0, None]).confidence = 0.125
    grow(group, first.id, [0.0, 0.0])
    group.branches[1].continuations[0].credit = [Credit(4, 11, 2.0, Stream.CONTINUATION, 0.125)]
    group.fork(second, 0)
    return group


def test_round_trip(tmp_path: Path) -> None:
    groups = [rich_group(), tools_and_plain("b", [1], []), plain_group("empty", [])]
    path = tmp_path / "trees" / "step-000001.parquet"
    save_groups(path, groups, tmp_path / "pictures")
    loaded = load_groups(path, tmp_path / "pictures")
    assert loaded == groups
    for digest, image in loaded[0].pictures.items():
        assert image.tobytes() == groups[0].pictures[digest].tobytes()
        assert picture_digest(image) == digest
    assert [len(b.continuations) for b in loaded[0].branches] == [3, 2, 0]
    assert loaded[0].rollouts[2].reward is None
    nodes = [[(n.parent, n.trajectory, n.start) for n in g.nodes()] for g in (groups[0], loaded[0])]
    assert nodes[0] == nodes[1]


def test_nothing_and_infinite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "t.parquet"
    save_groups(path, [], tmp_path / "pictures")
    assert load_groups(path) == []
    group = tools_and_plain("a", [0], [])
    group.rollouts[0].calls[0] = Call(3, 7, "zoom", {"x": math.inf, "y": 10**30}, CallStatus.OK)
    save_groups(path, [group], path.parents[1] / "pictures")
    assert load_groups(path)[0].rollouts[0].calls == group.rollouts[0].calls


def test_text_that_is_no_unicode_is_kept_as_its_escape(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "t.parquet"
    group = tools_and_plain("a", [0], [])
    name = json.loads('"\\ud800"')
    group.rollouts[0].calls[0] = Call(3, 7, name, {"a": name}, CallStatus.MODEL_ERROR, f"no {name}")
    save_groups(path, [group], path.parents[1] / "pictures")
    (call,) = load_groups(path)[0].rollouts[0].calls
    assert call == Call(3, 7, "\\ud800", {"a": name}, CallStatus.MODEL_ERROR, "no \\ud800")


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run" / "trees" / "t.parquet"
    group = rich_group()
    save_groups(path, [group], path.parents[1] / "pictures")
    digest = group.prompt.images[0].digest
    file = tmp_path / "run" / "pictures" / f"{digest}.png"
    file.unlink()
    with pytest.raises(TreeError, match=f"group q/ü: picture {digest} is missing; expected {file}"):
        load_groups(path, path.parents[1] / "pictures")
    (loaded,) = load_groups(path)
    group.pictures.clear()
    assert loaded == group


def test_a_picture_that_the_group_never_had_is_missing_too(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "t.parquet"
    group = rich_group()
    del group.pictures[group.prompt.images[0].digest]
    save_groups(path, [group], path.parents[1] / "pictures")
    with pytest.raises(TreeError, match="is missing"):
        load_groups(path, tmp_path / "pictures")


def test_two_groups_with_one_id_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "t.parquet"
    with pytest.raises(TreeError, match="two groups have the id a"):
        twice = [tools_and_plain("a", [0], []), tools_and_plain("a", [1], [])]
        save_groups(path, twice, tmp_path / "pictures")
    assert not path.exists()


def test_saving_again_replaces_the_file_and_keeps_the_pictures(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "t.parquet"
    save_groups(path, [rich_group()], tmp_path / "pictures")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()}
    save_groups(path, [tools_and_plain("b", [1], [])], tmp_path / "pictures")
    assert [g.id for g in load_groups(path)] == ["b"]
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "pictures").iterdir()} == before
    assert sorted(p.suffix for p in path.parent.iterdir()) == [".parquet"]


def test_a_row_a_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "trees" / "t.parquet"
    save_groups(path, [rich_group()], tmp_path / "pictures")
    rows = pq.read_table(path, columns=["kind", "branch", "source", "cut"]).to_pylist()
    assert [r["kind"] for r in rows] == ["prompt"] + ["rollout"] * 6 + ["continuation"] * 5
    assert [(r["branch"], r["source"], r["cut"]) for r in rows[7:]] == [
        *[(0, "q/ü/t0", 4)] * 3,
        *[(1, "q/ü/t0", 4)] * 2,
    ]


def test_half_a_character_is_stored_as_its_escape(tmp_path: Path) -> None:
    """Wherever it comes from: it must not end a run when its step is saved."""
    group = rich_group()
    group.question, group.truths = "which \ud83d?", ("\ude00",)
    group.rollouts[0].answer = "so \ud83d"
    save_groups(tmp_path / "trees" / "a.parquet", [group], tmp_path / "pictures")
    (loaded,) = load_groups(tmp_path / "trees" / "a.parquet")
    assert (loaded.question, loaded.truths) == ("which \\ud83d?", ("\\ude00",))
    assert loaded.rollouts[0].answer == "so \\ud83d"
