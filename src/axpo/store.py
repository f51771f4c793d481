"""Trajectory trees on disk: Parquet for the trees, PNG by content hash for the pictures.

One row per trajectory, with nested lists for its segments, calls and credit, so that pandas and
duckdb read a run directly. The prompt is a row of its own (`kind` "prompt"), and only it has the
group's columns, from `question` on; a continuation's `branch` counts in its group's `branches`. A
text can hold half a surrogate pair, which Parquet's cannot: it is stored as its escape.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from axpo.errors import TreeError
from axpo.folder import whole_file
from axpo.pictures import as_rgb
from axpo.tree import (
    Branch,
    Call,
    CallStatus,
    Credit,
    Crop,
    Group,
    ImageSpan,
    Origin,
    Point,
    Segment,
    StopReason,
    Stream,
    Trajectory,
)

_SPAN = pa.struct([("digest", pa.string()), ("start", pa.int32()), ("length", pa.int32())])
_SEGMENT = pa.struct(
    [
        ("id", pa.string()),
        ("origin", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float64())),
        ("images", pa.list_(_SPAN)),
        ("version", pa.int64()),
    ]
)
_CALL = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("name", pa.string()),
        ("arguments", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
    ]
)
_CREDIT = pa.struct(
    [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("advantage", pa.float64()),
        ("stream", pa.string()),
        ("weight", pa.float64()),
    ]
)
_BRANCH = pa.struct([("source", pa.string()), ("cut", pa.int32()), ("confidence", pa.float64())])
_VIEW = pa.struct(
    [("digest", pa.string()), ("original", pa.string()), ("box", pa.list_(pa.int32()))]
)
_POINT = pa.struct([("text", pa.string()), ("value", pa.float64())])
_ENTROPY = pa.struct([("segment", pa.string()), ("entropy", pa.float64())])
SCHEMA = pa.schema(
    [
        ("group", pa.string()),
        ("kind", pa.string()),
        ("trajectory", pa.string()),
        ("branch", pa.int32()),
        ("source", pa.string()),
        ("cut", pa.int32()),
        ("confidence", pa.float64()),
        ("stop", pa.string()),
        ("answer", pa.string()),
        ("answer_start", pa.int32()),
        ("reward", pa.float64()),
        ("solved_at", pa.float64()),
        ("rule", pa.string()),
        ("detail", pa.string()),
        ("fault", pa.string()),
        ("seconds", pa.float64()),
        ("segments", pa.list_(_SEGMENT)),
        ("calls", pa.list_(_CALL)),
        ("credit", pa.list_(_CREDIT)),
        ("question", pa.string()),
        ("truths", pa.list_(pa.string())),
        ("grading", pa.string()),
        ("example", pa.string()),
        ("options", pa.list_(pa.string())),
        ("rubric", pa.list_(_POINT)),
        ("cluster", pa.string()),
        ("provenance", pa.string()),
        ("branches", pa.list_(_BRANCH)),
        ("pictures", pa.list_(pa.string())),
        ("views", pa.list_(_VIEW)),
        ("entropies", pa.list_(_ENTROPY)),
        ("meta", pa.string()),
    ]
)

_OF_GROUP = ("question", "truths", "grading", "example", "options", "cluster", "provenance")
_OF_TRAJECTORY = (
    "answer", "answer_start", "reward", "solved_at", "rule", "detail", "fault", "seconds",
)  # fmt: skip
"""The columns that hold a field of a group, or of a trajectory, under its own name."""


def save_groups(path: Path, groups: Iterable[Group], pictures: Path) -> None:
    """Write `groups` to `path` (Parquet) and their pictures into the folder `pictures`.

    Raises `TreeError` for two groups with one id. Killed in the middle, it leaves no half file.
    """
    rows: list[dict[str, Any]] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for group in groups:
        if group.id in seen:
            raise TreeError(f"{path}: two groups have the id {group.id}")
        seen.add(group.id)
        rows.append(_prompt_row(group))
        rows += [_row(group, r, None) for r in group.rollouts]
        rows += [_row(group, c, i) for i, b in enumerate(group.branches) for c in b.continuations]
        save_pictures(pictures, group)
    with whole_file(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary, compression="zstd")


def load_groups(path: Path, pictures: Path | None = None) -> list[Group]:
    """Read what `save_groups` wrote; raises `TreeError` that names a missing picture, or the
    columns that a file of another version lacks.

    Without the folder `pictures` the groups hold none: decoding them is three quarters of the work,
    and statistics of calls, rewards and credit need none.
    """
    groups: dict[str, Group] = {}
    table = pq.read_table(path)
    if missing := set(SCHEMA.names) - set(table.column_names):
        raise TreeError(
            f"{path}: no column {', '.join(sorted(missing))}; another version of axpo wrote these "
            "trees: read them with that one, or sample again into another folder"
        )
    for row in table.to_pylist():
        if row["kind"] == "prompt":
            groups[row["group"]] = _group(row, pictures)
        elif row["kind"] == "rollout":
            groups[row["group"]].rollouts.append(_trajectory(row))
        else:
            branch = groups[row["group"]].branches[row["branch"]]
            branch.continuations.append(_trajectory(row))
    return list(groups.values())


def load_pictures(pictures: Path, group: Group) -> None:
    """Give a group that was read without pictures those that it shows, and those that they were cut
    from, from the folder `pictures`; raises `TreeError`."""
    for digest in shown_pictures(group):
        group.pictures[digest] = _load_picture(pictures, digest, group.id)


def save_pictures(pictures: Path, group: Group) -> None:
    """Write the group's pictures into the folder `pictures`, as far as they are not there."""
    pictures.mkdir(parents=True, exist_ok=True)
    for digest, picture in group.pictures.items():
        _save_picture(pictures / f"{digest}.png", picture)


