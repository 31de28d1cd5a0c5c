"""The table of `benchmarks.detection`, from the folds as they were stored."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.intervals import cluster_bootstrap, realised_fpr_interval
from medfedpure.core.metrics import auroc, true_positive_rate

Fold = dict[str, Any]
PAPER_SHARE = 0.18


def markdown(folds: list[Fold]) -> str:
    """One row for each detector and attack; then what was tried, and the paper's rank rule."""
    if not folds:
        return "no fold has been computed yet"
    first = folds[0]
    lines = [
        "| detector | attack | AUROC (95 % interval) | TPR at 1 % FPR | TPR at 5 % FPR | caught at the threshold "
        "| benign flagged | noise flagged | throughput kept | noise share |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for detector in first["detectors"]:
        for attack in first["attacks"]:
            lines.append(_row(folds, detector, attack))
    lines += ["", *_conditions(folds), "", *_rank_rule(folds)]
    return "\n".join(lines)


def _row(folds: list[Fold], detector: str, attack: str) -> str:
    rows = [fold["detectors"][detector] for fold in folds]
    low, high = _interval(folds, detector, attack)
    flagged = {
        kind: _mean([_above(row, kind) for row in rows if kind in row["scores"]])
        for kind in ("benign", attack, "uniform noise")
    }
    inside = sum(_fpr_is_inside(fold, detector) for fold in folds)
    cells = [
        detector,
        attack,
        f"{_weighted(folds, detector, attack, auroc):.3f} ({low:.3f} to {high:.3f})",
        f"{_weighted(folds, detector, attack, lambda b, a: true_positive_rate(b, a, 0.01)):.3f}",
        f"{_weighted(folds, detector, attack, lambda b, a: true_positive_rate(b, a, 0.05)):.3f}",
        f"{flagged[attack]:.3f}",
        f"{flagged['benign']:.3f}, expected in {inside} of {len(folds)} folds",
        f"{flagged['uniform noise']:.3f}",
        f"{_mean([row['throughput'] for row in rows]):.2f}",
        f"{_mean([row['noise_share'] for row in rows]):.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _weighted(folds: list[Fold], detector: str, attack: str, figure: Any) -> float:
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
    kinds = ("benign", attack)
    scores, groups, flags, fold_of = [], [], [], []
    for place, fold in enumerate(folds):
        for kind in kinds:
            values = fold["detectors"][detector]["scores"].get(kind, [])
            scores += values
            groups += fold["groups"][kind][: len(values)]
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


def _fpr_is_inside(fold: Fold, detector: str) -> bool:
    """Whether the first benign image of each group is flagged as often as the calibration foresees."""
    row, seen, kept = fold["detectors"][detector], set(), []
    for group, score in zip(fold["groups"]["benign"], row["scores"]["benign"], strict=True):
        if group not in seen:
            seen.add(group)
            kept.append(score > row["threshold"])
    low, high = realised_fpr_interval(len(kept), rank=row["rank"], calibration=row["calibration"])
    return low <= sum(kept) / len(kept) <= high


def _conditions(folds: list[Fold]) -> list[str]:
    first = folds[0]
    setting, budget = first["setting"], first["setting"]["budget"]
    counts = {
        name: sum(len(next(iter(fold["detectors"].values()))["scores"].get(name, [])) for fold in folds)
        for name in ("benign", *first["attacks"])
    }
    clean = _mean([fold["clean_balanced_accuracy"] for fold in folds])
    return [
        f"- {setting['data']}, {setting['size']} px, at most {setting['max_per_group']} images of a group, "
        f"{len(folds)} of {setting['folds']} grouped folds; {counts['benign']} benign test images",
        f"- {setting['classifier']}, {budget['classifier']} steps: clean balanced accuracy {clean:.3f}",
        f"- diffusion model {budget['denoiser']} steps, masked autoencoder {budget['autoencoder']} steps",
        *[
            f"- {name} = {what}; static: the attacker ignores the defence; {counts[name]} successful, "
            f"{_mean([fold['success'][name] for fold in folds]):.0%} of those tried on images classified correctly"
            for name, what in first["attacks"].items()
        ],
        "- noise flagged: uniform noise of the same eps; throughput kept: of the bare classifier's images per second; "
        "noise share: variance of a score over seeds, relative to that over images",
    ]


def _rank_rule(folds: list[Fold]) -> list[str]:
    """The paper's rule: the 18 % of a batch with the largest reconstruction error are flagged."""
    detector, attack = "mae reconstruction", "pgd"
    caught, wrong = [], []
    for fold in folds:
        scores = fold["detectors"][detector]["scores"]
        benign, attacked = _tensor(scores["benign"]), _tensor(scores.get(attack, []))
        mixed = torch.cat((benign, attacked))
        threshold = mixed.sort(descending=True).values[max(int(PAPER_SHARE * len(mixed)) - 1, 0)]
        caught.append(float((attacked >= threshold).double().mean()))
        wrong.append(float((benign >= threshold).double().mean()))
    return [
        f"The paper's rank rule (the {PAPER_SHARE:.0%} of a batch with the largest reconstruction error; it depends on "
        f"the batch, and exists in this benchmark only), on a batch of all benign and all {attack} images: "
        f"{_mean(caught):.3f} of the attacked and {_mean(wrong):.3f} of the benign images are flagged."
    ]


def _above(row: dict[str, Any], kind: str) -> float:
    return float((_tensor(row["scores"][kind]) > row["threshold"]).double().mean())


def _tensor(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
