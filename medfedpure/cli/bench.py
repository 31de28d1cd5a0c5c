"""`medfedpure bench`: a plugin beside the built-ins of its kind, in one small table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from medfedpure.cli.shown import Terminal
from medfedpure.cli.which import ConfigFile, Kind, Name, find, read_config

if TYPE_CHECKING:
    from medfedpure.bench.stage import Bench


def bench(
    name: Name,
    kind: Kind = None,
    config: ConfigFile = None,
    beside: Annotated[
        list[str] | None, typer.Option("--beside", help="Compare with this one only; may be repeated.")
    ] = None,
    images: Annotated[int, typer.Option("--images", min=120, help="How many phantoms are drawn.")] = 480,
    seed: Annotated[int, typer.Option("--seed", help="Of everything; equal seeds give equal figures.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Compare a plugin with the built-ins of its kind on drawn images: a quick look, in about a minute."""
    from medfedpure.bench.run import run_bench
    from medfedpure.cli.bars import Bars
    from medfedpure.core.progress import listening

    record, options = find(name, kind), read_config(config)
    talk = Terminal(stderr=True, quiet=quiet)
    with Bars(talk) as bars, listening(bars):
        found = run_bench(
            record,
            options,
            seed=seed,
            images=images,
            beside=beside or [],
            say=lambda text: talk.print(f"> {text}"),
        )
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        _print(found, record.name)
    if found.rows[0].problem:
        raise typer.Exit(1)


def _print(found: Bench, mine: str) -> None:
    console = Terminal()
    rows = [[found.kind, *found.columns]]
    rows += [[row.name, *(_text(row.figures[c]) for c in found.columns)] for row in found.rows if not row.problem]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for texts in rows:  # never cut short, as a rich table would be in a narrow terminal
        cells = [texts[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(texts[1:], widths[1:], strict=True))]
        console.say("  ".join(cells), "bold" if texts[0] == mine else "")
    console.print()
    for row in found.rows:
        if row.problem:
            console.say(f"without figures: {row.name}: {row.problem}")
    for line in found.conditions:
        console.say(f"- {line}", "dim")


def _text(value: float | int | str) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)
