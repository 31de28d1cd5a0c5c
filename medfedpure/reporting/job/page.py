"""The page of a finished job, and of one component trained across clients: tables, pictures, curves of the rounds."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfedpure.core.storage import write_bytes
from medfedpure.job.records import RunResult
from medfedpure.reporting.job.rounds import curves, last_figures
from medfedpure.reporting.job.table import cells, conditions, strategy_cells, strategy_conditions
from medfedpure.reporting.rendering import render

PAGE = "report.html"
_TEMPLATE = "job/page.html"


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
    mean, own = result.mean, result.strategies[0]
    lead = (
        f"Balanced accuracy, mean over {len(result.clients)} clients: undefended "
        f"{mean['bare.clean_balanced_accuracy']:.1%} on benign images and {mean['bare.robust_balanced_accuracy']:.1%} "
        f"on attacked ones, defended {mean['defended.clean_balanced_accuracy']:.1%} and "
        f"{mean['defended.robust_balanced_accuracy']:.1%}. The attacker ignores the defence."
    )
    tables = [Table(f"Every client, classifier by {own.strategy}", cells(result), conditions(result))]
    if len(result.strategies) > 1:
        notes = strategy_conditions(result)
        tables.append(Table("Against other ways of training the classifier", strategy_cells(result), notes, words=2))
    gallery = folder / "gallery.png"
    picture = base64.b64encode(gallery.read_bytes()).decode() if gallery.is_file() else None
    values = {
        "title": f"Defence of {len(result.clients)} clients on {result.config['data']['plugin']}",
        "lead": lead,
        "tables": tables,
        "picture": None if picture is None else f"data:image/png;base64,{picture}",
        "trainings": [curves(_trained(result, name), history) for name, history in result.federated.items()],
    }
    write_bytes(folder / PAGE, render(_TEMPLATE, values).encode())


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
        "picture": None,
        "trainings": [curves(what, history)],
    }
    write_bytes(folder / PAGE, render(_TEMPLATE, values).encode())


def _trained(result: RunResult, name: str) -> str:
    """What the rounds of `name` trained, and how: "classifier by fedper"."""
    if " by " in name:
        return name
    return f"{name} by {result.config[name]['strategy']['plugin']}"
