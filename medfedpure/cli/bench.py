"""`medfedpure bench`: a plugin beside the built-ins of its kind, in one small table."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from medfedpure.cli.options import Threads, json_object, number
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.threads import use_threads
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
    data: Annotated[
        str | None,
        typer.Option("--data", help="Measure on these: image folder, MedMNIST .npz or data set plugin; else phantoms."),
    ] = None,
    data_config: Annotated[str, typer.Option("--data-config", help="JSON options of the data set plugin.")] = "{}",
    images: Annotated[
        int, typer.Option("--images", min=120, help="How many phantoms are drawn, or taken of --data at most.")
    ] = 480,
    norm: Annotated[str, typer.Option("--norm", help="linf or l2: of every attack.")] = "linf",
    eps: Annotated[
        str | None, typer.Option("--eps", help="Of every attack, e.g. 0.015; default: 8/255 in linf, none in l2.")
    ] = None,
    threads: Threads = None,
    seed: Annotated[int, typer.Option("--seed", help="Of everything; equal seeds and threads give equal figures.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
) -> None:
    """Compare a plugin with the built-ins of its kind on drawn images, or yours: a quick look, in about a minute."""
    from medfedpure.bench.run import run_bench
    from medfedpure.bench.stage import budget_of, images_of
    from medfedpure.cli.bars import Bars
    from medfedpure.core.progress import listening

    record, options = find(name, kind), read_config(config)
    use_threads(threads)
    budget = budget_of(norm, None if eps is None else number(eps))
    own = None if data is None else images_of(data, json_object(data_config, "--data-config"), most=images, seed=seed)
    talk = Terminal(stderr=True, quiet=quiet)
    with Bars(talk) as bars, listening(bars):
        found = run_bench(
            record,
            options,
            seed=seed,
            images=images,
            data=own,
            budget=budget,
            beside=beside or [],
            say=lambda text: talk.print(f"> {text}"),
        )
    if as_json:
        say_json(asdict(found))
    else:
        _print(found, record.name)
    if found.rows[0].problem:
        raise typer.Exit(1)


def _print(found: Bench, mine: str) -> None:
    console = Terminal()
    shown = [row for row in found.rows if not row.problem]
    rows = [[found.kind, *found.columns]]
    rows += [[row.name, *(_text(row.figures[c]) for c in found.columns)] for row in shown]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    threats = [None, *(row.figures.get("threat") for row in shown)]
    for place, texts in enumerate(rows):  # never cut short, as a rich table would be in a narrow terminal
        if place > 1 and threats[place] != threats[place - 1]:
            console.print()
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
