"""The rehearsal's tool: a call of few tokens that answers with a picture."""

from __future__ import annotations

from PIL import Image

from axpo.errors import ModelError
from axpo.tools import tool
from axpo.tools.base import ToolContext


@tool
def look(context: ToolContext, part: int) -> Image.Image:
    """Show a quarter of the image.

    Args:
        part: Which one, from 0 to 3.
    """
    if not 0 <= part <= 3:
        raise ModelError(f"part is {part}: expected 0 to 3")
    image = context.views[0].image
    width, height = image.width // 2, image.height // 2
    left, top = part % 2 * width, part // 2 * height
    return image.crop((left, top, left + width, top + height))
