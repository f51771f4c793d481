"""What a tool is: a JSON schema and an asynchronous call with an honest outcome.

A `ModelError` is the model's mistake and becomes an error observation from which it can learn. A
`UserError` stops the run, so that whoever started it can repair the cause. Any other exception of a
tool is an infrastructure fault (`InfraError`) and never scored against the model.

A picture that a tool returns is a `View`: it remembers from where in which original it was cut, so
that a later call can go back to the original's pixels.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from axpo.config import LimitSettings, Section
from axpo.pictures import as_rgb

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class View:
    """A picture as the model sees it: the pixels `box` (left, top, right, bottom) of `original`.

    Both pictures are shown as `pictures.as_rgb` returns them. An original that its EXIF data turns
    is refused as a fault of the tool, because `box` would then count other pixels.
    """

    image: Image.Image
    original: Image.Image
    box: Box

    @classmethod
    def whole(cls, picture: Image.Image) -> View:
        """A whole picture, which was cut from no other; raises `PictureError` if it is unusable."""
        shown = as_rgb(picture)
        return cls(shown, shown, (0, 0, shown.width, shown.height))


@dataclass(frozen=True, slots=True)
class Observation:
    """What the model sees of a call's result: text, then pictures.

    `cached` says, for the metrics alone, that the tool already had the result.
    """

    text: str = ""
    views: tuple[View, ...] = ()
    cached: bool = False


@dataclass(frozen=True, slots=True)
class EarlierCall:
    """A successful call before the cut; `pictures` is the number of pictures that it could see."""

    arguments: dict[str, Any]
    pictures: int


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a call may look at: every picture of the trajectory so far, in order.

    `trajectory` is the id of the calling trajectory, unique among those that run. `earlier` holds,
    for `resume`, the tool's calls in the prefix from which the trajectory goes on.
    """

    views: tuple[View, ...] = ()
    trajectory: str = ""
    earlier: tuple[EarlierCall, ...] = ()


class Tool(ABC):
    """The base class of every tool; a subclass sets `name`, `spec` and `timeout` and answers calls.

    The other members have defaults, for tools that keep nothing between calls. A member of a
    subclass whose name only resembles one of these is refused, because it would never be called.
    """

    name: str
    """The name by which the model calls the tool."""
    spec: dict[str, Any]
    """The function in OpenAI's format: {"type": "function", "function": {...}}."""
    timeout: float
    """The deadline of one call in seconds; a later call is an infrastructure fault."""
    needs_eyes: bool = False
    """Whether calls are of no use to a model that takes no pictures; then it is refused."""
    limits: LimitSettings = LimitSettings()
    """The tool's defaults for the limits that a recipe may set."""
    Settings: ClassVar[type[Section] | None] = None
    """The settings of a tool that a recipe names by its class; the recipe gives them in
    `tools.own.<name>`, and the class is made with them."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in vars(cls):
            near = difflib.get_close_matches(name, _MEMBERS, n=1, cutoff=0.8)
            if near and name not in _MEMBERS:
                raise TypeError(
                    f"{cls.__name__}.{name}: a tool has {near[0]!r}; give a member of your own "
                    "another name"
                )

    def measure(self, size: Callable[[Image.Image], tuple[int, int]]) -> None:  # noqa: B027
        """It is called once, before the spec is read, for a model that writes places in a picture
        in its pixels: `size` tells the width and height at which the model sees a picture."""

    @abstractmethod
    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Answer a call; raises `ModelError` for a wrong one, `InfraError` if the tool fails."""

    async def start(self) -> None:  # noqa: B027
        """It is called before the first trajectory, and again after `close` or on another event
        loop. It may raise a `UserError` that names the remedy; this stops the run."""

    async def resume(self, context: ToolContext) -> None:  # noqa: B027
        """It is called before the first call of a trajectory that goes on from a cut.

        `context.earlier` holds the calls of this tool in the prefix, whose effects it restores.
        """

    async def end(self, trajectory: str) -> None:  # noqa: B027
        """It is called once when a trajectory is over, however it ended, even by cancellation, so
        that the tool can drop what it kept. The trajectory may never have called the tool."""

    async def close(self) -> None:  # noqa: B027
        """It is called once at the end of the run."""

    @property
    def figures(self) -> Mapping[str, float]:
        """Counts that only grow; they are shown beside those that the toolbox keeps."""
        return {}

    @property
    def stuck(self) -> int:
        """The number of calls that were given up and still run, as far as only the tool knows."""
        return 0


_MEMBERS = [name for name in (*Tool.__annotations__, *vars(Tool)) if not name.startswith("_")]
