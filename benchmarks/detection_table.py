"""The tables of `benchmarks.detection`, from the folds as they were stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.folds import AT_MOST, CONTROL, NOTES, Setting
from medfedpure.figures.intervals import cluster_bootstrap, realised_fpr_interval
from medfedpure.figures.metrics import auroc, average_precision, true_positive_rate

Fold = dict[str, Any]
PAPER_SHARE = 0.18
UNKNOWN = "not measured"
PAPER_SCORE = "mae reconstruction (paper)"
FIGURES: tuple[tuple[str, Callable[[Tensor, Tensor], float]], ...] = (
    ("AUPR", average_precision),
    ("TPR at 1 % FPR", lambda benign, attacked: true_positive_rate(benign, attacked, 0.01)),
    ("TPR at 5 % FPR", lambda benign, attacked: true_positive_rate(benign, attacked, 0.05)),
)


def markdown(setting: Setting, part: str, folds: list[Fold]) -> str:
    """A table for each attack, one of benign images and costs, what was tried, and the paper's rank rule."""
    detectors = [name for name in folds[0]["detectors"] if all(_scored(fold, name) for fold in folds)]
    lines = [f"**Measured on the {part} parts{NOTES[part]}**", ""]
    for attack in folds[0]["attacks"]:
        lines += [*_attack_table(folds, detectors, attack), ""]
    lines += [*_benign_table(folds, detectors), "", *_conditions(setting, folds), ""]
    if PAPER_SCORE in detectors:
        lines += _rank_rule(folds)
    return "\n".join(lines)


def _scored(fold: Fold, detector: str) -> bool:
    """Whether a detector was measured on everything in this fold."""
    scores = fold["detectors"].get(detector, {"scores": {}})["scores"]
    return all(name in scores for name, places in fold["groups"].items() if places)


def _attack_table(folds: list[Fold], detectors: list[str], attack: str) -> list[str]:
    count = sum(len(fold["groups"][attack]) for fold in folds)
    if not count:
        return [f"{attack}: no attack succeeded"]
    heads = ["detector", "AUROC (95 %)", *[name for name, _ in FIGURES], "flagged"]
    lines = [f"{attack}, {count} successful attacks", "", *_head(heads)]
    for detector in detectors:
        low, high = _interval(folds, detector, attack)
        cells = [detector, f"{_weighted(folds, detector, attack, auroc):.3f} ({low:.3f} to {high:.3f})"]
        cells += [f"{_weighted(folds, detector, attack, figure):.3f}" for _, figure in FIGURES]
        hits = [
            _above(fold["detectors"][detector], attack) * len(fold["groups"][attack])
            for fold in folds
            if fold["groups"][attack]
        ]
        lines.append(_line([*cells, f"{sum(hits) / max(count, 1):.3f}"]))
    return lines


def _benign_table(folds: list[Fold], detectors: list[str]) -> list[str]:
    """What a detector does to benign images, what it costs, and whether it lies on the Pareto front."""
    attack = next(iter(folds[0]["attacks"]))
    points = {
        detector: (
            _mean([row["throughput"] for row in (f["detectors"][detector] for f in folds) if "throughput" in row]),
            _weighted(folds, detector, attack, auroc),
        )
        for detector in detectors
    }
    heads = ["detector", "benign flagged", "one of each group", "noise flagged", "throughput kept", "cost"]
    lines = [*_head([*heads, "noise share", f"best of its price on {attack}"])]
    for detector, (kept, area) in points.items():
        rows = [fold["detectors"][detector] for fold in folds]
        rates = [_realised(fold, detector) for fold in folds]
        inside = sum(low <= rate <= high for rate, low, high in rates)
        beaten = any((a > area and k >= kept) or (a >= area and k > kept) for k, a in points.values())
        cells = [
            detector,
            f"{_mean([_above(row, 'benign') for row in rows]):.3f}",
            f"{_mean([rate for rate, _, _ in rates]):.3f}, foreseen in {inside} of {len(folds)} folds",
            f"{_mean([_above(row, CONTROL) for row in rows]):.3f}",
            *([UNKNOWN, UNKNOWN] if math.isnan(kept) else [f"{kept:.2f}", f"{1 / kept - 1:.1f}"]),
            f"{_mean([row['noise_share'] for row in rows]):.3f}",
            UNKNOWN if math.isnan(kept) else "no" if beaten else "**yes**",
        ]
        lines.append(_line(cells))
    return lines


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _weighted(folds: list[Fold], detector: str, attack: str, figure: Callable[[Tensor, Tensor], float]) -> float:
    """The mean over folds, weighted by attacked images: scores of different folds are not compared."""
    total = weight = 0.0
    for fold in folds:
        scores = fold["detectors"][detector]["scores"]
        if scores.get(attack):
            total += len(scores[attack]) * figure(_tensor(scores["benign"]), _tensor(scores[attack]))
            weight += len(scores[attack])
    return total / weight if weight else math.nan


