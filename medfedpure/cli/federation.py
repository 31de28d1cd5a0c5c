"""`medfedpure federation`: a real federation over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfedpure.cli.shown import Terminal

app = typer.Typer(
    help="A real federation over the network: a server, and a node at every hospital.", no_args_is_help=True
)


@app.command("init")
def init(
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    clients: Annotated[int, typer.Option("--clients", help="How many sites.")],
    address: Annotated[
        str, typer.Option("--address", help="host:port at which sites reach the server's path filter.")
    ] = "localhost:18443",
    superlink_port: Annotated[int, typer.Option("--superlink-port", help="The SuperLink's, on loopback.")] = 18000,
) -> None:
    """Write app, certificates, keys, configurations, units and commands for a test federation."""
    from medfedpure.consortium.init import init_federation

    init_federation(folder, clients, address=address, superlink_port=superlink_port)
    Terminal().say(f"written to {folder}; {folder}/README.md has the commands")


@app.command("rehearse")
def rehearse(
    folder: Annotated[Path, typer.Argument(help="What `federation init` wrote.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for results and parts.")],
    quiet: Annotated[bool, typer.Option("--quiet", help="No live table, only the last round.")] = False,
) -> None:
    """Run the same federation in this process, without a network, from every site's own site.toml."""
    from medfedpure.cli.federate import live_rounds, print_parts
    from medfedpure.consortium.deployment import rehearse
    from medfedpure.consortium.init import FEDERATION_FILE
    from medfedpure.core.disk.whole import make_folder
    from medfedpure.core.errors import ConfigError
    from medfedpure.job.federate_config import DeploymentConfig

    sites = sorted(folder.glob("sites/*/site.toml"))
    if not sites:
        raise ConfigError(f"{folder} holds no sites/*/site.toml: make it by `medfedpure federation init`")
    make_folder(out)
    talk, kinds = Terminal(quiet=quiet), DeploymentConfig.from_toml(folder / FEDERATION_FILE).kinds
    with live_rounds(talk, several=len(kinds) > 1) as watch:
        found = rehearse(folder / FEDERATION_FILE, sites, out, watch=watch, say=talk.say)
    print_parts(found, out)


@app.command("run")
def run(
    folder: Annotated[Path, typer.Argument(help="What `federation init` wrote, at the coordinator.")],
    timeout: Annotated[float | None, typer.Option("--timeout", help="Stop the run after so many seconds.")] = None,
) -> None:
    """Start the run at the server and wait for it; ends with an error when the run fails, and resumes when repeated."""
    from medfedpure.cli.federate import page_of_rounds
    from medfedpure.consortium.run import run_federation

    console = Terminal()
    run_federation(folder, say=console.print, timeout=timeout)
    out = folder / "server" / "out"
    console.say(f"written to {out}: results.json, checkpoint/, {page_of_rounds(out)}")
