"""`medfedpure predict`: what a saved defence says of scans, a row each."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medfedpure.cli.options import OwnModule, Threads
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.threads import use_threads

FLAGGED = 3
"""The exit status of --fail-on-flagged."""


def predict(
    defence: Annotated[Path, typer.Argument(help="A saved defence, or the output folder of `demo` or `run`.")],
    inputs: Annotated[
        list[str], typer.Argument(help='Scans: files, folders searched to any depth, patterns in quotes ("in/*.png").')
    ],
    out: Annotated[Path, typer.Option("--out", help="The file of rows; the same command again goes on where it ends.")],
    format: Annotated[
        str | None, typer.Option("--format", help="csv, or jsonl, an object a line; default: as --out ends.")
    ] = None,
    client: Annotated[str | None, typer.Option("--client", help="Of a run, whose defence; default: the first.")] = None,
    classifier: OwnModule = None,
    target_fpr: Annotated[
        float | None, typer.Option("--target-fpr", help="Share of benign scans to flag; default: as it was calibrated.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file",
            help="A secret, made if it is missing: under it rows say the patient and the study of DICOM files.",
        ),
    ] = None,
    fail_on_flagged: Annotated[
        bool, typer.Option("--fail-on-flagged", help=f"Exit with status {FLAGGED} where this call flags a scan.")
    ] = False,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 64,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Threads that decode; default: one a processor, at most 8.")
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option("--seed", help="Of the noise, for tests; default: drawn anew, so that nobody can foresee it."),
    ] = None,
    threads: Threads = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:0.")] = "cpu",
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the last line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Say of every picture, DICOM frame and NIfTI slice what it is, whether it looks attacked, and what was done."""
    from dataclasses import asdict

    from medfedpure.cli.bars import Bars
    from medfedpure.core.progress import listening
    from medfedpure.core.storage import read_document_only
    from medfedpure.defence.chain import DefendedClassifier
    from medfedpure.job.device import check_device
    from medfedpure.job.own_module import own_module
    from medfedpure.job.subject import defence_of
    from medfedpure.verdicts.predict import predict_files

    check_device(device)
    written = format or ("jsonl" if out.suffix in (".jsonl", ".ndjson") else "csv")
    model = None if classifier is None else own_module(classifier)
    use_threads(threads, None)
    folder = defence_of(defence, client)
    chain = DefendedClassifier.load(folder, classifier=model).to(device)
    talk = Terminal(stderr=as_json, quiet=quiet)
    try:
        with Bars(talk) as bars, listening(bars):
            tally = predict_files(
                chain,
                inputs,
                out,
                format=written,  # type: ignore[arg-type]
                made_by=read_document_only(folder)["digest"][:16],
                seed=seed,
                target_fpr=target_fpr,
                batch_size=batch_size,
                workers=workers,
                key_file=key_file,
            )
    except KeyboardInterrupt:
        Terminal(stderr=True).print(f"\nstopped; the rows so far are in {out}: the same command goes on")
        raise typer.Exit(130) from None
    if as_json:
        say_json({**asdict(tally), "out": str(out)})
    else:
        Terminal().say(f"{tally.describe()}; written to {out}")
    if fail_on_flagged and tally.flagged:
        raise typer.Exit(FLAGGED)