def _interval(folds: list[Fold], detector: str, attack: str) -> tuple[float, float]:
    """Of the AUROC, by drawing near-duplicate groups of all folds with replacement."""
    scores, groups, flags, fold_of = [], [], [], []
    for place, fold in enumerate(folds):
        for kind in ("benign", attack):
            values = fold["detectors"][detector]["scores"].get(kind, [])
            scores += values
            groups += fold["groups"][kind]
            flags += [kind == attack] * len(values)
            fold_of += [place] * len(values)
    value, group = _tensor(scores), torch.tensor(groups)
    attacked, where = torch.tensor(flags), torch.tensor(fold_of)

    def figure(drawn: Tensor) -> float:
        total = weight = 0.0
        for place in range(len(folds)):
            own = drawn[where[drawn] == place]
            benign, fooled = value[own[~attacked[own]]], value[own[attacked[own]]]
            if len(benign) and len(fooled):
                total += len(fooled) * auroc(benign, fooled)
                weight += len(fooled)
        return total / weight if weight else math.nan

    return cluster_bootstrap(figure, group, draws=300)


def _realised(fold: Fold, detector: str) -> tuple[float, float, float]:
    """Of the first benign image of each group, the share that is flagged, and the interval the calibration foresees."""
    row, seen, kept = fold["detectors"][detector], set(), []
    for group, score in zip(fold["groups"]["benign"], row["scores"]["benign"], strict=True):
        if group not in seen:
            seen.add(group)
            kept.append(score > row["threshold"])
    low, high = realised_fpr_interval(len(kept), rank=row["rank"], calibration=row["calibration"])
    return sum(kept) / len(kept), low, high


def _conditions(setting: Setting, folds: list[Fold]) -> list[str]:
    images = sum(len(fold["groups"]["benign"]) for fold in folds)
    groups = len({group for fold in folds for group in fold["groups"]["benign"]})
    clean = _mean([fold["clean_balanced_accuracy"] for fold in folds])
    calibration = sorted({row["calibration"] for fold in folds for row in fold["detectors"].values()})
    few = ", ".join(f"{name} {most}" for name, most in AT_MOST.items())
    return [
        f"- {setting.data}, {setting.size} px, at most {setting.max_per_group} images of a group; {images} images in "
        f"{groups} groups, over {len(folds)} of {setting.folds} grouped folds",
        f"- {setting.reader()}: clean balanced accuracy {clean:.3f}; diffusion "
        f"model, {setting.denoiser_steps} steps; masked autoencoder, {setting.autoencoder_steps} steps; thresholds "
        f"from {calibration[0]} to {calibration[-1]} images, one of each group, for 5 % false positives",
        *[
            f"- {name} = {what}; static: the attacker ignores the defence; fooled the bare classifier on "
            f"{_mean([fold['success'][name] for fold in folds]):.0%} of the images tried, which it reads correctly"
            for name, what in folds[0]["attacks"].items()
        ],
        f"- tried on few images of a fold, of all classes and one of each group first: {few}",
        "- flagged: at the calibrated threshold; intervals: bootstrap over near-duplicate groups; noise flagged: "
        "uniform noise of the same eps; throughput kept: of the bare classifier's images per second, batch 32; cost: "
        "added, in passes of the classifier; noise share: variance of a score over seeds (masks and noise), relative "
        "to that over images",
    ]


def _rank_rule(folds: list[Fold]) -> list[str]:
    """The paper's rule: the 18 % of a batch with the largest reconstruction error are flagged."""
    attack = next(iter(folds[0]["attacks"]))
    caught, wrong = [], []
    for fold in folds:
        scores = fold["detectors"][PAPER_SCORE]["scores"]
        benign, attacked = _tensor(scores["benign"]), _tensor(scores.get(attack, []))
        mixed = torch.cat((benign, attacked))
        threshold = mixed.sort(descending=True).values[max(int(PAPER_SHARE * len(mixed)) - 1, 0)]
        caught.append(float((attacked >= threshold).double().mean()))
        wrong.append(float((benign >= threshold).double().mean()))
    return [
        f"The paper's rank rule (the {PAPER_SHARE:.0%} of a batch with the largest reconstruction error; it depends on "
        f"the batch, and exists in this benchmark only), on a batch of all benign and all successful {attack} images: "
        f"{_mean(caught):.3f} of the attacked and {_mean(wrong):.3f} of the benign images are flagged."
    ]


def _above(row: dict[str, Any], kind: str) -> float:
    return float((_tensor(row["scores"][kind]) > row["threshold"]).double().mean())


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
