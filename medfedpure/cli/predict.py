"""`medfedpure predict`: what a saved defence says of scans, a row each; `pseudonyms`: of whom rows speak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfedpure.cli.options import BitDepth, OwnModule, Threads
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.threads import use_threads

if TYPE_CHECKING:
    from medfedpure.defence.chain import DefendedClassifier
    from medfedpure.verdicts.ray_engine import RayEngine

FLAGGED = 3
"""The exit status of --fail-on-flagged."""


def predict(
    defence: Annotated[
        Path, typer.Argument(help="A saved defence, or the output folder of `demo`, `run` or `federate`.")
    ],
    inputs: Annotated[
        list[str], typer.Argument(help='Scans: files, folders searched to any depth, patterns in quotes ("in/*.png").')
    ],
    out: Annotated[Path, typer.Option("--out", help="The file of rows; the same command again goes on where it ends.")],
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="csv; jsonl, an object a line; parquet, files in the folder --out; default: as --out ends.",
        ),
    ] = None,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Read files again of which a row says that they could not be read.")
    ] = False,
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
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="patient or study: also a table of their verdicts, beside --out, made of all rows at the end; "
            "needs --key-file.",
        ),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            "--combine",
            help="How --by joins images that have a verdict: worst (default), the one most probably of the last class, "
            "flagged where any image is; mean, of probabilities; vote, the class of most; these two are flagged where "
            "more than half are.",
        ),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option("--maps", help="A folder for maps of where flagged images look suspicious, a grey PNG each."),
    ] = None,
    save_purified: Annotated[
        Path | None,
        typer.Option(
            "--save-purified",
            help="A folder for what was purified: PNG of pictures, derived DICOM without identity, NIfTI slices.",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", help="A folder for report.html, a page of all rows, made at the end."),
    ] = None,
    window: Annotated[
        str,
        typer.Option(
            "--window",
            help="Of DICOM and NIfTI: auto, the file's own or percentiles; percentiles; full; or LOW,HIGH, the values "
            "that become black and white (level 40, width 400 is -160,240).",
        ),
    ] = "auto",
    axis: Annotated[
        str, typer.Option("--axis", help="That NIfTI volumes are cut across: axial, coronal or sagittal.")
    ] = "axial",
    bit_depth: BitDepth = None,
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
    engine: Annotated[
        str, typer.Option("--engine", help="local, this process; or ray, a worker on each of --devices (extra ray).")
    ] = "local",
    devices: Annotated[
        str | None, typer.Option("--devices", help="Of --engine ray: cpu,cpu or cuda:0,cuda:1; default: --device.")
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(
            "--ray-address", help="Of a Ray cluster that is there; default: RAY_ADDRESS, else one is started and ended."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the last line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Say of every picture, DICOM frame and NIfTI slice what it is, whether it looks attacked, and what was done."""
    from dataclasses import asdict

    from medfedpure.cli.bars import Bars
    from medfedpure.core.errors import ConfigError
    from medfedpure.core.progress import Lines, listening
    from medfedpure.core.storage import read_document_only
    from medfedpure.defence.chain import DefendedClassifier
    from medfedpure.job.device import check_device
    from medfedpure.job.own_module import own_module
    from medfedpure.job.subject import defence_of
    from medfedpure.reporting.verdicts.page import PAGE, VerdictsPage
    from medfedpure.verdicts.decoding import Shown
    from medfedpure.verdicts.formats import format_of, kept_as
    from medfedpure.verdicts.groups import Grouping
    from medfedpure.verdicts.kept import check_format
    from medfedpure.verdicts.listening import Listener
    from medfedpure.verdicts.places import check_apart
    from medfedpure.verdicts.predict import columns_for, predict_files
    from medfedpure.verdicts.purified import Purified

    check_engine(engine, devices, ray_address)
    if engine == "local":
        check_device(device)
    written = format or format_of(out)
    check_format(written)
    shown = Shown.parse(window, axis, bit_depth)
    if combine is not None and by is None:
        raise ConfigError(
            f"--combine {combine} says how images are joined, and --by of whom: give --by patient or study"
        )
    if by is not None and key_file is None:
        raise ConfigError(
            f"--by {by} needs the pseudonyms of the rows: give --key-file, which is made if it is missing"
        )
    grouping = None if by is None else Grouping(by, combine or "worst")  # type: ignore[arg-type]
    model = None if classifier is None else own_module(classifier)
    table = None if grouping is None else grouping.place(out)
    rows_alone = written == "parquet"
    check_apart(
        [maps, save_purified, *([out] if rows_alone else [])],
        [table, key_file, None if report is None else report / PAGE, *([] if rows_alone else [out])],
    )
    use_threads(threads, None)
    folder = defence_of(defence, client)
    chain = DefendedClassifier.load(folder, classifier=model).to(device if engine == "local" else "cpu")
    dealt = on_ray(folder, classifier, device if devices is None else devices, ray_address) if engine == "ray" else None
    talk = Terminal(stderr=as_json, quiet=quiet)
    aside = Terminal(stderr=True, quiet=quiet)
    made_by = read_document_only(folder)["digest"][:16]
    also: list[Listener] = []
    if save_purified is not None:
        rate = [] if target_fpr is None else [f"target_fpr={target_fpr:g}"]
        own = " ".join([made_by, *rate, *shown.told()])
        also.append(Purified(save_purified, chain, made_by=own, key_file=key_file, axis=shown.axis))
    page = None
    if report is not None:
        page = VerdictsPage(report, chain, shown=shown, target_fpr=target_fpr, purified=save_purified)
    try:
        with Bars(talk) as bars, listening(bars if talk.is_interactive else Lines(aside.say, every=60)):
            tally = predict_files(
                chain,
                inputs,
                out,
                format=written,  # type: ignore[arg-type]
                made_by=made_by,
                seed=seed,
                target_fpr=target_fpr,
                batch_size=batch_size,
                workers=workers,
                key_file=key_file,
                shown=shown,
                maps=maps,
                grouping=grouping,
                retry_errors=retry_errors,
                engine=dealt,
                also=also,
            )
            if page is not None:
                page.write(kept_as(written, out, columns_for(chain), made_by).rows())  # type: ignore[arg-type]
    except KeyboardInterrupt:
        Terminal(stderr=True).say(f"stopped; the rows so far are in {out}: the same command goes on")
        raise typer.Exit(130) from None
    if as_json:
        beside = {"table": table, "report": None if page is None else page.place}
        say_json({**asdict(tally), "out": str(out), **{k: None if v is None else str(v) for k, v in beside.items()}})
    else:
        told = "" if grouping is None else f", by {grouping.by} to {table}"
        shown_on = "" if page is None else f"; report: {page.place}"
        Terminal().say(f"{tally.describe()}; written to {out}{told}{shown_on}")
    if fail_on_flagged and tally.flagged:
        raise typer.Exit(FLAGGED)


