"""The settings of which column of a data set holds which field."""

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
    """Which column of the data holds a field; the values of several columns are put together.

    `outer.inner` looks inside a column; `list.0` and `list.-1` take one element of a list.
    """

    id: str = "id"
    """The unique name of a question; if the data has none, the row's place."""
    question: str = "question"
    """The text; `<image>` or `<image1>` places a picture, which otherwise stands before the
    text."""
    images: OneOrMore = ("images",)
    """A picture or a list of pictures: path, bytes, base64, or {bytes, path}; may be missing."""
    answer: OneOrMore = ("answer",)
    """The truth, or a list of truths of which each is right."""
    options: OneOrMore = ("options",)
    """The options of a multiple choice, which are listed below the question; may be missing."""
    rubric: OneOrMore = ("rubric",)
    """The points of a rubric: a list of {text, value}, or two columns, a list of texts and a list
    of values; may be missing."""
    grading: str = "grading"
    """The row's grader; may be missing (task.grading)."""
    demonstration: str = "demonstration"
    """A teacher's turns for SFT; may be missing."""
    cluster: str = "cluster"
    """The name that dependent questions share (several on one picture): intervals resample them
    together; may be missing."""
    provenance: str = "provenance"
    """Where the question comes from; if it is missing, the row's place stands for it."""
    meta: OneOrMore = ("meta",)
    """Further values that are stored in the trajectory trees; may be missing."""
