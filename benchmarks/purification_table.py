"""The table of `benchmarks.purification`, from the folds as they were stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.folds import NOTES, Setting
from medfedpure.figures.intervals import Interval, cluster_bootstrap
from medfedpure.figures.metrics import classification_figures

Fold = dict[str, Any]
CHAINS = (
    "ddpm, flagged only",
    "ddpm from t* = 60, flagged only",
)
ANCHORS = ("diffpure t* = 100", "diffpure t* = 150")
DRAWS = 500


def markdown(setting: Setting, part: str, folds: list[Fold]) -> str:
    """A table for each input, the paired differences of the chains to the anchors, and the conditions."""
    arms = [arm for arm in folds[0]["arms"] if all(arm in fold["arms"] for fold in folds)]
    lines = [f"Measured on the {part} parts{NOTES[part]}", ""]
    for kind in next(iter(folds[0]["arms"].values()))["inputs"]:
        lines += [f"**{kind}**", "", *_table(folds, arms, kind), ""]
    for chain in CHAINS:
        for anchor in ANCHORS:
            if anchor in arms and chain in arms:
                lines += [*_against(folds, chain, anchor), ""]
    return "\n".join([*lines, *_conditions(setting, folds)])


def _table(folds: list[Fold], arms: list[str], kind: str) -> list[str]:
    heads = ["purifier", "balanced accuracy (95 %)", "sensitivity", "specificity", "purified", "NFE", "GMACs", "cost"]
    lines = [_line([*heads, "PSNR", "SSIM"]), "|" + "---|" * 10]
    for arm in arms:
        figures = _figures(folds, arm, kind)
        low, high = _interval(folds, lambda rows, arm=arm: _balanced(folds, arm, kind, rows))  # type: ignore[misc]
        moved = any(any(fold["arms"][arm]["inputs"][kind]["purified"]) for fold in folds)
        cells = [
            arm,
            f"{100 * figures.balanced_accuracy:.1f} ({100 * low:.1f} to {100 * high:.1f})",
            f"{100 * figures.sensitivity:.1f}",
            f"{100 * figures.specificity:.1f}",
            f"{_mean(folds, arm, kind, 'purified'):.0%}",
            f"{_mean(folds, arm, kind, 'nfe'):.1f}",
            f"{_mean(folds, arm, kind, 'gmacs'):.2f}",
            f"{_mean(folds, arm, kind, 'times'):.1f}",
            f"{_mean(folds, arm, kind, 'psnr'):.1f}" if moved or kind != "benign" else "",
            f"{_mean(folds, arm, kind, 'ssim'):.3f}" if moved or kind != "benign" else "",
        ]
        lines.append(_line(cells))
    return lines


def _against(folds: list[Fold], chain: str, anchor: str) -> list[str]:
    """A chain minus an anchor, on the same images, and what each spends."""
    lines = []
    for kind in folds[0]["arms"][chain]["inputs"]:
        _, _, groups = _columns(folds, chain, kind)
        everything = torch.arange(len(groups))

        def gap(rows: Tensor, kind: str = kind, spared: bool = False) -> float:
            return _balanced(folds, chain, kind, rows, spared) - _balanced(folds, anchor, kind, rows, spared)

        low, high = _interval(folds, gap)
        beside = ""
        if kind != "benign":

            def narrow(rows: Tensor, kind: str = kind) -> float:
                return gap(rows, kind, spared=True)

            least, most = _interval(folds, narrow)
            beside = (
                f", or {100 * narrow(everything):+.1f} ({100 * least:+.1f} to {100 * most:+.1f}) where images that the "
                "bare classifier misreads are not attacked"
            )
        theirs, ours = (_mean(folds, arm, kind, "nfe") for arm in (anchor, chain))
        theirs_macs, ours_macs = (_added(folds, arm, kind) for arm in (anchor, chain))
        lines.append(
            f"- {chain} minus {anchor}, {kind}: {100 * gap(everything):+.1f} points of balanced accuracy "
            f"({100 * low:+.1f} to {100 * high:+.1f}){beside}; {ours:.1f} NFE against {theirs:.0f}, "
            f"{theirs / ours:.0f}x fewer; {ours_macs:.2f} GMACs beyond the classifier's own pass against "
            f"{theirs_macs:.1f}, {theirs_macs / ours_macs:.0f}x less"
        )
    return lines


def _added(folds: list[Fold], arm: str, kind: str) -> float:
    """MACs beyond those of one classifier pass for each image: detector, purifier, and further passes.

    Where everything is purified, the pass over the unpurified image, which our chain reports, is left out too.
    """
    passes = 2 if _mean(folds, arm, kind, "purified") == 1 else 1
    return _mean(folds, arm, kind, "gmacs") - passes * _mean(folds, "bare", kind, "gmacs")


def _columns(folds: list[Fold], arm: str, kind: str) -> tuple[Tensor, Tensor, Tensor]:
    """Verdicts, labels and groups of all folds."""
    verdicts = [place for fold in folds for place in fold["arms"][arm]["inputs"][kind]["labels"]]
    labels = [place for fold in folds for place in fold["labels"]]
    groups = [place for fold in folds for place in fold["groups"]]
    return torch.tensor(verdicts), torch.tensor(labels), torch.tensor(groups)


def _figures(folds: list[Fold], arm: str, kind: str) -> Any:
    verdicts, labels, _ = _columns(folds, arm, kind)
    return classification_figures(verdicts, labels, int(labels.max()) + 1)


def _balanced(folds: list[Fold], arm: str, kind: str, rows: Tensor, spared: bool = False) -> float:
    """Of some rows; where misread images are spared, with the benign verdicts on what the bare classifier misreads."""
    verdicts, labels, _ = _columns(folds, arm, kind)
    if spared:
        misread = _columns(folds, "bare", "benign")[0] != labels
        verdicts = torch.where(misread, _columns(folds, arm, "benign")[0], verdicts)
    if len(labels[rows].unique()) < len(labels.unique()):
        return float("nan")
    return classification_figures(verdicts[rows], labels[rows], int(labels.max()) + 1).balanced_accuracy


def _interval(folds: list[Fold], statistic: Callable[[Tensor], float]) -> Interval:
    groups = torch.tensor([group for fold in folds for group in fold["groups"]])
    return cluster_bootstrap(statistic, groups, draws=DRAWS)


def _mean(folds: list[Fold], arm: str, kind: str, what: str) -> float:
    """Over all images; costs are stored as one mean for each fold."""
    total = count = 0.0
    for fold in folds:
        value, size = fold["arms"][arm]["inputs"][kind][what], len(fold["labels"])
        total += sum(value) if isinstance(value, list) else value * size
        count += size
    return total / count


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _conditions(setting: Setting, folds: list[Fold]) -> list[str]:
    labels = [label for fold in folds for label in fold["labels"]]
    groups = {group for fold in folds for group in fold["groups"]}
    return [
        f"- {setting.data}, {setting.size} px: {len(labels)} images in {len(groups)} groups, over {len(folds)} of "
        f"{setting.folds} grouped folds; {setting.reader()}; one diffusion model "
        f"for every arm, {setting.denoiser_steps} steps",
        *[f"- {name} = {text}; static: the attacker ignores the defence" for name, text in folds[0]["attacks"].items()],
        "- NFE: evaluations of the purifier's network for each image, the detector's and every draw's included; "
        "GMACs: of everything, the classifier's passes included; cost: time relative to the bare "
        "classifier on the same images just before, mean over folds; "
        "PSNR and SSIM: of what the classifier reads, to the benign image; intervals: "
        "bootstrap over near-duplicate groups",
    ]
