"""Where a row of a data set holds what."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from axpo.config.base import Section

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