def pseudonyms(
    patients: Annotated[
        typer.FileText,
        typer.Argument(encoding="utf-8-sig", help="A file with a PatientID on each line; - reads them from a pipe."),
    ],
    key_file: Annotated[Path, typer.Option("--key-file", help="The secret that `predict` or a data set was given.")],
) -> None:
    """Print which pseudonym each patient has under a key, as CSV: who has it can look up whose a row is."""
    from medfedpure.core.errors import DataError
    from medfedpure.core.rows.table import csv_text
    from medfedpure.data.readers.pseudonyms import Pseudonyms

    if not key_file.exists():
        raise DataError(
            f"there is no key {key_file}, and under another one every pseudonym is another: give the right one"
        )
    try:
        found = list(dict.fromkeys(line.strip(" \0\r\n") for line in patients))
    except UnicodeDecodeError:
        raise DataError("the list is no text in UTF-8: a PatientID on each line is wanted") from None
    if not (told := [one for one in found if one]):
        raise DataError("the list is empty: a PatientID on each line is wanted")
    names = Pseudonyms.from_file(key_file)
    Terminal().say(csv_text({"patient": [names.of(one) for one in told], "PatientID": told}).rstrip("\n"))


def check_engine(engine: str, devices: str | None, address: str | None) -> None:
    """ConfigError: no such engine, or options of the other one."""
    from medfedpure.core.errors import ConfigError

    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine is local or ray; got {engine!r}")
    if engine == "local" and (devices is not None or address is not None):
        raise ConfigError("--devices and --ray-address are of --engine ray: name it, or leave them out")


def on_ray(folder: Path, classifier: str | None, devices: str, address: str | None) -> RayEngine:
    """The engine of --engine ray, whose workers load the defence by themselves."""
    from functools import partial

    from medfedpure.verdicts.ray_engine import RayEngine

    return RayEngine(partial(loaded, folder, classifier), devices.split(","), address)


def loaded(folder: Path, classifier: str | None) -> DefendedClassifier:
    """The defence, in a worker."""
    from medfedpure.defence.chain import DefendedClassifier
    from medfedpure.job.own_module import own_module

    return DefendedClassifier.load(folder, classifier=None if classifier is None else own_module(classifier))
