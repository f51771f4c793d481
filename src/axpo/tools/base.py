"""What a tool is: a JSON schema and an asynchronous call with an honest outcome.

A `ModelError` is the caller's mistake and becomes an error observation that a model can learn
from; anything else that escapes a tool is ours (`InfraError`) and never scored against it. A
`UserError` is for whoever started the run to put right, and stops it.
A picture that a tool hands out is a `View`: it remembers where in which original it was cut, so
that a later call can go back to the original's pixels.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from PIL import Image

from axpo.config import LimitSettings, Section
from axpo.pictures import as_rgb

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class View:
    """A picture as the model sees it: `box` (left, top, right, bottom) pixels of `original`.

    Both are shown as `pictures.as_rgb` gives them; an original that its EXIF data turns is
    refused as a fault of the tool, as `box` would then count other pixels.
    """

    image: Image.Image
    original: Image.Image
    box: Box

    @classmethod
    def whole(cls, picture: Image.Image) -> View:
        """A picture that was cut from nothing; raises `PictureError` for one that is none."""
        shown = as_rgb(picture)
        return cls(shown, shown, (0, 0, shown.width, shown.height))


@dataclass(frozen=True, slots=True)
class Observation:
    """What the model sees of a call's result: text, then pictures.

    `cached` only counts: the tool had the result already.
    """

    text: str = ""
    views: tuple[View, ...] = ()
    cached: bool = False


@dataclass(frozen=True, slots=True)
class EarlierCall:
    """A call that went well before the cut; `pictures` is how many it could see."""

    arguments: dict[str, Any]
    pictures: int


@dataclass(frozen=True, slots=True)
class ToolContext:
    """What a call may look at: every picture of the trajectory so far, in order.

    `trajectory` is the id of the trajectory that calls, unique among those that run. `earlier`
    are the tool's calls in the prefix that the trajectory was grown from, for `resume`.
    """

    views: tuple[View, ...] = ()
    trajectory: str = ""
    earlier: tuple[EarlierCall, ...] = ()


class Tool(ABC):
    """Base class of every tool: sets `name`, `spec` and `timeout`, and answers calls.

    The other members have defaults, for tools that keep nothing between calls. A member of a
    subclass whose name only resembles one of these is refused, as it would never be called.
    """

    name: str
    """What the model calls it."""
    spec: dict[str, Any]
    """The function in OpenAI's format: {"type": "function", "function": {...}}."""
    timeout: float
    """Deadline of one call in seconds; a call past it is our fault."""
    limits: LimitSettings = LimitSettings()
    """The tool's defaults for what a recipe may set."""
    Settings: ClassVar[type[Section] | None] = None
    """What a recipe may set of a class that it names in `rollout.tools`, in `tools.own.<name>`; the
    class is made with one."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for name in vars(cls):
            near = difflib.get_close_matches(name, _MEMBERS, n=1, cutoff=0.8)
            if near and name not in _MEMBERS:
                raise TypeError(
                    f"{cls.__name__}.{name}: a tool has {near[0]!r}; give a member of your own "
                    "another name"
                )

    @abstractmethod
    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises `ModelError` for a wrong call and `InfraError` for a fault of ours."""

    async def start(self) -> None:  # noqa: B027
        """Called once before the first trajectory, and again after `close` or on another event
        loop. A `UserError` that names the remedy stops the run."""

    async def resume(self, context: ToolContext) -> None:  # noqa: B027
        """Called before the first call of a trajectory that goes on from a cut.

        `context.earlier` holds the calls of this tool that the prefix made: bring back what they
        left.
        """

    async def end(self, trajectory: str) -> None:  # noqa: B027
        """Called once when a trajectory is over, however it ended, cancellation included: what is
        kept for it can go. Trajectories that never called the tool are told too."""

    async def close(self) -> None:  # noqa: B027
        """Called once at the end of the run."""

    @property
    def figures(self) -> Mapping[str, float]:
        """Counts that only grow, shown among those that the toolbox keeps of the tool."""
        return {}

    @property
    def stuck(self) -> int:
        """How many calls were given up and still run, as far as the tool alone can know."""
        return 0


_MEMBERS = [name for name in (*Tool.__annotations__, *vars(Tool)) if not name.startswith("_")]
