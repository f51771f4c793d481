"""Settings of the questions: the lab's families, or a data set and its columns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from axpo.config.base import PositiveInt, Section

Family = Literal["find", "calculate", "look_up", "recognise"]


OneOrMore = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
]
"""A name, or a list of names."""


class ColumnSettings(Section):
    """Which column of the data holds a field; the values of several are put together.

    `outer.inner` looks inside a column, `list.0` and `list.-1` take one element of a list.
    """

    id: str = "id"
    """Unique name of a question; the row's place where the data has none."""
    question: str = "question"
    """Text; `<image>` or `<image1>` places a picture, which else stands before it."""
    images: OneOrMore = ("images",)
    """Picture or list of pictures: path, bytes, base64, or {bytes, path}; may be missing."""
    answer: OneOrMore = ("answer",)
    """The truth, or a list of truths each of which is right."""
    options: OneOrMore = ("options",)
    """Options of a multiple choice, listed below the question; may be missing."""
    grading: str = "grading"
    """The row's grader; may be missing (task.grading)."""
    demonstration: str = "demonstration"
    """A teacher's turns for SFT; may be missing."""
    cluster: str = "cluster"
    """Name that dependent questions share (several on one picture): intervals resample them
    together; may be missing."""
    provenance: str = "provenance"
    """Where the question comes from; where it is missing, the row's place stands for it."""
    meta: OneOrMore = ("meta",)
    """What goes along into the trajectory trees; may be missing."""


class TaskSettings(Section):
    name: Literal["lab", "data"] = "lab"
    """"lab" generates questions of `families`; "data" reads a data set at `path` or `hub`."""
    families: Annotated[tuple[Family, ...], Field(min_length=1)] = ("find",)
    """The lab's families of questions, in turn: find (for image_zoom_in_tool), calculate (python),
    look_up (web_search, over corpus "lab") and, for evaluation only, recognise (image_search, over
    gallery "lab")."""
    path: OneOrMore = ()
    """Files of a data set, .jsonl, .json or .parquet: one or several, `*` allowed; `{split}` in a
    name is replaced. "sample" stands for 20 rows that ship, to try a recipe with."""
    hub: str | None = None
    """A data set's Hub id, or a folder laid out like one (extra "data")."""
    subset: str | None = None
    """Configuration of the data set at `hub`, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of the data set at `hub`; a commit makes a run repeatable."""
    splits: dict[str, str] = Field(default_factory=dict)
    """A split's name here ("train", "sft", "test") -> its name in the data, at `hub` also a slice
    such as "train[:500]"; the same name by default."""
    streaming: tuple[str, ...] = ()
    """Splits that are read as they arrive, not copied to this machine first (Parquet and Hub)."""
    window: PositiveInt = 1000
    """Rows of a streamed split that are held and shuffled at once."""
    columns: ColumnSettings = ColumnSettings()
    """Where a row of the data holds what."""
    solved: Annotated[float, Field(gt=0, le=1)] = 1.0
    """A rollout is solved, for the trigger, recovery, Pass@k and every rate, when its reward is at
    least this; advantages take the reward itself (choice)."""
    grading: str | None = None
    """Grader of rows that name none; by default "choice" for rows with options, else "exact"."""
    image_folder: str | None = None
    """Folder that the data's image paths start from; its file's own by default."""
    system: str | None = None
    """System message before the tools' signatures; none by default."""

    @model_validator(mode="after")
    def _effective(self) -> TaskSettings:
        if self.name == "lab":
            idle = self.model_fields_set - {"name", "families", "system"}
            if idle:
                raise ValueError(
                    f"{', '.join(sorted(idle))}: no effect with name = 'lab'; set name = 'data'"
                )
            return self
        if "families" in self.model_fields_set:
            raise ValueError("families: no effect with name = 'data'; remove it")
        if bool(self.path) == bool(self.hub):
            raise ValueError("path, hub: the data task needs one of them, files or a Hub id")
        if self.path and (idle := {"subset", "revision"} & self.model_fields_set):
            raise ValueError(f"{', '.join(sorted(idle))}: no effect without hub; remove it")
        if self.path and self.splits and not any("{split}" in name for name in self.path):
            raise ValueError("splits: no effect without {split} in path; add it or remove splits")
        if not self.streaming and "window" in self.model_fields_set:
            raise ValueError("window: no effect without streaming; remove it")
        return self
