"""`image_search`: where a picture of the trajectory is known from.

Name and argument are those of Qwen-Agent's tool; unlike it, an index past the last picture is an
error that a model can learn from. A crop that nothing is known of is looked up by the picture it
was cut from (choice). Recipes that train leave this tool out by default: it is the
unseen one of an evaluation.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt

from axpo.tools.arguments import parse_arguments, shorten
from axpo.tools.base import ModelError, Observation, ToolContext
from axpo.tools.search.base import cache_figures, shortened
from axpo.tools.search.gallery import Pictures
from axpo.tools.search.web import TIMEOUT, function, numbered


class ImageArguments(BaseModel):
    """Arguments of one call, checked without coercion."""

    model_config = ConfigDict(extra="forbid")

    img_idx: StrictInt = Field(description="an integer")


class ImageSearchTool:
    """`image_search(img_idx)`: numbered titles, urls and captions of pictures that look the same.

    A caption is cut to `caption` characters.
    """

    name = "image_search"
    spec = function(
        name, "Find where an image is known from, with titles and captions of matching images.",
        "img_idx", "integer", "Which image, from 0, counting all images so far.",
    )  # fmt: skip
    timeout = TIMEOUT

    def __init__(self, pictures: Pictures, results: int, caption: int) -> None:
        self.pictures = pictures
        self._results = results
        self._caption = caption

    @property
    def figures(self) -> dict[str, float]:
        """What the cache of answers counts of this tool's calls."""
        return cache_figures(self.pictures, "picture")

    async def start(self) -> None:
        await self.pictures.start()

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        index = parse_arguments(ImageArguments, arguments).img_idx
        if not context.views:
            raise ModelError(f"img_idx is {shorten(index)}: there is no image")
        if not 0 <= index < len(context.views):
            last = len(context.views) - 1
            raise ModelError(f"img_idx is {shorten(index)}: expected 0 to {last}")
        view = context.views[index]
        found = await self.pictures.find(view.image, self._results)
        if not found.items and view.image is not view.original:
            found = await self.pictures.find(view.original, self._results)
        lines = [(it.title, it.url, shortened(it.caption, self._caption)) for it in found.items]
        return Observation(numbered(lines), cached=found.cached)

    async def close(self) -> None:
        await self.pictures.close()
