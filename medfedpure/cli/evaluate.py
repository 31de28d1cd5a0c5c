"""`medfedpure evaluate`: attack a saved defence from every side, and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medfedpure.cli.options import OwnModule, Threads, json_object, number
from medfedpure.cli.shown import Terminal, echo_json
from medfedpure.cli.threads import use_threads
from medfedpure.cli.which import read_config

if TYPE_CHECKING:
    from medfedpure.core.attack import Attack
    from medfedpure.evaluation.records import Evaluation
    from medfedpure.job.subject import Subject
    from medfedpure.reporting.evaluation.summary import Summary


def evaluate(
    defence: Annotated[
        Path, typer.Argument(help="A saved defence, or the output folder of `demo`, `run` or `federate`.")
    ],
    report: Annotated[Path, typer.Option("--report", help="Folder for the report; the same again continues.")],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="Folder of pictures, MedMNIST .npz or data set plugin, such as dicom_folder, with its options; "
            "a run brings its own test images.",
        ),
    ] = None,
    data_config: Annotated[str, typer.Option("--data-config", help="JSON options of the data set plugin.")] = "{}",
    classifier: OwnModule = None,
    client: Annotated[str | None, typer.Option("--client", help="Of a run, whose defence; default: the first.")] = None,
    preset: Annotated[str, typer.Option("--preset", help="quick, standard or headline.")] = "quick",
    eps: Annotated[
        list[str] | None,
        typer.Option("--eps", help="Perturbation size, e.g. 0.015 or 8/255; again for more."),
    ] = None,
    norm: Annotated[str, typer.Option("--norm", help="linf or l2.")] = "linf",
    attacker: Annotated[
        list[Path] | None,
        typer.Option("--attacker", help="Another saved defence or classifier, to craft transfer attacks on."),
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option("--attack", help="An attack plugin of yours, beside the ladder; again for more.")
    ] = None,
    attack_config: Annotated[
        Path | None, typer.Option("--attack-config", help="A TOML file with the options of a single --attack.")
    ] = None,
    each_attack_alone: Annotated[
        bool,
        typer.Option(
            "--each-attack-alone",
            help="Every image meets every attack, also where its count is settled: longer.",
        ),
    ] = False,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Images at a time; several processes share such chunks.")
    ] = 64,
    threads: Threads = None,
    seed: Annotated[int, typer.Option("--seed", help="Of images, attacks and readings.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:0.")] = "cpu",
    devices: Annotated[
        str | None, typer.Option("--devices", help="Several, such as cuda:0,cuda:1: a process on each shares the work.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="So many processes on the CPU share the work.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress, only the table.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of the table.")] = False,
) -> None:
    """Attack a saved defence with the whole ladder of attackers, check the result against itself, and report."""
    from medfedpure.cli.bars import Bars
    from medfedpure.core.disk.whole import make_folder
    from medfedpure.core.progress import listening
    from medfedpure.core.storage import locked
    from medfedpure.evaluation.evaluate import evaluate as run
    from medfedpure.evaluation.store import recorded_threads
    from medfedpure.job.device import check_device
    from medfedpure.job.own_module import own_module
    from medfedpure.job.subject import load_subject

    sizes = [number(text) for text in eps] if eps else None
    options = json_object(data_config, "--data-config")
    names = _devices(devices, device, processes)
    for name in names or [device]:
        check_device(name)
    extra = _attacks(attack or [], attack_config)
    make_folder(report)
    talk = Terminal(stderr=as_json, quiet=quiet)

    def say(text: str) -> None:
        talk.print(">", style="cyan", end=" ")
        talk.print(text)

    model = None if classifier is None else own_module(classifier)
    use_threads(threads, recorded_threads(report))  # last: what was imported may have set another number
    with Bars(talk) as bars, listening(bars):  # thousands of images take a while
        subject = load_subject(
            defence, data=data, options=options, client=client, attackers=attacker or [], classifier=model
        )
    say(f"{subject.name} on {subject.data.name}: {subject.told}")
    if subject.chain.image_facts is not None:
        say(f"{subject.name} is for {subject.chain.image_facts.describe()}")
    if subject.chain.own_check is not None:
        say(f"when it was fitted: {subject.chain.own_check.describe()}")
    if subject.attackers:
        say(f"transfer attacks are crafted on {', '.join(subject.attackers)}")
    subject.chain.to(device)
    attackers = {name: model.to(device) for name, model in subject.attackers.items()}
    for chain, _ in subject.federation.values():
        chain.to(device)
    try:
        with locked(report, "an evaluation"), Bars(talk) as bars, listening(bars):
            found = run(
                subject.chain,
                subject.data,
                preset=preset,
                eps=sizes,
                norm=norm,  # type: ignore[arg-type]
                attackers=attackers,
                federation=subject.federation,
                extra_attacks=extra,
                out=report,
                seed=seed,
                batch_size=batch_size,
                cascade=not each_attack_alone,
                devices=names,
                processes=processes,
                threads=threads if names or (processes or 1) > 1 else None,
                say=say,
            )
    except KeyboardInterrupt:
        Terminal(stderr=True).print(f"\nstopped; finished attacks are kept in {report}: the same command continues")
        raise typer.Exit(130) from None
    _report(found, subject, report, as_json)


def _report(found: Evaluation, subject: Subject, report: Path, as_json: bool) -> None:
    from medfedpure.core.errors import MissingExtraError
    from medfedpure.evaluation.evaluate import choose
    from medfedpure.reporting.evaluation.files import write_report
    from medfedpure.reporting.evaluation.summary import summarize

    tables = "results.json, results.csv, summary.csv, summary.md" + (", transfers.csv" if found.transfers else "")
    written = f"report.html, {tables}"
    benign = choose(subject.data, found.setting["preset"]["images"], found.setting["seed"])
    try:
        summary = write_report(found, report, benign=benign, chain=subject.chain)
    except MissingExtraError as error:
        summary, written = summarize(found), f"{tables}; no page: {error}"
    if as_json:
        echo_json(report / "results.json")
        return
    _print(summary)
    Terminal().say(f"\nwritten to {report}: {written}")


def _print(summary: Summary) -> None:
    from medfedpure.reporting.evaluation.table import conditions, terminal_table, warnings
    from medfedpure.reporting.evaluation.words import verdict, verdict_benign

    console = Terminal()
    console.print()
    console.print(terminal_table(summary, console.width), markup=True)  # its cells are escaped
    console.print()
    for text in conditions(summary):
        console.print(text, style="dim")
    console.print()
    for text in (*verdict(summary), verdict_benign(summary)):
        console.print(text, style="bold")
    for text in warnings(summary):
        console.print(text, style="bold red")


def _attacks(names: list[str], config: Path | None) -> dict[str, Attack]:
    from medfedpure.core.errors import ConfigError
    from medfedpure.core.registry import create

    if config is not None and len(names) != 1:
        raise ConfigError(f"--attack-config holds the options of one --attack; got {len(names)} of them")
    return {name: create("attack", name, read_config(config)) for name in names}


def _devices(several: str | None, one: str, processes: int | None) -> list[str] | None:
    """The names in --devices; None without. Raises ConfigError beside another option that says where to work."""
    from medfedpure.core.errors import ConfigError

    if several is None:
        if processes is not None and processes > 1 and one != "cpu":
            raise ConfigError(f"--processes work on the CPU, and --device says {one}: leave one of them out")
        return None
    if one != "cpu" or processes is not None:
        raise ConfigError("--devices says where to work: leave out --device and --processes")
    return [name.strip() for name in several.split(",")]
