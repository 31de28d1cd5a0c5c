"""One self-contained HTML page of an evaluation: no network, images inside, light, dark and print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medfedpure.evaluation.records import ArmResult, Evaluation, RungRow, TransferResult, beaten
from medfedpure.evaluation.tally import Figure
from medfedpure.reporting import charts
from medfedpure.reporting.evaluation.gallery import Gallery
from medfedpure.reporting.evaluation.summary import Summary, counted, summarize
from medfedpure.reporting.evaluation.table import columns, conditions, sections, threats
from medfedpure.reporting.evaluation.words import figure, verdict, verdict_benign, weakest_point
from medfedpure.reporting.rendering import render

TEMPLATE = "evaluation/page.html"


@dataclass(frozen=True)
class Attacked:
    """The scores of one attack beside benign ones."""

    row: RungRow
    histogram: str
    mark: str


@dataclass(frozen=True)
class Detection:
    """What a detector saw, for one defence and one eps."""

    arm: str
    eps: float
    roc: str
    attacks: list[Attacked]
    control: RungRow | None


@dataclass(frozen=True)
class Matrix:
    """Share of images fooled: who crafted (rows) against whom (columns)."""

    eps: float
    rows: list[tuple[str, list[float | None]]]


@dataclass(frozen=True)
class Pairs:
    """Who crafted (rows) against which client (columns): what its bare classifier and its defence made of it."""

    eps: float
    attack: str
    victims: list[str]
    rows: list[tuple[str, list[TransferResult]]]


def page(evaluation: Evaluation, *, summary: Summary | None = None, gallery: Gallery | None = None) -> str:
    """The whole page as text.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    found = summary or summarize(evaluation)
    shown = columns(found)
    values = {
        "summary": found,
        "verdicts": verdict(found),
        "verdict_benign": verdict_benign(found),
        "weakest": [(eps, weakest_point(found, eps)) for eps in found.eps],
        "tiles": [_tile(found, eps) for eps in (None, *found.eps)],
        "columns": shown,
        "sections": sections(found, shown),
        "conditions": conditions(found),
        "marks": threats(found),
        "curve": _curve(evaluation, found),
        "detections": [
            block for arm in reversed(evaluation.arms) for eps in found.eps if (block := _detection(found, arm, eps))
        ],
        "matrices": [matrix for eps in found.eps if (matrix := _matrix(evaluation, eps))],
        "pairs": [pairs for eps in found.eps if (pairs := _pairs(evaluation.transfers, eps))],
        "gallery": gallery,
        "costs": _costs(found),
        "setting": json.dumps(found.setting, indent=2),
    }
    return render(TEMPLATE, values, {"share": _share, "figure": figure, "number": _number})


def _tile(summary: Summary, eps: float | None) -> dict[str, Any]:
    line = summary.line(summary.headline, eps)
    bare = summary.line(summary.reference, eps) if summary.reference else None
    return {"eps": eps, "line": line, "bare": bare if bare is not None and bare.arm != line.arm else None}


def _curve(evaluation: Evaluation, summary: Summary) -> dict[str, Any]:
    """Balanced accuracy against eps, and the sweep of the self-checks where there is one."""
    own = [row for row in summary.rungs if row.arm == summary.headline and row.role == "check"]
    sweep = [row for row in own if row.rung.endswith((" half eps", " double eps", " large eps"))]
    places = sorted({0.0, *summary.eps, *[row.eps for row in sweep]})
    series = []
    for colour, arm in enumerate(evaluation.arms):
        lines = [summary.line(arm.name, eps) for eps in (None, *summary.eps)]
        points = [_point(places.index(line.eps or 0.0), line.balanced) for line in lines if line.balanced is not None]
        series.append(charts.Series(arm.name, points, colour))
    if sweep:
        points = [_point(places.index(row.eps), row.balanced) for row in sorted(sweep, key=lambda row: row.eps)]
        name = f"{summary.headline}: {sweep[0].rung.split(',')[0]} alone, first {sweep[0].images} images"
        series.append(charts.Series(name, points, len(evaluation.arms) - 1, hollow=True))
    marks = [
        (line.name, charts.legend_mark(line.colour, place, hollow=line.hollow)) for place, line in enumerate(series)
    ]
    chart = charts.share_chart(
        series,
        [f"{place:.3g}" for place in places],
        title=f"Balanced accuracy against eps, norm {summary.norm}",
        across=f"eps ({summary.norm}); evenly spaced, not to scale",
        up="balanced accuracy",
    )
    return {"chart": chart, "marks": marks, "sweep": sweep}


