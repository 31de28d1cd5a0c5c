"""Scan, attacked scan, perturbation, what the detector saw, purified scan, verdicts."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from medfedpure.core.storage import write_bytes
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import fooled, verdicts
from medfedpure.job.run import Job

_RIGHT, _WRONG, _INK = "#1a7f4b", "#c0392b", "#222222"


def save_gallery(job: Job, path: Path, *, rows: int = 6) -> None:
    """Write a PNG with one row for each chosen attacked test image, most telling ones first.

    Rows: attacks that fooled the bare classifier and were repaired, then one that the defence
    lost, then one that was not flagged, so that failures are shown beside successes.
    """
    chosen = [item for client in job.chains for item in _choose(job, client, max(1, rows // len(job.chains)))]
    titles = ("scan", "attacked", "perturbation x10", "detector saw", "classifier read", "verdicts")
    figure = Figure(figsize=(2.0 * len(titles) + 0.8, 2.12 * len(chosen) + 0.9))
    axes = figure.subplots(len(chosen), len(titles), squeeze=False)
    for axis_row, (client, place) in zip(axes, chosen, strict=True):
        _draw_row(axis_row, job, client, place)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10, color=_INK, pad=8)
    figure.suptitle(f"{job.result.attack}; {job.result.attacker}", fontsize=9, color=_INK, y=0.995)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110, facecolor="white")
    write_bytes(path, picture.getvalue())


def _choose(job: Job, client: str, count: int) -> list[tuple[str, int]]:
    """Positions in the client's test part: a repaired one first, then a lost one, then the rest."""
    measured, labels = job.measured[client], job.parts[client]["test"].labels
    benign, attacked = (verdicts(seen.bare_logits) for seen in (measured.benign, measured.defended))
    fallen = ~fooled(benign, labels) & fooled(attacked, labels)
    right = measured.defended.labels == labels
    kinds = (fallen & right, fallen & ~right, fallen & ~measured.defended.flagged, torch.ones_like(fallen))
    queues = [kind.nonzero().squeeze(1).tolist() for kind in kinds]
    picked: list[int] = []
    while len(picked) < min(count, len(labels)):
        for queue in queues:
            fresh = [place for place in queue if place not in picked]
            if fresh and len(picked) < count:
                picked.append(fresh[len(fresh) // 2])
    return [(client, place) for place in picked]


def _draw_row(axes: list[Axes], job: Job, client: str, place: int) -> None:
    measured, chain = job.measured[client], job.chains[client]
    test = job.parts[client]["test"]
    scan, attacked = test.batch(torch.tensor([place])).images, measured.attacked.images[place : place + 1]
    change = (0.5 + 10 * (attacked - scan)).clamp(0, 1)
    seen = None
    if chain.detector is not None:
        streams = Streams(job.result.config["seed"], test.ids[place : place + 1])
        with torch.no_grad():
            seen = chain.detector.suspicion_map(attacked, context=chain.context(), streams=streams)
    for axis, image in zip(axes, (scan, attacked, change), strict=False):
        _show(axis, image[0], gray=True)
    if seen is None:
        axes[3].text(0.5, 0.5, "no map", ha="center", va="center", color=_INK, fontsize=9)
        axes[3].set_axis_off()
    else:
        _show(axes[3], seen[0], gray=False)
    _show(axes[4], measured.defended.images[place], gray=True)
    axes[0].set_ylabel(client, fontsize=9, color=_INK)
    _verdicts(axes[5], job, client, place)


def _show(axis: Axes, image: Tensor, *, gray: bool) -> None:
    pixels = image.permute(1, 2, 0).numpy()
    if gray:
        axis.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    else:
        axis.imshow(pixels[..., 0], cmap="magma")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _verdicts(axis: Axes, job: Job, client: str, place: int) -> None:
    measured, test = job.measured[client], job.parts[client]["test"]
    truth, defended = int(test.labels[place]), measured.defended
    flagged = bool(defended.flagged[place])
    assert defended.scores is not None
    assert defended.p_values is not None
    lines = [(f"truth: {test.class_names[truth]}", _INK)]
    for label, logits in (
        ("scan", measured.benign.bare_logits[place]),
        ("attacked", defended.bare_logits[place]),
        ("defended", defended.logits[place]),
    ):
        share = logits.softmax(0)
        verdict = int(share.argmax())
        colour = _RIGHT if verdict == truth else _WRONG
        lines.append((f"{label}: {test.class_names[verdict]} {float(share[verdict]):.0%}", colour))
    lines.append((f"{'flagged' if flagged else 'not flagged'}, p = {float(defended.p_values[place]):.3f}", _INK))
    for number, (text, colour) in enumerate(lines):
        axis.text(0.0, 0.86 - 0.18 * number, text, fontsize=9, color=colour, transform=axis.transAxes)
    axis.set_axis_off()
