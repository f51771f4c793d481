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

PAGES = {
    "qwen3_vl": "axpo.models.families.qwen3_vl:Qwen3VL",
    "llama": "axpo.models.families.llama:Llama",
    "qwen3": "axpo.models.families.qwen3:Qwen3",
    "qwen2": "axpo.models.families.qwen2:Qwen2",
    "qwen2_5_vl": "axpo.models.families.qwen2_5_vl:Qwen25VL",
}
"""By model_type, the page of each family."""

_LINEAR = "its linear attention keeps one state per path, which a tree's branches cannot share"
REFUSED = {
    "qwen3_5": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_5_moe": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen3_vl_moe": "its experts are chosen per token by a router that no page here trains",
    "smolvlm": "it shows a picture as many tiles, which no page lays out for engine and trainer",
    "qwen2_vl": "no page has been written for it; Qwen2.5-VL and Qwen3-VL are its successors",
}
"""Why models of these model_types, which users ask for, are not among the families."""


def refusal(kind: str | None) -> str | None:
    """Why a model of the model_type `kind` cannot be loaded; None if it can."""
    if kind in PAGES:
        return None
    if kind in REFUSED:
        return f"model_type {kind!r}: {REFUSED[kind]}; expected {' or '.join(map(repr, PAGES))}"
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
