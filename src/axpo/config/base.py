"""What every section of the settings is made of, and the errors that name a setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from axpo import plugins


class Section(BaseModel):
    """Base of all settings: unknown keys and numbers that are not finite are refused, values are
    frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def taken_away(value: Any) -> Any:
    """None for false: TOML has no null, with which a recipe could take away the section of one
    below it."""
    return None if value is False else value


class Part(Section):
    """A section that a recipe exchanges as a whole by its `name` (`axpo.plugins`): a class whose
    fields are its settings and whose methods are what it does."""

    kind: ClassVar[str]
    """The recipe's section."""
    name: str = ""
    """What is taken: a name of axpo's own, or "module:name" of one of yours."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        return named(plugins.name_of(cls))(values)


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def named(default: str) -> Callable[[Any], Any]:
    """A validator that gives a section without a `name` the name `default`."""

    def name(values: Any) -> Any:
        if not isinstance(values, dict):
            return values  # pyright: ignore[reportUnknownVariableType]
        given = cast("dict[str, Any]", values)
        return {"name": default} | given

    return name
