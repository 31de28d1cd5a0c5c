"""`medfedpure demo` and `medfedpure run`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from medfedpure.cli.shown import Terminal, echo_json

if TYPE_CHECKING:
    from medfedpure.job.config import RunConfig
    from medfedpure.job.records import RunResult

_Out = Annotated[Path, typer.Option("--out", help="Folder for report, configuration, results, picture and defences.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no phases, only the table.")]
_Json = Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")]

_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that the folder holds, at the end.")]
_Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:0; default: the configuration's.")]


def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Your own images, one sub-folder per class; default: phantoms.")
    ] = None,
    out: _Out = Path("medfedpure-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of everything; equal seeds give equal numbers.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside FedAvg and local training too; takes about half as long again.")
    ] = False,
    device: _Device = None,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Train, attack, defend and measure a whole federation in minutes, on phantoms or on your own images.

    What another demo left in the folder is replaced.
    """
    from medfedpure.job.presets import folder_demo, is_demo, phantom_demo

    config = phantom_demo(seed, compare=compare) if data is None else folder_demo(data, seed, compare=compare)
    _run(config, out, device, overwrite or is_demo(out), quiet, as_json)


def run(
    config: Annotated[Path, typer.Argument(help="A TOML file; a demo writes its own as config.toml.")],
    out: _Out,
    device: _Device = None,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Run the whole job from one validated file."""
    from medfedpure.job.config import RunConfig

    _run(RunConfig.from_toml(config), out, device, overwrite, quiet, as_json)


def _run(config: RunConfig, out: Path, device: str | None, overwrite: bool, quiet: bool, as_json: bool) -> None:
    from medfedpure.cli.bars import Bars
    from medfedpure.core.progress import listening
    from medfedpure.job.run import run_job
    from medfedpure.reporting.job.page import write_run_page
    from medfedpure.reporting.job.picture import save_gallery

    if device is not None:
        config = config.model_copy(update={"device": device})
    talk = Terminal(stderr=as_json, quiet=quiet)
    for line in () if quiet else _foreword(config, out):
        talk.print(line)

    def say(text: str) -> None:
        talk.print(">", style="cyan", end=" ")
        talk.print(text)

    with Bars(talk) as bars, listening(bars):
        job = run_job(config, out, say=say, overwrite=overwrite)
        save_gallery(job, out / "gallery.png")
        write_run_page(job.result, out)
    if as_json:
        echo_json(out / "results.json")
    else:
        _print_tables(job.result)
        Terminal().say(f"\nwritten to {out}: report.html, config.toml, results.json, gallery.png, defences/")


def _foreword(config: RunConfig, out: Path) -> list[str]:
    """What will happen, before anything heavy does."""
    return [
        f"{config.data.clients} hospitals train a classifier ({config.classifier.plugin}) and a purifier "
        f"({config.purifier.plugin}) together; no image leaves them.",
        f"Each calibrates its defence on images of its own, and is attacked by {config.attack.plugin} on others.",
        f"The result goes to {out / 'report.html'}, this run's configuration to {out / 'config.toml'}.",
    ]


def _print_tables(result: RunResult) -> None:
    from medfedpure.reporting.job.table import cells, conditions, strategy_cells, strategy_conditions

    console = Terminal()
    _print_table(console, cells(result), conditions(result))
    if len(result.strategies) > 1:
        _print_table(console, strategy_cells(result), strategy_conditions(result), words=2)


def _print_table(console: Terminal, rows: list[list[str]], notes: list[str], *, words: int = 1) -> None:
    table = Table(box=None, pad_edge=False)
    for place, title in enumerate(rows[0]):
        table.add_column(title, justify="left" if place < words else "right", style="bold" if title == "mean" else "")
    for row in rows[1:]:
        table.add_row(*row)
    console.print()
    console.print(table)
    console.print()
    for line in notes:
        console.print(line, style="dim")
