"""Configuration records: frozen, strict, every field described."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medfedpure.core.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: immutable, an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @classmethod
    def parse(cls, value: Config | Mapping[str, Any] | None = None, **options: Any) -> Self:
        """Build a configuration from an instance, a mapping or keyword options.

        Raises:
            ConfigError: an unknown key or a value of the wrong type or range; the text lists each.
        """
        if isinstance(value, Config):
            if not isinstance(value, cls):
                raise ConfigError(f"expected a {cls.__qualname__}; got a {type(value).__qualname__}")
            value = value.model_dump()
        try:
            return cls.model_validate({**(value or {}), **options})
        except ValidationError as error:
            raise ConfigError(describe(error, cls)) from error


class Record(BaseModel):
    """Base of every result that is written to JSON as it stands: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def describe(error: ValidationError, cls: type[BaseModel]) -> str:
    """One readable line per problem of a pydantic validation error."""
    lines, unknown = [], False
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"]) or "(whole)"
        if problem["type"] == "extra_forbidden":
            text, unknown = "unknown key", unknown or len(problem["loc"]) == 1
        else:
            text = f"{problem['msg']}; got {_shown(problem['input'])}"
        lines.append(f"{where}: {text}")
    if unknown:
        lines.append(f"{cls.__qualname__} knows: {', '.join(cls.model_fields) or 'none'}")
    return f"invalid {cls.__qualname__}: " + "; ".join(lines)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # whole numbers of thousands of digits
        return f"a {type(value).__name__} of too many digits"
    return text if len(text) <= 200 else f"{text[:200]}..."


def parse_fraction(value: Any) -> Any:
    """The number that a text such as "8/255" says; what is no text as it is.

    Raises:
        ValueError: a text that says no number.
    """
    if isinstance(value, str):
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError('a number or a fraction such as "8/255" is wanted') from error
    return value


Eps = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0.0, le=1.0)]
"""A perturbation size in [0, 1] image units; the text "8/255" is accepted."""

Radius = Annotated[float, BeforeValidator(parse_fraction), Field(ge=0.0, allow_inf_nan=False)]
"""A perturbation size of images in [0, 1], by a norm: 1 is the most in linf, and l2 has room for more."""
