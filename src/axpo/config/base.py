"""What every section of the settings is made of, and the errors that name a setting."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from axpo.errors import UserError


class ConfigError(UserError):
    """A setting that is unknown, ineffective or out of range; the message names the key."""


class MissingError(ConfigError):
    """A setting that needs what is not on this machine; the message says how to get it."""


class Section(BaseModel):
    """Base of all settings: unknown keys and numbers that are not finite are refused, values are
    frozen."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
