"""The pictures of `benchmarks.detection`: ROC curves, and histograms of scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.folds import CONTROL

Fold = dict[str, Any]
RATES = torch.logspace(-2.3, 0, 80, dtype=torch.float64)


def draw(folds: list[Fold], folder: Path, shown: Sequence[str]) -> None:
    """Write roc.png, all detectors, and scores.png, those named in `shown`, for the first attack."""
    folder.mkdir(parents=True, exist_ok=True)
    attack = next(iter(folds[0]["attacks"]))
    _roc(folds, attack).savefig(folder / "roc.png", dpi=100)
    _histograms(folds, attack, shown).savefig(folder / "scores.png", dpi=100)


def _roc(folds: list[Fold], attack: str) -> Figure:
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.subplots()
    for place, detector in enumerate(folds[0]["detectors"]):
        curves = [_curve(fold["detectors"][detector]["scores"], attack) for fold in folds if fold["groups"][attack]]
        style = "-" if place < 10 else "--"
        axes.plot(RATES, torch.stack(curves).mean(0), style, label=detector, linewidth=1.4)
    axes.plot(RATES, RATES, ":", color="grey", label="chance")
    axes.axvline(0.05, color="grey", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xticks([0.005, 0.01, 0.05, 0.1, 0.5, 1], ["0.5 %", "1 %", "5 %", "10 %", "50 %", "100 %"])
    axes.minorticks_off()
    axes.set(xlim=(float(RATES[0]), 1), ylim=(0, 1.01), title=f"static {attack}, mean over folds")
    axes.set(xlabel="benign images flagged (false-positive rate)", ylabel="attacked images flagged")
    figure.legend(loc="outside right center", fontsize=8)
    return figure


def _curve(scores: dict[str, list[float]], attack: str) -> Tensor:
    """The share of attacked images above the thresholds that give the benign rates `RATES`."""
    benign, attacked = (torch.tensor(scores[name], dtype=torch.float64) for name in ("benign", attack))
    thresholds = benign.quantile(1 - RATES)
    return (attacked[None] > thresholds[:, None]).double().mean(1)


def _histograms(folds: list[Fold], attack: str, shown: Sequence[str]) -> Figure:
    figure = Figure(figsize=(8, 2.4 * len(shown)), layout="constrained")
    bins = torch.linspace(-4, 3, 57)
    for axes, detector in zip(figure.subplots(len(shown), squeeze=False)[:, 0], shown, strict=True):
        for name, colour in (("benign", "tab:blue"), (CONTROL, "tab:green"), (attack, "tab:red")):
            relative = torch.cat([_relative(fold["detectors"][detector], name) for fold in folds])
            weights = torch.full((len(relative),), 1 / max(len(relative), 1))
            axes.hist(
                relative.clamp(-4, 3).numpy(),
                bins.tolist(),
                weights=weights.numpy(),
                alpha=0.5,
                color=colour,
                label=name,
            )
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(title=detector, ylabel="share of images", xlim=(-4, 3))
    axes.set(xlabel="log10 of the score, relative to the threshold of its fold (right of the line = flagged)")
    figure.axes[0].legend(fontsize=8)
    return figure


def _relative(row: dict[str, Any], name: str) -> Tensor:
    values = torch.tensor(row["scores"].get(name, []), dtype=torch.float64)
    return torch.log10(values.clamp_min(1e-12) / max(row["threshold"], 1e-12))
