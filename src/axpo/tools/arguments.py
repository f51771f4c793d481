"""The arguments that a tool takes. pydantic checks them; the first problem becomes a short line."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from axpo.errors import ModelError
from axpo.tools.base import ToolContext, View

SHOWN = 40
"""How many characters of a wrong value an error message repeats."""

Parsed = TypeVar("Parsed", bound=BaseModel)


class Arguments(BaseModel):
    """The base of a built-in tool's arguments; unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


def function(name: str, description: str, argument: str, kind: str, meaning: str) -> dict[str, Any]:
    """The `spec` of a tool that has one required argument, of the JSON type `kind`."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {argument: {"type": kind, "description": meaning}},
                "required": [argument],
            },
        },
    }


def shorten(value: Any) -> str:
    """The `repr` of a value as an error message shows it, at most `SHOWN` characters."""
    try:
        text = repr(value)
    except ValueError:  # It is an integer with more digits than Python prints.
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def parse_arguments(model: type[Parsed], arguments: Any) -> Parsed:
    """`arguments` as `model`.

    Raises `ModelError` with the field, its value and what is expected, which is the `description`
    of the model's field.
    """
    try:
        return model.model_validate(arguments)
    except ValidationError as error:
        problem = _first(error)
    field = _field(model, arguments, problem)
    expected = model.model_fields[field].description
    raise ModelError(f"{field} is {shorten(arguments[field])}: expected {expected}")


def parse_json_arguments(model: type[Parsed], arguments: Any) -> Parsed:
    """`arguments` as `model` by pydantic's rules for JSON (a tuple is a list, a date is text).

    Raises `ModelError` in pydantic's words, for models whose descriptions do not say what is
    expected.
    """
    try:
        text = json.dumps(arguments)
    except ValueError as error:  # It is an integer with more digits than Python prints.
        raise ModelError(f"arguments cannot be read: {error}") from error
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        problem = _first(error)
    _field(model, arguments, problem)
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in problem["loc"])
    says = problem["msg"][0].lower() + problem["msg"][1:]
    raise ModelError(f"{path[1:]} is {shorten(problem['input'])}: {says}")


def text_argument(field: str, value: str, characters: int) -> str:
    """The string `value` of an argument without surrogates and outer white space.

    Raises `ModelError` if nothing is left, or more than `characters`.
    """
    text = value.encode("utf-8", "ignore").decode().strip()
    if not text:
        raise ModelError(f"{field} is {shorten(value)}: expected some text")
    if len(text) > characters:
        raise ModelError(f"{field} has {len(text)} characters: expected at most {characters}")
    return text


def chosen_view(context: ToolContext, index: int) -> View:
    """The picture that the argument `img_idx` means; raises `ModelError` if there is none."""
    if not context.views:
        raise ModelError(f"img_idx is {shorten(index)}: there is no image")
    if not 0 <= index < len(context.views):
        raise ModelError(f"img_idx is {shorten(index)}: expected 0 to {len(context.views) - 1}")
    return context.views[index]


def _first(error: ValidationError) -> ErrorDetails:
    return error.errors(include_url=False, include_context=False)[0]


def _field(model: type[BaseModel], arguments: Any, problem: ErrorDetails) -> str:
    """The model's field in which a problem lies; raises `ModelError` if it lies in none of them."""
    path = [str(part) for part in problem["loc"]]
    names = ", ".join(model.model_fields) or "none"
    if not path:
        raise ModelError(f"arguments are {shorten(arguments)}: expected an object with {names}")
    if problem["type"] == "missing" and len(path) == 1:
        raise ModelError(f"{path[0]} is missing: expected {names}")
    if problem["type"] == "extra_forbidden" and len(path) == 1:
        raise ModelError(f"{shorten(path[0])} is unknown: expected {names}")
    return path[0]
