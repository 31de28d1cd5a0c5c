"""Options that several commands share, and texts of options that they read alike."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Annotated, Any

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="key=value, such as classifier.training.steps=50, instead of the configuration's; again for more. "
        "The keys stand in the config.toml of a run.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads to compute with; another number may round differently."),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        help="Bits that pictures of 16 really use, such as 12; default: as the defence's images, else all 16.",
    ),
]

OwnModule = Annotated[
    str | None,
    typer.Option(
        "--classifier",
        help="package.module:function that builds your own model, found from the current folder, for a defence "
        "around one; its weights become those that were saved with the defence.",
    ),
]


def number(text: str) -> float:
    """0.015 or 8/255.

    Raises:
        BadParameter: no such number.
    """
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise typer.BadParameter(f"a number such as 0.015 or 8/255 is wanted; got {text!r}") from error


def json_object(text: str, option: str) -> dict[str, Any]:
    """The object that an option holds as JSON.

    Raises:
        BadParameter: no JSON, or no object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{option} wants a JSON object; got {text!r}: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter(f"{option} wants a JSON object; got {text!r}")
    return found
