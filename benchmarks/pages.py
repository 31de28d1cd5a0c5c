"""Tables in the documentation that are drawn from what was measured, and stay as they were drawn."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = Path(__file__).parent / "results"


def redrawn(page: str, table: Callable[[str], str], mark: str = "table") -> str:
    """The page with `table(NAME)` between every `<!-- table: NAME -->` and the next `<!-- end -->`.

    Args:
        page: the text.
        table: draws one by its name.
        mark: another word than "table", where tables of two benchmarks stand on one page.
    """
    marks = re.compile(rf"(<!-- {mark}: (\w+) -->).*?<!-- end -->", re.S)
    return marks.sub(lambda found: f"{found[1]}\n\n{table(found[2])}\n\n<!-- end -->", page)


def write_tables(what: str | None, page: Path, draw: Callable[[str], str]) -> None:
    """The command of a module that draws: its page, or another one that is named, drawn anew."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--page", type=Path, default=page)
    given = parser.parse_args()
    given.page.write_text(draw(given.page.read_text(encoding="utf-8")), encoding="utf-8")
