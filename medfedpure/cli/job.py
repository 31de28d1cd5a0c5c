"""`medfedpure demo` and `medfedpure run`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from medfedpure.cli.options import Settings, Threads
from medfedpure.cli.shown import Terminal, echo_json
from medfedpure.cli.threads import use_threads
from medfedpure.core.errors import ConfigError, did_you_mean
from medfedpure.job.enough import check_folder

if TYPE_CHECKING:
    from medfedpure.job.config import RunConfig
    from medfedpure.job.records import RunResult

_Out = Annotated[Path, typer.Option("--out", help="Folder for report, configuration, results, picture and defences.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars and no phases, only the table.")]
_Json = Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")]

_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a run that the folder holds, at the end.")]
_Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:0; default: the configuration's.")]

RECIPES = ("paper", "robust", "fast")
"""Written out, for what knows them imports torch; a test compares."""


def known_recipe(name: str | None) -> str | None:
    """The name, refused before anything heavy is imported. Raises ConfigError where no recipe has it."""
    if name is None or name in RECIPES:
        return name
    raise ConfigError(f"no recipe is named {name!r}.{did_you_mean(name, RECIPES)} The recipes are {', '.join(RECIPES)}")


_Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        callback=known_recipe,
        help="paper: what is flagged is purified. robust: the best of three policies, each attacked by who knows it. "
        "fast: no purifier, what is flagged is refused. Default: the configuration's, paper.",
    ),
]

_TAKES = {
    (False, False): "About 4 minutes on an idle core",
    (False, True): "About 6 minutes on an idle core",
    (True, False): "About a minute on an idle core",
    (True, True): "About two minutes on an idle core",
}
"""By quick and compare."""


def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Your own images, one sub-folder per class; default: phantoms.")
    ] = None,
    out: _Out = Path("medfedpure-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of everything; equal seeds give equal numbers.")] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Beside FedAvg and local training too; takes about half as long again.")
    ] = False,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Less is trained, so figures are lower: a minute on phantoms; with --data longer, told soon.",
        ),
    ] = False,
    recipe: _Recipe = None,
    settings: Settings = None,
    threads: Threads = None,
    device: _Device = None,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Train, attack, defend and measure a whole federation in minutes, on phantoms or on your own images.

    What another demo left in the folder is replaced; any other run only with --overwrite.
    """
    if data is not None:
        check_folder(data)
    from medfedpure.job.presets import demo_config, is_demo

    config = demo_config(data, seed, compare=compare, quick=quick, recipe=recipe).with_settings(settings or [])
    _check_recipe(recipe, config)
    takes = "How long is told soon" if data is not None or settings or recipe else _TAKES[quick, compare]
    _run(_with(config, threads, device), out, overwrite or is_demo(out), quiet, as_json, takes)


def run(
    config: Annotated[Path, typer.Argument(help="A TOML file; a demo writes its own as config.toml.")],
    out: _Out,
    recipe: _Recipe = None,
    settings: Settings = None,
    threads: Threads = None,
    device: _Device = None,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
    as_json: _Json = False,
) -> None:
    """Run the whole job from one validated file."""
    from medfedpure.job.config import RunConfig

    asked = [] if recipe is None else [f"defence.recipe={recipe}"]
    chosen = RunConfig.from_toml(config).with_settings([*asked, *(settings or [])])
    _check_recipe(recipe, chosen)
    _run(_with(chosen, threads, device), out, overwrite, quiet, as_json)


def _check_recipe(asked: str | None, config: RunConfig) -> None:
    """Raise ConfigError where --recipe and --set name two."""
    if asked is not None and config.defence.recipe != asked:
        raise ConfigError(f"--recipe says {asked!r}, and --set {config.defence.recipe!r}: leave one of them out")


def _with(config: RunConfig, threads: int | None, device: str | None) -> RunConfig:
    """The configuration with what the options say instead."""
    asked = {"threads": threads, "device": device}
    return config.model_copy(update={name: value for name, value in asked.items() if value is not None})


def _run(
    config: RunConfig, out: Path, overwrite: bool, quiet: bool, as_json: bool, takes: str = "How long is told soon"
) -> None:
    from medfedpure.cli.bars import Bars
    from medfedpure.core.progress import listening
    from medfedpure.job.run import run_job
    from medfedpure.reporting.job.page import write_run_page
    from medfedpure.reporting.job.picture import save_gallery

    if config.data.plugin == "image_folder" and "root" in config.data.config:
        check_folder(Path(config.data.config["root"]))
    use_threads(config.threads)
    talk = Terminal(stderr=as_json, quiet=quiet)
    for line in () if quiet else _foreword(config, out, takes):
        talk.print(line)

    def say(text: str) -> None:
        talk.print(">", style="cyan", end=" ")
        talk.print(text)

    try:
        with Bars(talk) as bars, listening(bars):
            job = run_job(config, out, say=say, overwrite=overwrite)
            save_gallery(job, out / "gallery.png")
            write_run_page(job.result, out)
    except KeyboardInterrupt:
        Terminal(stderr=True).say(f"\nstopped: nothing of this run is kept in {out}; the same command begins anew")
        raise typer.Exit(130) from None
    if as_json:
        echo_json(out / "results.json")
    else:
        _print_tables(job.result)
        Terminal().say(f"\nwritten to {out}: report.html, config.toml, results.json, gallery.png, defences/")


def _foreword(config: RunConfig, out: Path, takes: str) -> list[str]:
    """What will happen and how long it takes, before anything heavy does."""
    trained = [config.classifier.plugin] + [config.purifier.plugin] * (config.defence.recipe != "fast")
    return [
        f"{config.data.clients} hospitals train {' and '.join(trained)} together; no image leaves them.",
        f"Each calibrates on images of its own; {config.attack.plugin} attacks others of its images.",
        f"{takes}; the result goes to {out / 'report.html'}.",
    ]


def _print_tables(result: RunResult) -> None:
    from medfedpure.reporting.job.table import (
        cells,
        choice_cells,
        choice_conditions,
        conditions,
        strategy_cells,
        strategy_conditions,
    )
    from medfedpure.reporting.job.words import caveats, verdict

    console = Terminal()
    _print_table(console, cells(result), conditions(result))
    if len(result.strategies) > 1:
        _print_table(console, strategy_cells(result), strategy_conditions(result), words=2)
    if result.choice is not None:
        _print_table(console, choice_cells(result), choice_conditions(result))
    console.print()
    console.print(verdict(result), style="bold")
    for text in caveats(result)[1:]:
        console.print(text)


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
