"""`medfedpure federate`: parts across clients and a defence at each, with a live table of the rounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from medfedpure.cli.options import Settings, Threads
from medfedpure.cli.shown import Terminal, echo_json, shown
from medfedpure.cli.threads import use_threads

if TYPE_CHECKING:
    from medfedpure.federation import FederatedResult, RoundRecord
    from medfedpure.job.federate_config import PartKind

_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "loss": "loss",
    "train_loss": "training loss",
}
_OTHER_COLUMNS = 68


def federate(
    config: Annotated[
        Path,
        typer.Argument(
            help="A TOML file with [data] and one of [classifier|detector|purifier], or with [defence] several of them."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for results and parts; a run in it is resumed.")],
    settings: Settings = None,
    threads: Threads = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No live table, only the last round.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of the tables.")] = False,
) -> None:
    """Train parts across clients on this machine and make each one's defence, without pooling an image; resumable."""
    from medfedpure.job.federate import run_federate
    from medfedpure.job.federate_config import FederateConfig

    chosen = FederateConfig.from_toml(config).with_settings(settings or [])
    if threads is not None:
        chosen = chosen.with_settings([f"federation.threads={threads}"])
    use_threads(chosen.federation.threads)
    talk = Terminal(stderr=as_json, quiet=quiet)
    with live_rounds(talk, several=len(chosen.kinds) > 1) as watch:
        found = run_federate(chosen, out, watch=watch, say=talk.say)
    if as_json:
        page_of_rounds(out)
        echo_json(out / "results.json")
        return
    print_parts(found, out)


@contextmanager
def live_rounds(talk: Terminal, *, several: bool) -> Iterator[Callable[[PartKind, tuple[RoundRecord, ...]], None]]:
    """A table of each part that grows by a row a round inside the block, and bars below; of several parts named."""
    from medfedpure.cli.bars import Bars
    from medfedpure.core.progress import listening

    bars, tables = Bars(talk), dict[str, Group]()
    with Live(bars.progress, console=talk, refresh_per_second=4) as live, listening(bars):

        def watch(part: PartKind, history: tuple[RoundRecord, ...]) -> None:
            tables[part] = rounds_table(history, talk.width, part if several else "")
            live.update(Group(*tables.values(), bars.progress))

        yield watch


def print_parts(found: Mapping[PartKind, FederatedResult], out: Path) -> None:
    """Tables of the last rounds, who lacks what, and where all lies; and write the page."""
    from medfedpure.core.storage import read_json

    console, results = Terminal(), read_json(out / "results.json")
    for place, (part, result) in enumerate(found.items()):
        console.print(clients_table(result.history[-1], part if len(found) > 1 else ""))
        privacy = (results["phases"][place] if "phases" in results else results).get("privacy")
        if privacy:
            console.print(
                f"client-level privacy of the shared part: epsilon {privacy['epsilon']:.2f} at delta "
                f"{privacy['delta']:g}"
            )
        for client, reason in sorted(result.missing.items()):
            console.print("missing", style="bold red", end=" ")
            console.say(f"{client}: {reason}")
    made = results.get("defences", {"done": {}, "failed": {}})
    for client, reason in sorted(made["failed"].items()):
        console.print("no defence", style="bold red", end=" ")
        console.say(f"{client}: {reason}")
    written = ["config.toml", "results.json", "parts/", *(["defences/"] if made["done"] else []), page_of_rounds(out)]
    console.say(f"\nwritten to {out}: {', '.join(written)}")
    if made["done"]:
        first = min(made["done"])
        console.say(f"scans are read by: medfedpure predict {out} FOLDER --client {first} --out verdicts.csv")


def page_of_rounds(folder: Path) -> str:
    """Write report.html beside results.json; its name, or why there is none."""
    from medfedpure.core.errors import MissingExtraError
    from medfedpure.core.storage import read_json
    from medfedpure.reporting.job.federation import write_federation_page
    from medfedpure.reporting.job.page import PAGE

    try:
        write_federation_page(read_json(folder / "results.json"), folder)
    except MissingExtraError as error:
        return f"no page: {error}"
    return PAGE


def rounds_table(history: tuple[RoundRecord, ...], width: int = 120, part: str = "") -> Group:
    """One row a round, under a part's name: clients by the headline figure, mean, worst, traffic; failures below."""
    from medfedpure.job.federate import headline, mean_figures, worst_client

    # The figures of a round come with the next one, so the newest round may have none yet.
    metric = headline({f"{r.round} {client}": own for r in history for client, own in r.clients.items()})
    clients = sorted({client for record in history for client in (*record.clients, *record.failed)})
    if sum(max(len(client), 5) + 2 for client in clients) + _OTHER_COLUMNS > width:
        clients = []
    table = Table(box=None, pad_edge=False, padding=(0, 1), title=_titled(part, _TITLES[metric]), title_justify="left")
    for title in ("round", *clients, "mean", "worst", "", "AUROC", "loss", "up", "down", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    for record in history:
        mean, worst = mean_figures(record.clients), worst_client(record.clients, metric)
        table.add_row(
            str(record.round),
            *(_figure(record.clients.get(client, {}).get(metric)) for client in clients),
            _figure(mean.get(metric)),
            *(("", "") if worst is None else (_figure(worst[1]), worst[0])),
            _figure(mean.get("auroc")),
            _figure(mean.get("loss", mean.get("train_loss"))),
            _size(record.bytes_up),
            _size(record.bytes_down),
            f"{record.seconds:.1f}",
        )
    failures = [
        Text.assemble((f"round {record.round} without {shown(client)}", "red"), f": {shown(reason)}")
        for record in history
        for client, reason in sorted(record.failed.items())
    ]
    return Group(table, *failures)


def clients_table(record: RoundRecord, part: str = "") -> Table:
    """All figures of the last round of a part by that name, by client, and their means."""
    from medfedpure.job.federate import mean_figures, worst_client
    from medfedpure.reporting.job.rounds import chance_note

    mean = mean_figures(record.clients)
    shown = [name for name in _TITLES if name in mean]
    table = Table(box=None, pad_edge=False, title=_titled(part, f"after round {record.round}"), title_justify="left")
    table.add_column("client")
    for name in shown:
        table.add_column(_TITLES[name], justify="right")
    for client, figures in sorted(record.clients.items()):
        table.add_row(client, *(_figure(figures.get(name)) + chance_note(name, figures) for name in shown))
    table.add_row("mean", *(_figure(mean[name]) + chance_note(name, mean) for name in shown), style="bold")
    worst = [(name, worst_client(record.clients, name)) for name in shown]
    cells = ("" if one is None else _figure(one[1]) + chance_note(name, record.clients[one[0]]) for name, one in worst)
    table.add_row("worst", *cells, style="dim")
    return table


def _titled(part: str, text: str) -> str:
    return f"{part}: {text}" if part else text


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"