def shown_pictures(group: Group) -> list[str]:
    """The digests of the pictures that the group shows, and of those that they were cut from."""
    segments = [group.prompt, *(s for t in group.trajectories() for s in t.segments)]
    shown = [span.digest for s in segments for span in s.images]
    return list(
        dict.fromkeys([*shown, *(group.views[d].original for d in shown if d in group.views)])
    )


def _save_picture(file: Path, picture: Image.Image) -> None:
    """Write a picture once; processes that share the folder may write it at the same time."""
    if file.exists():
        return
    with whole_file(file, durable=False) as temporary:
        as_rgb(picture).save(temporary, format="PNG", compress_level=1)


def _load_picture(folder: Path, digest: str, group: str) -> Image.Image:
    file = folder / f"{digest}.png"
    if not file.is_file():
        raise TreeError(f"group {group}: picture {digest} is missing; expected {file}")
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _prompt_row(group: Group) -> dict[str, Any]:
    return {
        "group": group.id,
        "kind": "prompt",
        "segments": [_segment_row(group.prompt)],
        **{name: _stored(getattr(group, name)) for name in _OF_GROUP},
        "branches": [
            {"source": b.source, "cut": b.cut, "confidence": b.confidence} for b in group.branches
        ],
        "pictures": list(dict.fromkeys([*group.pictures, *shown_pictures(group)])),
        "rubric": [_stored_dict(asdict(point)) for point in group.rubric],
        "views": [asdict(crop) | {"digest": digest} for digest, crop in group.views.items()],
        "entropies": [{"segment": s, "entropy": e} for s, e in group.entropies.items()],
        "meta": json.dumps(dict(group.meta)),
    }


def _group(row: Mapping[str, Any], pictures: Path | None) -> Group:
    """The group of a prompt's row, without trajectories."""
    kept: dict[str, Any] = {name: row[name] for name in _OF_GROUP}
    kept |= {"truths": tuple(row["truths"]), "options": tuple(row["options"])}
    group = Group(
        row["group"],
        _segment(row["segments"][0]),
        **kept,
        branches=[Branch(b["source"], b["cut"], b["confidence"]) for b in row["branches"]],
        rubric=tuple(Point(**point) for point in row["rubric"]),
        views={v["digest"]: Crop(v["original"], tuple(v["box"])) for v in row["views"]},
        entropies={e["segment"]: e["entropy"] for e in row["entropies"]},
        meta=json.loads(row["meta"]),
    )
    if pictures is not None:
        for digest in row["pictures"]:
            group.pictures[digest] = _load_picture(pictures, digest, group.id)
    return group


def _row(group: Group, trajectory: Trajectory, index: int | None) -> dict[str, Any]:
    branch = None if index is None else group.branches[index]
    return {
        "group": group.id,
        "kind": "rollout" if branch is None else "continuation",
        "trajectory": trajectory.id,
        "branch": index,
        "source": branch.source if branch else None,
        "cut": branch.cut if branch else None,
        "confidence": branch.confidence if branch else None,
        "stop": trajectory.stop,
        **{name: _stored(getattr(trajectory, name)) for name in _OF_TRAJECTORY},
        "segments": [_segment_row(s) for s in trajectory.segments],
        "calls": [
            _stored_dict(asdict(c)) | {"arguments": json.dumps(c.arguments)}
            for c in trajectory.calls
        ],
        "credit": [asdict(c) for c in trajectory.credit],
    }


def _stored(value: Any) -> Any:
    """`value` with its texts, or those of a tuple, as Parquet can hold them."""
    if isinstance(value, tuple):
        return [_stored(item) for item in cast("tuple[Any, ...]", value)]
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _stored_dict(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _stored(value) for name, value in values.items()}


def _segment_row(segment: Segment) -> dict[str, Any]:
    # Arrays, which Arrow takes whole; `asdict` would copy token by token.
    return {
        "id": segment.id,
        "origin": segment.origin,
        "tokens": np.array(segment.tokens, np.int32),
        "logprobs": np.array(segment.logprobs, np.float64),
        "images": [asdict(span) for span in segment.images],
        "version": segment.version,
    }


def _segment(row: Mapping[str, Any]) -> Segment:
    listed = {"tokens": tuple(row["tokens"]), "logprobs": tuple(row["logprobs"])}
    images = tuple(ImageSpan(**span) for span in row["images"])
    return Segment(**{**row, **listed, "origin": Origin(row["origin"]), "images": images})


def _trajectory(row: Mapping[str, Any]) -> Trajectory:
    return Trajectory(
        row["trajectory"],
        [_segment(s) for s in row["segments"]],
        [
            Call(
                **(c | {"arguments": json.loads(c["arguments"]), "status": CallStatus(c["status"])})
            )
            for c in row["calls"]
        ],
        StopReason(row["stop"]) if row["stop"] else None,
        credit=[Credit(**(c | {"stream": Stream(c["stream"])})) for c in row["credit"]],
        **{name: row[name] for name in _OF_TRAJECTORY},
    )
