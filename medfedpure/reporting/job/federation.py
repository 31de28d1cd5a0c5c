"""The page of a federation: the rounds of every part, one after the other, and who has a defence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medfedpure.core.storage import write_bytes
from medfedpure.reporting.job.page import PAGE, Table, write_rounds_page
from medfedpure.reporting.job.rounds import curves, last_figures
from medfedpure.reporting.rendering import render

_ROUNDS = "job/rounds.html"
_COUNTS = (
    ("images", "images"),
    ("fooled", "classifier fooled"),
    ("flagged", "of these flagged"),
    ("restored", "of these restored"),
    ("benign_flagged", "unattacked flagged"),
    ("benign_kept", "unattacked verdicts kept"),
)


def write_federation_page(results: Mapping[str, Any], folder: Path) -> None:
    """Write report.html of one part, or of several and their defences, beside its results.json.

    Args:
        results: the content of results.json, with at least one round of each part that it holds.
        folder: where it is.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    if "phases" not in results:
        write_rounds_page(results, folder)
        return
    phases, made = results["phases"], results["defences"]
    tables, trainings = [_defences(made)], []
    for phase in phases:
        what = f"{phase['part']} {phase['plugin']} by {phase['strategy']}"
        found = last_figures(phase["history"])
        notes = [f"missing: {client}: {reason}" for client, reason in sorted(phase["missing"].items())]
        if "privacy" in phase:
            spent = phase["privacy"]
            notes.append(
                f"client-level privacy of the shared part: epsilon {spent['epsilon']:.2f} at delta {spent['delta']:g}"
            )
        title = f"{what}: every client after round {found.round} of {phase['rounds']}"
        tables.append(Table(title, [found.header, *found.rows], notes))
        trainings.append(curves(what, phase["history"]))
    parts = " and ".join(f"{phase['part']} {phase['plugin']}" for phase in phases)
    values = {
        "title": f"Federated training: {parts}",
        "lead": f"{len(made['done'])} of {len(made['done']) + len(made['failed'])} clients have a defence by the "
        f"recipe {made['recipe']!r} with the detector {made['detector']}, calibrated on their own images at a "
        f"false-positive rate of {made['target_fpr']:g}.",
        "tables": tables,
        "trainings": trainings,
    }
    write_bytes(folder / PAGE, render(_ROUNDS, values).encode())


def _defences(made: Mapping[str, Any]) -> Table:
    """What each client's trial counted, as far as it was told."""
    rows = [
        [client, *(f"{counts[key]:g}" if key in counts else "-" for key, _ in _COUNTS)]
        for client, counts in sorted(made["done"].items())
    ]
    notes = [f"no defence: {client}: {reason}" for client, reason in sorted(made["failed"].items())]
    notes.append(
        f"Counts of each client's trial, on images of no training and no calibration, as far as it tells them: "
        f"{made['attack']}. No evaluation."
    )
    return Table("The defences", [["client", *(title for _, title in _COUNTS)], *rows], notes)
