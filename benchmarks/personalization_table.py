"""The tables of `benchmarks.personalization`, from the runs as they were stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.personalization_regimes import Regime
from medfedpure.figures.intervals import Interval, cluster_bootstrap

Run = dict[str, dict[str, Any]]
"""One seed: what was measured, by arm."""
DRAWS = 5000


def markdown(name: str, regime: Regime, seeds: Sequence[int], runs: Sequence[Run]) -> str:
    """The table of a regime, its claims with paired differences, and the conditions."""
    kinds = ["benign"] if regime.attack is None else ["benign", "attacked"]
    lines = [f"**{name}**", ""]
    heads = ["strategy"]
    for kind in kinds:
        heads += [f"{kind} (95 %)", *(f"seed {seed}" for seed in seeds), "worst client"]
    lines += [_line(heads), "|" + "---|" * len(heads)]
    lines.append(_line(["majority class", *(["50.0", *["50.0"] * len(seeds), "50.0"] * len(kinds))]))
    for arm in regime.arms:
        cells = [arm]
        for kind in kinds:
            values, low_high = _values(runs, arm, kind), _interval(_values(runs, arm, kind))
            cells.append(f"{100 * values.mean():.1f} ({100 * low_high[0]:.1f} to {100 * low_high[1]:.1f})")
            cells += [f"{100 * own.mean():.1f}" for own in values]
            cells.append(f"{100 * values.min():.1f}")
        lines.append(_line(cells))
    lines.append("")
    for better, worse in regime.claims:
        gap, (low, high) = gap_of(regime, runs, better, worse)
        verdict = "MISSED" if gap <= 0 else "met" if low > 0 else "met on average, not beyond doubt"
        lines.append(
            f"- {verdict}: {better} above {worse}, {kinds[-1]}: {100 * gap:+.1f} points "
            f"({100 * low:+.1f} to {100 * high:+.1f})"
        )
    lines += ["", f"{regime.describe()}."]
    if regime.attack is not None:
        settings = ", ".join(f"{key} {value}" for key, value in regime.attack.items())
        lines.append(f"Attacked: pgd, {settings}, static, no random start, on each client's own undefended model.")
        hardened = next(arm.options["adversarial"] for arm in regime.arms.values() if "adversarial" in arm.options)
        lines.append(f"Adversarial training: {', '.join(f'{key} {value}' for key, value in hardened.items())}.")
    return "\n".join([*lines, ""])


def missed(regime: Regime, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """The claims that the mean contradicts."""
    return [claim for claim in regime.claims if gap_of(regime, runs, *claim)[0] <= 0]


def gap_of(regime: Regime, runs: Sequence[Run], better: str, worse: str) -> tuple[float, Interval]:
    """Mean difference of balanced accuracy over clients and seeds, under attack where there is one; its interval."""
    kind = "benign" if regime.attack is None else "attacked"
    gaps = _values(runs, better, kind) - _values(runs, worse, kind)
    return float(gaps.mean()), _interval(gaps)


def _values(runs: Sequence[Run], arm: str, kind: str) -> Tensor:
    """Balanced accuracy, `(seeds, clients)`."""
    return torch.tensor([list(run[arm][kind].values()) for run in runs], dtype=torch.float64)


def _interval(values: Tensor) -> Interval:
    """Of the mean when clients of all seeds are drawn with replacement."""
    flat = values.flatten()
    return cluster_bootstrap(lambda rows: float(flat[rows].mean()), torch.arange(len(flat)), draws=DRAWS)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
