"""The command's groups, put together."""

from typing import Annotated

import typer

from medfedpure import __version__
from medfedpure.cli import about, bench, check, evaluate, federate, federation, job, new
from medfedpure.cli.shown import Terminal

app = typer.Typer(
    name="medfedpure",
    help="Detect, purify, classify: defend medical image classifiers against evasion attacks.",
    no_args_is_help=True,
    rich_markup_mode=None,  # which would take [data] and [all] in a help text for styles
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        Terminal().say(f"medfedpure {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del version


app.command("demo")(job.demo)
app.command("run")(job.run)
app.command("federate")(federate.federate)
app.add_typer(federation.app, name="federation")
app.command("evaluate")(evaluate.evaluate)
app.command("plugins")(about.plugins)
app.command("info")(about.info)
app.command("new")(new.new)
app.command("check")(check.check)
app.command("bench")(bench.bench)
