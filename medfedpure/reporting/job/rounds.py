"""Curves of federated rounds: every figure and the traffic of each client, and their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medfedpure.reporting import charts

Round = Mapping[str, Any]
FIGURES = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced accuracy"),
    ("auroc", "AUROC"),
    ("loss", "loss"),
    ("train_loss", "training loss"),
)
_SHARES = {"accuracy", "balanced_accuracy", "auroc"}
_TRAFFIC = (("client_bytes_up", "up from a client"), ("client_bytes_down", "down to a client"))
_MOST_COLOURS, _MOST_TICKS = charts.COLOURS - 1, 12


@dataclass(frozen=True)
class Curves:
    """The charts of one federated training, by caption, and their common legend of marks and names."""

    name: str
    charts: list[tuple[str, str]]
    legend: list[tuple[str, str]]
    failures: list[str]


@dataclass(frozen=True)
class ClientFigures:
    """All figures after one round: header, a row for each client, the mean, the worst client of each figure."""

    round: int
    header: list[str]
    rows: list[list[str]]


def curves(name: str, history: Sequence[Round]) -> Curves:
    """Curves over the rounds.

    Args:
        name: of what was trained.
        history: at least one round, as results.json holds them. A figure that a client lacks in a round
            leaves out its marker there.
    """
    clients = sorted({client for record in history for client in record["clients"]})
    crowded = len(clients) > _MOST_COLOURS
    shown = []
    for key, caption in FIGURES:
        known = {client: [record["clients"].get(client, {}).get(key) for record in history] for client in clients}
        chart = _chart(name, caption, known, crowded, up=caption, share=key in _SHARES)
        shown += [(caption, chart)] if chart else []
    unit, size = _unit([count for record in history for key, _ in _TRAFFIC for count in record.get(key, {}).values()])
    for key, caption in _TRAFFIC:
        known = {client: [record.get(key, {}).get(client) for record in history] for client in clients}
        scaled = {client: [None if v is None else v / size for v in values] for client, values in known.items()}
        chart = _chart(name, caption, scaled, crowded, up=unit, zero=True)
        shown += [(f"{caption}, {unit}", chart)] if chart else []
    names = ["each client"] if crowded else clients
    legend = [(charts.legend_mark(0, 0), "mean")]
    legend += [(charts.legend_mark(place, place), client) for place, client in enumerate(names, start=1)]
    failures = [
        f"round {record['round']} without {client}: {reason}"
        for record in history
        for client, reason in sorted(record["failed"].items())
    ]
    return Curves(name, shown, legend, failures)


def last_figures(history: Sequence[Round]) -> ClientFigures:
    """The figures after the last round, for a table."""
    record = history[-1]
    shown = [(key, title) for key, title in FIGURES if record["mean"].get(key) is not None]
    rows = [
        [client, *[_number(own.get(key)) + chance_note(key, own) for key, _ in shown]]
        for client, own in sorted(record["clients"].items())
    ]
    rows.append(["mean", *[_number(record["mean"][key]) + chance_note(key, record["mean"]) for key, _ in shown]])
    worst = []
    for key, _ in shown:
        known = [own for own in record["clients"].values() if own.get(key) is not None]
        last = (min if key in _SHARES else max)(known, key=lambda own: own[key])
        worst.append(_number(last[key]) + chance_note(key, last))
    return ClientFigures(record["round"], ["client", *[title for _, title in shown]], [*rows, ["worst client", *worst]])


def _chart(
    name: str,
    caption: str,
    known: Mapping[str, Sequence[float | None]],
    crowded: bool,
    *,
    up: str,
    share: bool = False,
    zero: bool = False,
) -> str | None:
    """A line for each client with a figure, over a thicker one of their mean; None where nobody has one."""
    rounds = max((len(values) for values in known.values()), default=0)
    everything = [value for values in known.values() for value in values if value is not None]
    if not everything:
        return None
    lines = [
        charts.Series(client, _points(values), 1 if crowded else place)
        for place, (client, values) in enumerate(known.items(), start=1)
    ]
    means = []
    for place in range(rounds):
        present = [values[place] for values in known.values() if values[place] is not None]
        means.append(sum(filter(None, present)) / len(present) if present else None)
    mean = charts.Series("mean", _points(means), 0, strong=True)
    levels = charts.levels_around([*everything, 0.0] if zero else everything)
    every = -(-rounds // _MOST_TICKS)
    ticks = [str(number) if (number - 1) % every == 0 else "" for number in range(1, rounds + 1)]
    return charts.line_chart(
        [mean, *(line for line in lines if line.points)],
        ticks,
        [level for level in levels if not share or level <= 1],
        title=f"{name}: {caption} by round",
        across="round",
        up=up,
        size=(400, 210),
    )


def _points(values: Sequence[float | None]) -> list[charts.Point]:
    return [charts.Point(place, value) for place, value in enumerate(values) if value is not None]


def _unit(counts: Sequence[float]) -> tuple[str, float]:
    largest = max(counts, default=0)
    return ("MB", 1e6) if largest >= 1e6 else ("kB", 1e3) if largest >= 1e3 else ("bytes", 1.0)


def chance_note(key: str, figures: Mapping[str, float | None]) -> str:
    """What stands behind a figure of one client, or behind the mean of clients none of which beats guessing; or ""."""
    return " at chance level" if key == "balanced_accuracy" and figures.get("above_chance") == 0 else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
