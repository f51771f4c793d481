"""`image_search` finds where a picture of the trajectory is known from.

Name and argument are those of Qwen-Agent's tool; unlike there, an index past the last picture is an
error from which the model can learn. If nothing is known about a crop, the picture from which it
was cut is looked up (choice). Recipes that train leave this tool out by default, so that it is new
to the model in an evaluation.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, StrictInt

from axpo.search.base import shortened
from axpo.search.gallery import PictureSource
from axpo.tools.arguments import Arguments, chosen_view, function, parse_arguments
from axpo.tools.base import Observation, ToolContext
from axpo.tools.searching import SearchTool, numbered


class ImageArguments(Arguments):
    """The arguments of one call, checked without coercion."""

    img_idx: StrictInt = Field(description="an integer")


class ImageSearchTool(SearchTool[PictureSource]):
    """`image_search(img_idx)`: numbered titles, urls and captions of pictures that look the same.

    A caption is cut to `caption` characters.
    """

    name = "image_search"
    spec = function(
        name, "Find where an image is known from, with titles and captions of matching images.",
        "img_idx", "integer", "Which image, from 0, counting all images so far.",
    )  # fmt: skip
    kind = "picture"
    needs_eyes = True

    def __init__(self, pictures: PictureSource, results: int, caption: int) -> None:
        super().__init__(pictures)
        self._results, self._caption = results, caption

    async def _answer(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        view = chosen_view(context, parse_arguments(ImageArguments, arguments).img_idx)
        found = await self.source.find(view.image, self._results)
        if not found.items and view.image is not view.original:
            found = await self.source.find(view.original, self._results)
        lines = [(it.title, it.url, shortened(it.caption, self._caption)) for it in found.items]
        return Observation(numbered(lines), cached=found.cached)
