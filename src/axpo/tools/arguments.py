"""Checking a call's arguments with pydantic; the first problem becomes one short line."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from axpo.tools.base import ModelError

SHOWN = 40
"""Characters of a wrong value that an error message repeats."""

Arguments = TypeVar("Arguments", bound=BaseModel)


def shorten(value: Any) -> str:
    """A value as an error message shows it."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python prints
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def parse_arguments(model: type[Arguments], arguments: Any) -> Arguments:
    """`arguments` as `model`; raises `ModelError` with the field, its value and what is expected.

    What is expected is the `description` of the model's field.
    """
    try:
        return model.model_validate(arguments)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
    path = [str(part) for part in problem["loc"]]
    field = path[0] if path else "arguments"
    names = ", ".join(model.model_fields)
    if problem["type"] == "missing" and len(path) == 1:
        raise ModelError(f"{field} is missing: expected {names}")
    if problem["type"] == "extra_forbidden":
        raise ModelError(f"{shorten(field)} is unknown: expected {names}")
    if not path:
        raise ModelError(f"arguments are {shorten(arguments)}: expected an object with {names}")
    expected = model.model_fields[field].description
    raise ModelError(f"{field} is {shorten(arguments[field])}: expected {expected}")
