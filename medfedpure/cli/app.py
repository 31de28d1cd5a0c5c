"""The command's groups, put together."""

import typer

from medfedpure.cli import about, bench, check, evaluate, federate, federation, job, new

app = typer.Typer(
    name="medfedpure",
    help="Detect, purify, classify: defend medical image classifiers against evasion attacks.",
    no_args_is_help=True,
    rich_markup_mode=None,  # which would take [data] and [all] in a help text for styles
    pretty_exceptions_enable=False,
)
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
