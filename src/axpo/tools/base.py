"""What a tool is: a JSON schema and an asynchronous call with an honest outcome.

A `ModelError` is the caller's mistake and becomes an error observation that a model can learn
from; anything else that escapes a tool is ours (`InfraError`) and never scored against it. A
`UserError` is for whoever started the run to put right, and stops it.
A picture that a tool hands out is a `View`: it remembers where in which original it was cut, so
that a later call can go back to the original's pixels.

A tool that keeps something between calls may also have, all optional:

- `async start()`: once, before the first trajectory (again after `close`, and on another event
  loop); a `UserError` that names the remedy stops the run;
- `async resume(context)`: before the first call of a trajectory that goes on from a cut, where
  `context.earlier` holds the calls of this tool that its prefix made: bring back what they left;
- `async end(trajectory)`: that trajectory is over, however it ended, cancellation included, and
  what is kept for it can go; awaited once a trajectory, also where it never called the tool;
- `async close()`: once, at the end of the run;
- `limits`, a `LimitSettings` with its own defaults, which a recipe overrides field by field;
- `figures`, a mapping of counts that only grow, shown among the toolbox's own of the tool;
- `stuck`, how many of its calls were given up and still run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from axpo.pictures import as_rgb

Box = tuple[int, int, int, int]


class ModelError(Exception):
    """The call itself is wrong; the message is shown to the model and names the field."""


class InfraError(Exception):
    """The tool failed through no fault of the caller."""


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


class Tool(Protocol):
    """`spec` is the function in OpenAI's format: {"type": "function", "function": {...}}.

    `timeout` is the deadline of one call in seconds; a call past it is our fault.
    """

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> dict[str, Any]: ...

    @property
    def timeout(self) -> float: ...

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        """Raises `ModelError` for a wrong call and `InfraError` for a fault of ours."""
        ...
