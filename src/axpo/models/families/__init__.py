"""What differs between model families: one page per family, and nowhere else a question of it.

A page is a `Family` (`axpo.models.families.base`); this table finds it by the `model_type` of a
model's config. docs/families.md says what is proven for which family, and how to add one. Nothing
here imports torch: a page is loaded when a model of its family is.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING, Any

from axpo.errors import CheckpointError

if TYPE_CHECKING:
    from axpo.models.families.base import Family

PAGES = {"qwen3_vl": "axpo.models.families.qwen3_vl:Qwen3VL"}
"""By model_type, the page of each family."""


def refusal(kind: str | None) -> str | None:
    """Why a model of the model_type `kind` cannot be loaded; None if it can."""
    if kind in PAGES:
        return None
    return f"model_type {kind!r}; expected {' or '.join(map(repr, PAGES))}"


def family_of(config: Any) -> Family:
    """The family of a model with this config (transformers); raises `CheckpointError`."""
    if (why := refusal(config.model_type)) is not None:
        raise CheckpointError(why)
    return _page(PAGES[config.model_type])


@cache
def _page(name: str) -> Family:
    module, _, page = name.partition(":")
    return getattr(importlib.import_module(module), page)()
