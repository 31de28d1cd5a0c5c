"""What the command shows: texts that are not ours are no markup, and steer no terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.text import Text

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but for tab and line break, marks that turn the direction of writing, and halves of characters."""


def shown(text: object) -> str:
    r"""The text with every character that steers a terminal spelled out.

    >>> shown("scan\x1b[2J.png")
    'scan\\x1b[2J.png'
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


class Terminal(Console):
    """Where all output of the command goes, unless it is JSON: every text is `shown`, and none is read as markup.

    Args:
        stderr: for what is said while results go to stdout.
        quiet: show nothing.
    """

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        super().__init__(stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The one way on which rich makes text of a str, also of those in tables."""
        return super().render_str(shown(text), **options)

    def say(self, text: str, style: str = "") -> None:
        """A line that is never broken or cut short, as rich would in a narrow terminal."""
        self.print(text, style=style, soft_wrap=True)


_json_goes_to: ContextVar[TextIO | None] = ContextVar("medfedpure_json", default=None)


@contextmanager
def json_alone(asked: bool) -> Iterator[None]:
    """Where JSON was asked for, what plugins and modules of others print inside the block goes to stderr."""
    if not asked:
        yield
        return
    token = _json_goes_to.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _json_goes_to.reset(token)


def say_json(document: object, *, indent: int = 2) -> None:
    """Print JSON in ASCII, which no text in it can leave."""
    typer.echo(json.dumps(document, indent=indent), file=_json_goes_to.get())


def echo_json(path: Path) -> None:
    """Print a JSON file."""
    from medfedpure.core.storage import read_json

    say_json(read_json(path), indent=1)
