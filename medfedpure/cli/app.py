"""The command's groups, put together."""

import logging
from typing import Annotated

import click
import typer
from typer.core import TyperCommand, TyperGroup

from medfedpure import __version__
from medfedpure.cli import (
    about,
    bench,
    check,
    clean_cache,
    evaluate,
    export,
    federate,
    federation,
    fit,
    job,
    new,
    predict,
    serve,
)
from medfedpure.cli.shown import Terminal, shown


class _PlainGroup(TyperGroup):
    def get_help(self, ctx: click.Context) -> str:
        return unescaped(super().get_help(ctx))


class _PlainCommand(TyperCommand):
    def get_help(self, ctx: click.Context) -> str:
        return unescaped(super().get_help(ctx))


def unescaped(text: str) -> str:
    """A help text without the backslashes that typer sets before brackets for rich, which does not draw it here."""
    return text.replace("\\[", "[")


app = typer.Typer(
    name="medfedpure",
    cls=_PlainGroup,
    help="Detect, purify, classify: defend medical image classifiers against evasion attacks.",
    no_args_is_help=True,
    rich_markup_mode=None,  # which would take [data] and [all] in a help text for styles
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        Terminal().say(f"medfedpure {__version__}")
        raise typer.Exit


class _Shown(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def _speak(asked: bool) -> None:
    if asked:
        handler = logging.StreamHandler()
        handler.setFormatter(_Shown("%(asctime)s %(name)s: %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True)
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show the log, and of an error where it arose.", callback=_speak)
    ] = False,
) -> None:
    del version, verbose


app.command("demo")(job.demo)
app.command("run")(job.run)
app.command("federate")(federate.federate)
app.add_typer(federation.app, name="federation")
app.command("evaluate")(evaluate.evaluate)
app.command("fit")(fit.fit)
app.command("calibrate")(fit.calibrate)
app.command("clean-cache")(clean_cache.clean_cache)
app.command("predict")(predict.predict)
app.command("pseudonyms")(predict.pseudonyms)
app.command("serve")(serve.serve)
app.add_typer(serve.audit, name="audit")
app.command("export")(export.export)
app.command("plugins")(about.plugins)
app.command("info")(about.info)
app.command("new")(new.new)
app.command("check")(check.check)
app.command("bench")(bench.bench)
for registered in (group for part in (app, federation.app, serve.audit) for group in part.registered_commands):
    registered.cls = _PlainCommand
