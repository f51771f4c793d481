"""A typed function with a docstring becomes a tool: `@tool`.

This module turns a signature into a JSON schema and a function's result into an observation. What
the model writes is checked with pydantic's strict JSON rules: "3" is not a number, 3.5 is not an
integer, and a name that the function does not have is refused.

A plain function runs in a thread of its own, so it may block; an `async` one runs on the event loop
and must not. A thread cannot be stopped: if it goes on after its call is over, it is counted in
`stuck` until it ends, and dies with the process.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Annotated, Any, overload

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from axpo.config import LimitSettings
from axpo.errors import ToolDefinitionError
from axpo.threads import Threads
from axpo.tools.arguments import parse_json_arguments
from axpo.tools.base import Observation, Tool, ToolContext, View
from axpo.tools.docstrings import parse_docstring
from axpo.tools.results import refused_result

TIMEOUT = 10.0
"""The default deadline of one call of a function, in seconds."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class FunctionTool(Tool):
    """A function as a tool; the function itself stays callable as `function`."""

    def __init__(
        self, function: Callable[..., Any], name: str, timeout: float, limits: LimitSettings
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ToolDefinitionError(f"{name!r}: expected letters, digits, _ and - as its name")
        description, parameters = parse_docstring(function.__doc__ or "")
        if not description:
            raise ToolDefinitionError(f"{name} needs a docstring: it tells the model what it does")
        self.name, self.timeout, self.limits = name, timeout, limits
        self.function = function
        self.model, self._context = _arguments_model(function, name, parameters)
        schema = _plain(self.model.model_json_schema())
        schema.pop("additionalProperties")
        self.spec: dict[str, Any] = {
            "type": "function",
            "function": {"name": name, "description": description, "parameters": schema},
        }
        self._threads = Threads(f"tool {name}")

    @property
    def stuck(self) -> int:
        """The number of threads that still run although their call is over."""
        return self._threads.stuck

    async def __call__(self, arguments: dict[str, Any], context: ToolContext) -> Observation:
        call = parse_json_arguments(self.model, arguments)
        values = {name: getattr(call, name) for name in type(call).model_fields}
        if self._context is not None:
            values[self._context] = context
        try:
            if inspect.iscoroutinefunction(self.function):
                return as_observation(await self.function(**values))
            return await self._threads.run(lambda: as_observation(self.function(**values)))
        except SystemExit as error:  # It would end the whole run.
            raise RuntimeError(f"{self.name} called exit") from error


@overload
def tool(function: Callable[..., Any], /) -> FunctionTool: ...
@overload
def tool(
    *, name: str | None = None, timeout: float = TIMEOUT, limits: LimitSettings | None = None
) -> Callable[[Callable[..., Any]], FunctionTool]: ...
def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    timeout: float = TIMEOUT,
    limits: LimitSettings | None = None,
) -> FunctionTool | Callable[[Callable[..., Any]], FunctionTool]:
    """Make a function a tool: `@tool`, or `@tool(timeout=30)`.

    `name` is the function's own by default, `timeout` the deadline of one call in seconds, and
    `limits` the tool's defaults for the limits that a recipe may set. Raises `ToolDefinitionError`.
    """

    def make(function: Callable[..., Any]) -> FunctionTool:
        return FunctionTool(function, name or function.__name__, timeout, limits or LimitSettings())

    return make if function is None else make(function)


def as_observation(value: Any) -> Observation:
    """A function's result (text, a picture, a list of both, or an observation) as observation."""
    if isinstance(value, Observation):
        return value
    parts: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    texts: list[str] = []
    views: list[View] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Image.Image):
            part.load()  # A file that cannot be read then fails in this call.
            views.append(View.whole(part))
        elif isinstance(part, View):
            views.append(part)
        else:
            raise TypeError(
                f"returned {type(part).__name__}: expected str, PIL.Image, View, a list of them, "
                "or Observation"
            )
    return Observation("\n".join(texts), tuple(views))


def _arguments_model(
    function: Callable[..., Any], name: str, documented: dict[str, str]
) -> tuple[type[BaseModel], str | None]:
    """The model of the arguments, and the name of the parameter that takes the `ToolContext`.

    Raises `ToolDefinitionError`, also for a return type that can never be a result.
    """
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except NameError as error:
        raise ToolDefinitionError(f"{name}: {error} in an annotation") from error
    if "return" in hints and (refused := refused_result(hints["return"])):
        raise ToolDefinitionError(f"{name} {refused}")
    fields: dict[str, Any] = {}
    context: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        where = f"{name}: parameter {parameter.name!r}"
        if parameter.kind not in _KINDS:
            raise ToolDefinitionError(f"{where}: expected one that can be given by name")
        if parameter.name not in hints:
            raise ToolDefinitionError(f"{where} needs a type")
        hint = hints[parameter.name]
        if hint is ToolContext:
            context = parameter.name
            continue
        if (text := documented.pop(parameter.name, None)) and not _described(hint):
            hint = Annotated[hint, Field(description=text)]
        required = parameter.default is inspect.Parameter.empty
        fields[parameter.name] = (hint, ... if required else parameter.default)
    if unknown := sorted(set(documented) - {context}):
        raise ToolDefinitionError(f"{name}: the docstring's {unknown[0]!r} is no parameter")
    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    try:
        model = create_model(name, __config__=config, **fields)
        model.model_json_schema()
    except (PydanticUserError, NameError) as error:
        raise ToolDefinitionError(f"{name}: {error}") from error
    return model, context


def _described(hint: Any) -> bool:
    return any(isinstance(part, FieldInfo) and part.description for part in typing.get_args(hint))


def _plain(schema: Any, names: bool = False) -> Any:
    """`schema` without pydantic's titles; with `names` its keys are the names of fields."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: part if key in ("default", "const", "enum", "examples") and not names
        else _plain(part, names=key in ("properties", "$defs") and not names)
        for key, part in schema.items()
        if names or key != "title"
    }  # fmt: skip
