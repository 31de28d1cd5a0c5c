"""The tables of `benchmarks.weather`: `python -m benchmarks.weather_table` writes them into their page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.pages import redrawn, write_tables

RESULTS = pages.RESULTS / "weather"
PAGE = pages.DOCS / "explanation" / "weather.md"
KINDS = {"input": "bad input", "fault": "fault"}


def read(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """What was found, by area."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def summary(found: dict[str, dict[str, Any]]) -> str:
    """How many of each kind, and how many held."""
    lines = [
        "| area | bad inputs | faults | held | longest | most memory | all of it |",
        "|---|---|---|---|---|---|---|",
    ]
    for area, document in found.items():
        cases = document["cases"]
        counts = [sum(case["kind"] == kind for case in cases) for kind in KINDS]
        held = sum(not case["fault"] for case in cases)
        longest, memory = (max(case[key] for case in cases) for key in ("seconds", "grown_mib"))
        lines.append(
            f"| {area} | {counts[0]} | {counts[1]} | {held} of {len(cases)} | {longest:.0f} s | {memory} MiB | "
            f"{document['seconds']:.0f} s |"
        )
    everything = [case for document in found.values() for case in document["cases"]]
    totals = [sum(case["kind"] == kind for case in everything) for kind in KINDS]
    held = sum(not case["fault"] for case in everything)
    seconds = sum(document["seconds"] for document in found.values())
    lines.append(f"| all | {totals[0]} | {totals[1]} | {held} of {len(everything)} | | | {seconds:.0f} s |")
    return "\n".join(lines)


def table(document: dict[str, Any]) -> str:
    """Each case of an area."""
    lines = ["| what was done | kind | what happened | what was as before | verdict |", "|---|---|---|---|---|"]
    for case in document["cases"]:
        verdict = f"**{case['fault']}**" if case["fault"] else "held"
        happened = f"`{_plain(case['happened'])}`"
        lines.append(
            f"| {_plain(case['name'])} | {KINDS[case['kind']]} | {happened} | {_plain(case['kept'])} | {verdict} |"
        )
    return "\n".join(lines)


def _plain(text: str, longest: int = 160) -> str:
    """A text that breaks neither a table nor a code span, cut off where it is long."""
    short = text if len(text) <= longest else f"{text[:longest]} ..."
    return short.replace("|", "/").replace("`", "'")


def page_with_tables(page: str, folder: Path = RESULTS) -> str:
    """The page with what was found after each mark."""
    found = read(folder)
    return redrawn(page, lambda name: summary(found) if name == "summary" else table(found[name]))


if __name__ == "__main__":
    write_tables(__doc__, PAGE, page_with_tables)
