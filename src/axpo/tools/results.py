"""A tool's function is refused if its annotation names a return type that no model can be shown.

It is refused where the tool is defined. Otherwise each of its calls would fail, through no fault of
the model, and training would lose every trajectory that calls it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from PIL import Image

from axpo.tools.base import Observation, View

PARTS: tuple[type, ...] = (str, Image.Image, View)
"""The types of the parts of a result."""


def refused_result(hint: Any) -> str | None:
    """Why a type `hint` is no result, and what to return instead; None if it may be a result."""
    wrong = _impossible(hint, (*PARTS, Observation), lists=True)
    if wrong is None:
        return None
    name = getattr(wrong, "__name__", str(wrong))
    return (
        f"returns {'None' if wrong is types.NoneType else name}: expected str, PIL.Image, View, a "
        f"list of them, or Observation; {_advice(wrong)}"
    )


def _advice(wrong: Any) -> str:
    if wrong is types.NoneType:
        return 'return what the model is to read, "" for nothing'
    if isinstance(wrong, type) and issubclass(wrong, Mapping):
        return "return json.dumps(...) of it, or a text of your own"
    return "return str(...) of it, or what else the model is to read"


def _impossible(hint: Any, kinds: tuple[type, ...], lists: bool) -> Any | None:
    """The first part of `hint` that is none of `kinds` and, with `lists`, no list of `PARTS`."""
    hint = getattr(hint, "__supertype__", hint)  # A NewType names its type there.
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _impossible(arguments[0], kinds, lists)
    if origin in (typing.Union, types.UnionType):
        return _first(arguments, kinds, lists)
    if origin is Literal:
        return _first([type(value) for value in arguments], kinds, lists)
    found = origin or hint
    if not isinstance(found, type) or found in (object, Any):
        return None  # The annotation says too little.
    if lists and (issubclass(found, list | tuple) or _holds(found, list)):
        return _first([a for a in arguments if a is not ...], PARTS, lists=False)
    if issubclass(found, kinds) or any(_holds(found, kind) for kind in kinds):
        return None
    return found


def _first(hints: Iterable[Any], kinds: tuple[type, ...], lists: bool) -> Any | None:
    found = (_impossible(hint, kinds, lists) for hint in hints)
    return next((wrong for wrong in found if wrong is not None), None)


def _holds(wide: type, kind: type) -> bool:
    """Whether `kind` is a subclass of `wide`; True for a protocol, which cannot be asked."""
    try:
        return issubclass(kind, wide)
    except TypeError:
        return True
