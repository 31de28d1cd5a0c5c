"""Evaluations of grouped folds as one, over the images of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from medfedpure.core.errors import ConfigError
from medfedpure.core.evaluation_results import ArmResult, Evaluation, RungResult
from medfedpure.core.findings import compare
from medfedpure.core.readings import Reading

Joined = Callable[[Sequence[Sequence[Any]]], list[Any]]
"""One value for each image of each part, as one list."""


def merge(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation over the images of several, as of grouped folds, each attacked against its own defences.

    The images that self-checks looked at come first, part after part, then the others. Rungs and checks are compared
    over all images together; what was probed in one part keeps its number.

    What was merged before can be merged with more, as with folds that another machine measured.

    Raises:
        ConfigError: parts that differ in defences, rungs, checks, eps or strength, or two of the same images.
    """
    first = parts[0]
    images = [setting["images"] for part in parts for setting in part.setting.get("merged", [part.setting])]
    if len(set(images)) < len(images):
        raise ConfigError("two of the evaluations are of the same images: merge each fold once")
    for part in parts[1:]:
        same = (part.norm, part.eps, part.note, part.class_names) == (
            first.norm,
            first.eps,
            first.note,
            first.class_names,
        )
        if not same or [_shape(arm) for arm in part.arms] != [_shape(arm) for arm in first.arms]:
            raise ConfigError("only evaluations of the same defences, rungs, checks, eps and strength can be merged")
    joined = _joiner([len(part.labels) for part in parts], [_checked(part) for part in parts])
    labels = joined([part.labels for part in parts])
    return first.model_copy(
        update={
            "setting": {"merged": _in_turn([part.setting.get("merged", [part.setting]) for part in parts])},
            "labels": labels,
            "groups": joined([part.groups for part in parts]),
            "arms": [_arm(arms, parts, labels, joined) for arms in zip(*(part.arms for part in parts), strict=True)],
            "gradients": sum(part.gradients for part in parts),
            "seconds": sum(part.seconds for part in parts),
            "peak_memory_mb": max((p.peak_memory_mb for p in parts if p.peak_memory_mb is not None), default=None),
        }
    )


def _shape(arm: ArmResult) -> list[Any]:
    attacks = [(found.rung, found.norm, found.eps) for found in (*arm.rungs, *arm.checks)]
    return [arm.name, arm.policy, arm.parts, arm.precision, *attacks]


def _checked(part: Evaluation) -> int:
    """How many of a part's first images its checks looked at."""
    sizes = [len(check.reading.flagged) for arm in part.arms for check in arm.checks if check.reading is not None]
    return max(sizes, default=0)


def _joiner(sizes: Sequence[int], heads: Sequence[int]) -> Joined:
    """Joins lists of so many values; the heads of all come first."""
    starts = [0, *accumulate(sizes)]
    order = [start + place for start, head in zip(starts, heads, strict=False) for place in range(head)]
    for start, head, size in zip(starts, heads, sizes, strict=False):
        order += range(start + head, start + size)

    def joined(values: Sequence[Sequence[Any]]) -> list[Any]:
        flat = _in_turn(values)
        return [flat[place] for place in order]

    return joined


def _in_turn(values: Sequence[Sequence[Any]]) -> list[Any]:
    return [value for part in values for value in part]


def _arm(arms: Sequence[ArmResult], parts: Sequence[Evaluation], labels: Sequence[int], joined: Joined) -> ArmResult:
    rungs = [_rung(found, joined) for found in zip(*(arm.rungs for arm in arms), strict=True)]
    checks = [_rung(found, _in_turn) for found in zip(*(arm.checks for arm in arms), strict=True)]
    probed = []
    for place, (arm, part) in enumerate(zip(arms, parts, strict=True)):
        of_part = set(compare(arm.rungs, arm.checks, torch.tensor(part.labels), arm.stochastic))
        probed += [f"part {place}: {reason}" for reason in arm.unreliable if reason not in of_part]
    return arms[0].model_copy(
        update={
            "bare_wrong": joined([arm.bare_wrong for arm in arms]),
            "clean": _reading([arm.clean for arm in arms], joined),
            "rungs": rungs,
            "checks": checks,
            "unreliable": probed + compare(rungs, checks, torch.tensor(labels), arms[0].stochastic),
        }
    )


def _rung(rungs: Sequence[RungResult], joined: Joined) -> RungResult:
    """A rung that is missing in one part is missing in the whole: its reason is kept."""
    readings = [rung.reading for rung in rungs if rung.reading is not None]
    whole = len(readings) == len(rungs)
    attacked = whole and all(rung.success for rung in rungs)  # a control has no attacker
    return rungs[0].model_copy(
        update={
            "view": next((rung.view for rung in rungs if rung.view), ""),
            "seconds": sum(rung.seconds for rung in rungs),
            "reading": _reading(readings, joined) if whole else None,
            "success": joined([rung.success for rung in rungs]) if attacked else [],
            "distance": joined([rung.distance for rung in rungs]) if attacked else [],
            "skipped": next((rung.skipped for rung in rungs if rung.skipped), ""),
            "problem": next((rung.problem for rung in rungs if rung.problem), ""),
        }
    )


def _reading(readings: Sequence[Reading], joined: Joined) -> Reading:
    sizes = [len(reading.flagged) for reading in readings]

    def mean(values: Sequence[float]) -> float:
        return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)

    errors = [reading.ece for reading in readings if reading.ece is not None]
    scores = [reading.scores for reading in readings if reading.scores is not None]
    draws = min(len(reading.verdicts) for reading in readings)
    return Reading(
        verdicts=[joined([reading.verdicts[draw] for reading in readings]) for draw in range(draws)],
        flagged=joined([reading.flagged for reading in readings]),
        purified=joined([reading.purified for reading in readings]),
        scores=joined(scores) if len(scores) == len(readings) else None,
        nfe=mean([reading.nfe for reading in readings]),
        ms=mean([reading.ms for reading in readings]),
        ece=mean(errors) if len(errors) == len(readings) else None,
    )