def _point(place: int, value: Figure | None) -> charts.Point:
    assert value is not None
    return charts.Point(place, value.value, value.low, value.high)


def _detection(summary: Summary, arm: ArmResult, eps: float) -> Detection | None:
    benign = arm.clean.scores
    if benign is None:
        return None
    rows = {row.rung: row for row in summary.rungs if row.arm == arm.name and row.eps == eps and row.role != "check"}
    shown = []
    for colour, rung in enumerate(counted(arm, eps)):
        if rung.reading is not None and rung.reading.scores is not None:
            chosen = [score for score, own in zip(rung.reading.scores, beaten(rung).tolist(), strict=True) if own]
            shown.append((rows[rung.rung], chosen, colour))
    everything = sorted([*benign, *[score for _, chosen, _ in shown for score in chosen]])
    cut = len(everything) // 100
    bounds = everything[cut], everything[-1 - cut]
    attacks = [
        Attacked(
            row,
            charts.score_histogram(benign, chosen, bounds, f"scores, benign and {row.rung}"),
            charts.legend_mark(colour, colour),
        )
        for row, chosen, colour in shown
    ]
    curves = [(row.rung, chosen, colour) for row, chosen, colour in shown if chosen]
    chart = charts.roc_chart(benign, curves, title=f"ROC of the detector of {arm.name}, eps {eps:.4g}")
    control = next((row for row in rows.values() if row.role == "control" and row.auroc is not None), None)
    return Detection(arm.name, eps, chart, attacks, control)


def _matrix(evaluation: Evaluation, eps: float) -> Matrix | None:
    """Shares of the images that met every attack."""
    own, labels = "its own bare classifier", torch.tensor(evaluation.labels)
    shares: dict[str, dict[str, float]] = {}
    for arm in evaluation.arms:
        for rung in counted(arm, eps):
            if rung.kind == "replayed" and rung.reading is not None:
                name = rung.rung.removeprefix("transfer from ") if rung.rung != "static" else own
                fell = rung.reading.fooled(rung.reading.own(labels))[: evaluation.met_by_all]
                shares.setdefault(name, {})[arm.name] = float(fell.double().mean())
    if not set(shares) - {own}:
        return None
    return Matrix(eps, [(name, [found.get(arm.name) for arm in evaluation.arms]) for name, found in shares.items()])


def _pairs(transfers: Sequence[TransferResult], eps: float) -> Pairs | None:
    shown = [found for found in transfers if found.crafted_on is None or found.eps == eps]
    attacks = list(dict.fromkeys(found.attack for found in shown if found.crafted_on is not None))
    if not attacks:
        return None
    rows: dict[str, list[TransferResult]] = {}
    for found in shown:
        rows.setdefault("no attack" if found.crafted_on is None else found.crafted_on, []).append(found)
    return Pairs(eps, "; ".join(attacks), list(dict.fromkeys(found.victim for found in shown)), list(rows.items()))


def _costs(summary: Summary) -> list[dict[str, Any]]:
    found = []
    for line in summary.lines:
        if line.eps is not None:
            continue
        attacked = [summary.line(line.arm, eps) for eps in summary.eps]
        crafting = sum(row.seconds for row in summary.rungs if row.arm == line.arm)
        found.append({"arm": line.arm, "benign": line, "attacked": attacked, "seconds": crafting})
    return found


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
