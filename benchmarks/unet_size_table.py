"""The tables of `benchmarks.unet_size`: `python -m benchmarks.unet_size_table` writes them into their page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.pages import redrawn, write_tables

RESULTS = pages.RESULTS / "unet_size"
PAGE = pages.DOCS / "how-to" / "choose-a-purifier.md"


def table(name: str, folder: Path = RESULTS) -> str:
    """One row a network, the cheapest first; the conditions below."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / name).glob("*.json"))]
    if not found:
        return "Nothing is measured yet."
    found.sort(key=lambda one: one["million_macs"])
    lines = [
        "| unshuffle | widths | million MACs an evaluation | clean, all purified | restored, all purified |",
        "|---|---|---|---|---|",
    ]
    for one in found:
        network = one["network"]
        widths = ", ".join(map(str, network["widths"])) + (" and attention" if network["attention"] else "")
        figures = [_figure(one["clean"]), _figure(one["restored"])]
        lines.append(f"| {network['unshuffle']} | {widths} | {one['million_macs']:.0f} | {' | '.join(figures)} |")
    first = found[0]
    bare, attacked = first["bare_clean"], first["bare_attacked"]
    steps = sorted({f"{one['steps']} steps of {one['batch_size']} images" for one in found})
    return "\n".join(
        [
            *lines,
            "",
            f"Balanced accuracy in percent over {bare['images']} images of {bare['groups']} groups that nothing was "
            "trained on, mean of three draws of the noise, in brackets the 95 % interval over groups. Not purified: "
            f"{_figure(bare)} clean, {_figure(attacked)} attacked. Networks: {' and '.join(steps)}. Attack: "
            f"{first['attack']}; {first['gradient']}.",
        ]
    )


def _figure(counted: Mapping[str, Any]) -> str:
    return f"{100 * counted['balanced']:.1f} ({100 * counted['low']:.1f} to {100 * counted['high']:.1f})"


def page_with_tables(page: str, folder: Path = RESULTS) -> str:
    """The page with what was measured of each data set after its mark."""
    return redrawn(page, lambda name: table(name, folder), "unet")


if __name__ == "__main__":
    write_tables(__doc__, PAGE, page_with_tables)
