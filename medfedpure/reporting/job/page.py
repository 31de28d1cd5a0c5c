"""The page of a finished job, and of one component trained across clients: tables, pictures, curves of the rounds."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfedpure.core.storage import write_bytes
from medfedpure.job.records import ClientResult, RunResult
from medfedpure.reporting.job.rounds import curves, last_figures
from medfedpure.reporting.job.table import (
    cells,
    choice_cells,
    choice_conditions,
    conditions,
    strategy_cells,
    strategy_conditions,
)
from medfedpure.reporting.job.words import baseline, caveats, guessing, of_chance, of_client, verdict
from medfedpure.reporting.rendering import render

PAGE = "report.html"
_RUN, _ROUNDS = "job/run.html", "job/rounds.html"


@dataclass(frozen=True)
class Table:
    """Rows, the first of them the header; the first `words` columns are text."""

    title: str
    rows: list[list[str]]
    notes: list[str]
    words: int = 1


def write_run_page(result: RunResult, folder: Path) -> None:
    """Write report.html of a demo or a run beside its results.json; its gallery.png goes into the page.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    own = result.strategies[0]
    tables = []
    if result.choice is not None:
        tables.append(Table("How the policy was chosen", choice_cells(result), choice_conditions(result)))
    if len(result.strategies) > 1:
        notes = strategy_conditions(result)
        tables.append(Table("Against other ways of training the classifier", strategy_cells(result), notes, words=2))
    tables.append(Table(f"All figures, classifier by {own.strategy}", cells(result), conditions(result)))
    gallery = folder / "gallery.png"
    picture = base64.b64encode(gallery.read_bytes()).decode() if gallery.is_file() else None
    values = {
        "title": f"Defence of {len(result.clients)} clients on {_images(result)}",
        "verdict": verdict(result),
        "caveats": caveats(result),
        "bars": [_bars(result, "On attacked images", "robust"), _bars(result, "On benign images", "clean")],
        "chance": f"{sum(guessing(result, client) for client in result.clients) / len(result.clients):.1%}",
        "cards": [_card(result, client) for client in result.clients],
        "tables": tables,
        "picture": None if picture is None else f"data:image/png;base64,{picture}",
        "trainings": [curves(_trained(result, name), history) for name, history in result.federated.items()],
    }
    write_bytes(folder / PAGE, render(_RUN, values).encode())


def _images(result: RunResult) -> str:
    """The data set, and the size of its images where its configuration says it."""
    data = result.config["data"]
    size = data["config"].get("image_size")
    return f"{data['plugin']}, {size} px" if size else str(data["plugin"])


def _bars(result: RunResult, title: str, images: str) -> dict[str, Any]:
    mean, knowing = result.mean, result.mean.get("bpda_robust_balanced_accuracy")
    found = [
        (baseline(result, "majority"), mean["majority_balanced_accuracy"], False),
        (baseline(result, "bare"), mean[f"bare.{images}_balanced_accuracy"], False),
        (baseline(result, "anchor"), mean[f"anchor.{images}_balanced_accuracy"], False),
        ("the defence", mean[f"defended.{images}_balanced_accuracy"], True),
    ]
    if images == "robust" and knowing is not None:
        found.append(("the defence, attacked through it (BPDA)", knowing, True))
    return {"title": title, "bars": [{"name": name, "value": value, "own": own} for name, value, own in found]}


def _card(result: RunResult, client: ClientResult) -> dict[str, str]:
    held = of_chance(result, client)
    return {
        "name": client.client,
        "defended": f"{client.defended.robust_balanced_accuracy:.1%}",
        "bare": f"{client.bare.robust_balanced_accuracy:.1%}",
        "chance": f", {held}" if held else "",
        "gain": of_client(result, client),
        "clean": f"{client.defended.clean_balanced_accuracy:.1%}",
        "clean_bare": f"{client.bare.clean_balanced_accuracy:.1%}",
        "flagged_attacked": f"{client.flagged_attacked:.1%}",
        "flagged_benign": f"{client.flagged_benign:.1%}",
        "images": f"{client.test_images} test images of {client.test_groups} groups; {client.calibration}",
    }


def write_rounds_page(results: Mapping[str, Any], folder: Path) -> None:
    """Write report.html of one component trained across clients beside its results.json.

    Args:
        results: the content of results.json, with at least one round.
        folder: where it is.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    history, what = results["history"], f"{results['part']} {results['plugin']} by {results['strategy']}"
    found = last_figures(history)
    notes = [f"missing: {client}: {reason}" for client, reason in sorted(results["missing"].items())]
    if "privacy" in results:
        spent = results["privacy"]
        notes.append(
            f"client-level privacy of the shared part: epsilon {spent['epsilon']:.2f} at delta {spent['delta']:g}"
        )
    worst = history[-1]["worst"]
    lead = f"After round {found.round} of {results['rounds']}, {len(history[-1]['clients'])} clients took part."
    if worst is not None:
        lead += f" Served worst: {worst['client']}, {worst['metric'].replace('_', ' ')} {worst['value']:.3f}."
    values = {
        "title": f"Federated training: {what}",
        "lead": lead,
        "tables": [Table(f"Every client after round {found.round}", [found.header, *found.rows], notes)],
        "trainings": [curves(what, history)],
    }
    write_bytes(folder / PAGE, render(_ROUNDS, values).encode())


def _trained(result: RunResult, name: str) -> str:
    """What the rounds of `name` trained, and how: "classifier by fedper"."""
    if " by " in name:
        return name
    return f"{name} by {result.config[name]['strategy']['plugin']}"
