"""`medfedpure serve`: a saved defence behind HTTP; and `medfedpure audit`: is its log whole?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfedpure.cli.options import BitDepth, OwnModule, Threads
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.threads import use_threads

BROKEN = 3
"""The exit status of `audit log` where the chain breaks."""

audit = typer.Typer(help="Check what a service wrote.", no_args_is_help=True, rich_markup_mode=None)


def serve(
    defence: Annotated[
        Path, typer.Argument(help="A saved defence, or the output folder of `demo`, `run` or `federate`.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; one that others reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="Holds what requests bring as bearer token, chmod 600; default: MEDFEDPURE_TOKEN.",
        ),
    ] = None,
    audit_file: Annotated[
        Path | None, typer.Option("--audit", help="Log of every verdict, without image or name; it is continued.")
    ] = None,
    client: Annotated[str | None, typer.Option("--client", help="Of a run, whose defence; default: the first.")] = None,
    classifier: OwnModule = None,
    window: Annotated[
        str,
        typer.Option(
            "--window",
            help="Of DICOM files: auto, the file's own or percentiles; percentiles; full; or LOW,HIGH, the values that "
            "become black and white.",
        ),
    ] = "auto",
    bit_depth: BitDepth = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Images that are computed at a time.")] = 16,
    max_wait_ms: Annotated[
        float, typer.Option("--max-wait-ms", min=0, help="That a first image waits for others, in milliseconds.")
    ] = 5.0,
    queue: Annotated[
        int, typer.Option("--queue", min=1, help="Images at one time, uploads included; further ones get 429.")
    ] = 64,
    max_bytes: Annotated[int, typer.Option("--max-bytes", min=1, help="Of one request.")] = 16 * 2**20,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1, help="Of one picture, padded to a square.")] = 2**24,
    upload_seconds: Annotated[
        float,
        typer.Option("--upload-seconds", min=0.001, help="That the head of a request may take to come, and its body."),
    ] = 30.0,
    threads: Threads = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:0.")] = "cpu",
) -> None:
    """Answer requests with verdicts until it is told to end: research software, no medical device."""
    from contextlib import nullcontext

    from medfedpure.core.storage import read_document_only
    from medfedpure.defence.chain import DefendedClassifier
    from medfedpure.job.device import check_device
    from medfedpure.job.own_module import own_module
    from medfedpure.job.subject import defence_of
    from medfedpure.service.app import create_app
    from medfedpure.service.audit import AuditLog
    from medfedpure.service.limits import Limits
    from medfedpure.service.run import Server, listen, token_of
    from medfedpure.verdicts.decoding import Shown

    check_device(device)
    limits = Limits(max_batch, max_wait_ms, queue, max_bytes, max_pixels, upload_seconds)
    shown = Shown.parse(window, "axial", bit_depth)
    token = token_of(token_file)
    listen(host, port, token).close()  # what is wrong with it is known before the defence is loaded
    model = None if classifier is None else own_module(classifier)
    use_threads(threads, None)
    folder = defence_of(defence, client)
    chain = DefendedClassifier.load(folder, classifier=model).to(device)
    with listen(host, port, token) as socket, AuditLog(audit_file) if audit_file else nullcontext() as log:
        made_by = read_document_only(folder)["digest"][:16]
        app = create_app(chain, token=token, limits=limits, made_by=made_by, shown=shown, audit=log)
        place = f"[{host}]" if ":" in host else host
        said = f"http://{place}:{socket.getsockname()[1]}"
        server = Server(app, lambda: Terminal().say(f"listening on {said}; SIGTERM or Ctrl-C ends it"))
        server.run(sockets=[socket])
    Terminal().say("ended")


@audit.command("log")
def log(
    file: Annotated[Path, typer.Argument(help="The log that `serve --audit` wrote.")],
    holds: Annotated[
        str | None, typer.Option("--holds", help="A last hash that was kept elsewhere: is it still in the log?")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Check that no row was changed, taken out, put in or moved, and say where the chain breaks."""
    from dataclasses import asdict

    from medfedpure.service.audit import check

    found = check(file, holds)
    if as_json:
        say_json(asdict(found))
    else:
        Terminal().say(f"{file}: {found.describe()}")
    if found.fault is not None:
        raise typer.Exit(BROKEN)
