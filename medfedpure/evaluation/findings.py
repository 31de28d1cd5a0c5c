"""What the results of an evaluation say about themselves: see `medfedpure.evaluation.reliability`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medfedpure.evaluation.records import RungResult
from medfedpure.evaluation.reliability import LEFT, clearly_more


def compare(rungs: Sequence[RungResult], checks: Sequence[RungResult], labels: Tensor, stochastic: bool) -> list[str]:
    """Why these results must not be believed; nothing where there is no reason.

    Args:
        rungs: of one defence, on all images `(N,)`.
        checks: of the same, on the first few.
        labels: `(N,)` int64.
        stochastic: two answers of the defence to one image may differ.
    """
    found = [f"{result.rung}: {result.problem}" for result in (*rungs, *checks) if result.problem]
    for eps in dict.fromkeys(result.eps for result in rungs):
        found += _within({result.rung: result for result in rungs if result.eps == eps and result.reading}, labels, eps)
    unseen = [r for r in rungs if r.kind == "white-box" and r.skipped and r.rung in ("orthogonal", "joint")]
    found += [f"no attacker who knows the detector: {r.rung} at eps {r.eps:.4g}: {r.skipped}" for r in unseen[:1]]
    if stochastic:
        blind = [r.rung for r in rungs if r.kind == "white-box" and r.reading is not None and r.eot == 1]
        if blind:
            found.append(f"a stochastic defence was attacked without EoT: {', '.join(dict.fromkeys(blind))}")
    return found + _sweep(rungs, checks, labels)


def _within(found: dict[str, RungResult], labels: Tensor, eps: float) -> list[str]:
    """Rungs of one eps against each other."""
    fell = {name: result.reading.fooled(labels) for name, result in found.items() if result.reading is not None}
    reasons = []
    for stronger, weaker in (("exact", "bpda"), ("exact", "static"), ("joint", "static")):
        if stronger in fell and weaker in fell and clearly_more(fell[weaker], fell[stronger]):
            reasons.append(
                f"eps {eps:.4g}: {stronger} is weaker than {weaker} ({int(fell[stronger].sum())} against "
                f"{int(fell[weaker].sum())} images fooled): the gradient is masked, or its attack too short"
            )
    gradients = [name for name in fell if found[name].kind in ("white-box", "replayed")]
    if gradients:
        best = max(gradients, key=lambda name: int(fell[name].sum()))
        for name in fell:
            if found[name].kind in ("black-box", "control") and clearly_more(fell[name], fell[best]):
                reasons.append(
                    f"eps {eps:.4g}: {name}, without gradients, fools {int(fell[name].sum())} images, and the best "
                    f"gradient attack, {best}, {int(fell[best].sum())}: gradients are masked"
                )
    return reasons


def _sweep(rungs: Sequence[RungResult], checks: Sequence[RungResult], labels: Tensor) -> list[str]:
    """More steps, looks or eps must not help the defender; a huge eps must leave next to nothing."""
    if not checks or not rungs:
        return []
    base = checks[0].rung.split(",")[0]
    main = next((r for r in rungs if r.rung == base and r.eps == rungs[0].eps and r.reading is not None), None)
    size = max((len(r.reading.flagged) for r in checks if r.reading is not None), default=0)
    fell = {r.rung.split(", ", 1)[1]: r.reading.fooled(labels[:size]) for r in checks if r.reading is not None}
    reasons = []
    if main is not None and main.reading is not None:
        fell["the attack itself"] = main.reading.fooled(labels)[:size]
    for weaker, stronger, what in (
        ("half eps", "the attack itself", "a larger eps"),
        ("the attack itself", "double eps", "a larger eps"),
        ("a quarter of the steps", "the attack itself", "more steps"),
        ("EoT 1", "the attack itself", "more EoT looks"),
    ):
        if weaker in fell and stronger in fell and clearly_more(fell[weaker], fell[stronger]):
            reasons.append(
                f"{what} helps the defender: {base} fools {int(fell[weaker].sum())} images with {weaker}, "
                f"{int(fell[stronger].sum())} with {stronger}"
            )
    for width in (name for name in fell if name.startswith("gate bandwidth")):
        if "the attack itself" in fell and clearly_more(fell[width], fell["the attack itself"]):
            reasons.append(
                f"{base} with {width} fools {int(fell[width].sum())} images, with 1 "
                f"{int(fell['the attack itself'].sum())}: its gradient through the gate is not the best one"
            )
    large = fell.get("large eps")
    if large is not None and len(large):
        left = torch.nonzero(~large).numel()
        if left / len(large) > LEFT and left > 1:
            eps = next(r.eps for r in checks if r.rung.endswith("large eps"))
            reasons.append(
                f"{left} of {len(large)} images survive eps {eps:g}, which nothing can survive: gradients are masked"
            )
    return reasons
