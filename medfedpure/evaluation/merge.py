"""Evaluations of grouped folds as one, over the images of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from medfedpure.core.errors import ConfigError
from medfedpure.evaluation.readings import Reading
from medfedpure.evaluation.records import ArmResult, Evaluation, RungResult
from medfedpure.evaluation.self_checks import compare

Joined = Callable[[Sequence[Sequence[Any]]], list[Any]]
"""One value for each image of each part, as one list."""


def merge(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation over the images of several, as of grouped folds, each attacked against its own defences.

    The images that self-checks looked at, which met every attack of a cascade, come first, part after part, then the
    others. Rungs and checks are compared over all images together; what was probed in one part keeps its number.

    What was merged before can be merged with more, as with folds that another machine measured. Checks that one part
    lacks are left out. Each fold has a detector of its own, so that scores become the share of the fold's benign images
    that score lower, equal ones counted half: AUROC is then a mean over folds.

    Raises:
        ConfigError: no parts, parts that differ in defences, rungs, eps or strength, two of the same images, or pairs
            of a federation, which have no folds.
    """
    if not (parts := list(parts)):
        raise ConfigError("one evaluation or more is wanted; got none")
    first = parts[0]
    images = [setting["images"] for part in parts for setting in part.setting.get("merged", [part.setting])]
    if len(parts) > 1 and any(part.transfers for part in parts):
        raise ConfigError("attackers and victims of a federation were paired: such evaluations cannot be merged")
    if len(set(images)) < len(images):
        raise ConfigError("two of the evaluations are of the same images: merge each fold once")
    for part in parts[1:]:
        same = (part.norm, part.eps, part.note, part.class_names, part.positive) == (
            first.norm,
            first.eps,
            first.note,
            first.class_names,
            first.positive,
        )
        alike = len(part.arms) == len(first.arms) and all(map(_alike, part.arms, first.arms))
        if not same or not alike:
            raise ConfigError("only evaluations of the same defences, rungs, eps and strength can be merged")
    parts = [_with_common_checks(part, parts) for part in parts]
    if len(parts) > 1:
        parts = [_ranked(part) for part in parts]
    heads = [_checked(part) for part in parts]
    joined = _joiner([len(part.labels) for part in parts], heads)
    cascaded = any(part.met_by_all is not None for part in parts)
    labels = joined([part.labels for part in parts])
    return first.model_copy(
        update={
            "setting": {"merged": _in_turn([part.setting.get("merged", [part.setting]) for part in parts])},
            "labels": labels,
            "groups": joined([part.groups for part in parts]),
            "arms": [
                _arm(arms, parts, labels, joined, sum(heads) if cascaded else None)
                for arms in zip(*(part.arms for part in parts), strict=True)
            ],
            "met_by_all": sum(heads) if cascaded else None,
            "gradients": sum(part.gradients for part in parts),
            "seconds": sum(part.seconds for part in parts),
            "peak_memory_mb": max((p.peak_memory_mb for p in parts if p.peak_memory_mb is not None), default=None),
        }
    )


def _alike(one: ArmResult, other: ArmResult) -> bool:
    """Whether two parts attacked the same kind of defence equally hard."""
    kinds = [
        [arm.name, arm.policy, arm.parts, arm.precision, arm.noise, len(arm.clean.verdicts)] for arm in (one, other)
    ]
    if kinds[0] != kinds[1] or [_place(r) for r in one.rungs] != [_place(r) for r in other.rungs]:
        return False
    pairs = zip(one.rungs, other.rungs, strict=True)
    return all(_as_hard(a, b) for a, b in pairs if a.reading is not None and b.reading is not None)


def _place(found: RungResult) -> tuple[str, str, float]:
    return found.rung, found.norm, found.eps


def _as_hard(one: RungResult, other: RungResult) -> bool:
    """The same view, attack and looks; every setting that both name is equal (a later version may name more)."""
    if (one.view.partition(":")[0], one.eot) != (other.view.partition(":")[0], other.eot):
        return False
    (name, mine), (whose, theirs) = _settings(one), _settings(other)
    return name == whose and all(mine[key] == theirs[key] for key in mine.keys() & theirs.keys())


def _settings(found: RungResult) -> tuple[str, dict[str, str]]:
    """The attack's name and settings by name; what was noticed while it ran stands after them."""
    name, _, listed = found.attack.partition("; ")[0].partition(":")
    return name, {key: value for key, _, value in (text.strip().partition(" ") for text in listed.split(","))}


def _with_common_checks(part: Evaluation, parts: Sequence[Evaluation]) -> Evaluation:
    """Without the checks that another part does not have."""
    arms = []
    for number, arm in enumerate(part.arms):
        common = set.intersection(*({_place(check) for check in other.arms[number].checks} for other in parts))
        arms.append(arm.model_copy(update={"checks": [check for check in arm.checks if _place(check) in common]}))
    return part.model_copy(update={"arms": arms})


def _ranked(part: Evaluation) -> Evaluation:
    """Scores as shares of benign images that score lower; those of a part that was merged before are such already."""
    if len(part.setting.get("merged", [])) > 1:
        return part
    return part.model_copy(update={"arms": [_ranked_arm(arm) for arm in part.arms]})


def _ranked_arm(arm: ArmResult) -> ArmResult:
    if arm.clean.scores is None:
        return arm
    benign = torch.tensor(arm.clean.scores, dtype=torch.float64).sort().values

    def ranked(reading: Reading) -> Reading:
        if reading.scores is None:
            return reading
        scores = torch.tensor(reading.scores, dtype=torch.float64)
        below, up_to = (torch.searchsorted(benign, scores, right=right) for right in (False, True))
        return reading.model_copy(update={"scores": ((below + up_to) / (2 * len(benign))).tolist()})

    def rung(found: RungResult) -> RungResult:
        return found if found.reading is None else found.model_copy(update={"reading": ranked(found.reading)})

    update = {"rungs": list(map(rung, arm.rungs)), "checks": list(map(rung, arm.checks)), "clean": ranked(arm.clean)}
    return arm.model_copy(update=update)


def _checked(part: Evaluation) -> int:
    """How many of a part's first images its checks looked at, and so met every attack of a cascade."""
    if part.met_by_all is not None:
        return part.met_by_all
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


def _arm(
    arms: Sequence[ArmResult],
    parts: Sequence[Evaluation],
    labels: Sequence[int],
    joined: Joined,
    met_by_all: int | None,
) -> ArmResult:
    sizes = [len(part.labels) for part in parts]
    rungs = [_rung(found, joined, sizes) for found in zip(*(arm.rungs for arm in arms), strict=True)]
    checks = [_rung(found, _in_turn, sizes) for found in zip(*(arm.checks for arm in arms), strict=True)]
    probed = []
    for place, (arm, part) in enumerate(zip(arms, parts, strict=True)):
        own = torch.tensor(part.labels)
        of_part = set(compare(arm.rungs, arm.checks, own, arm.stochastic, part.met_by_all))
        probed += [f"part {place}: {reason}" for reason in arm.unreliable if reason not in of_part]
    return arms[0].model_copy(
        update={
            "bare_wrong": joined([arm.bare_wrong for arm in arms]),
            "clean": _reading([arm.clean for arm in arms], joined, sizes),
            "rungs": rungs,
            "checks": checks,
            "unreliable": probed + compare(rungs, checks, torch.tensor(labels), arms[0].stochastic, met_by_all),
        }
    )


def _rung(rungs: Sequence[RungResult], joined: Joined, sizes: Sequence[int]) -> RungResult:
    """A rung that is missing in one part is missing in the whole: its reason is kept."""
    readings = [rung.reading for rung in rungs if rung.reading is not None]
    whole = len(readings) == len(rungs)
    attacked = whole and all(rung.success for rung in rungs)  # a control has no attacker
    met = _meeting(readings, joined, sizes) if whole else joined
    return rungs[0].model_copy(
        update={
            "view": next((rung.view for rung in rungs if rung.view), ""),
            "seconds": sum(rung.seconds for rung in rungs),
            "reading": _reading(readings, joined, sizes) if whole else None,
            "success": met([rung.success for rung in rungs]) if attacked else [],
            "distance": met([rung.distance for rung in rungs]) if attacked else [],
            "skipped": next((rung.skipped for rung in rungs if rung.skipped), ""),
            "problem": next((rung.problem for rung in rungs if rung.problem), ""),
        }
    )


def _meeting(readings: Sequence[Reading], joined: Joined, sizes: Sequence[int]) -> Joined:
    """Joins values of the images that readings are of, some of each part or all."""
    if all(reading.places is None for reading in readings):
        return joined
    held = _held(readings, joined, sizes)

    def met(values: Sequence[Sequence[Any]]) -> list[Any]:
        spread = []
        for reading, own, size in zip(readings, values, sizes, strict=True):
            row: list[Any] = [None] * size
            for place, value in zip(range(size) if reading.places is None else reading.places, own, strict=True):
                row[place] = value
            spread.append(row)
        return [value for value, kept in zip(joined(spread), held, strict=True) if kept]

    return met


def _held(readings: Sequence[Reading], joined: Joined, sizes: Sequence[int]) -> list[bool]:
    """For each image of the whole, whether the readings are of it."""
    flags = []
    for reading, size in zip(readings, sizes, strict=True):
        own = set(range(size) if reading.places is None else reading.places)
        flags.append([place in own for place in range(size)])
    return joined(flags)


def _reading(readings: Sequence[Reading], joined: Joined, sizes: Sequence[int]) -> Reading:
    counts = [len(reading.flagged) for reading in readings]
    partial = any(reading.places is not None for reading in readings)
    places = [place for place, kept in enumerate(_held(readings, joined, sizes)) if kept] if partial else None
    met = _meeting(readings, joined, sizes)

    def mean(values: Sequence[float]) -> float:
        return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)

    errors = [reading.ece for reading in readings if reading.ece is not None]
    scores = [reading.scores for reading in readings if reading.scores is not None]
    draws = min(len(reading.verdicts) for reading in readings)
    return Reading(
        verdicts=[met([reading.verdicts[draw] for reading in readings]) for draw in range(draws)],
        flagged=met([reading.flagged for reading in readings]),
        purified=met([reading.purified for reading in readings]),
        scores=met(scores) if len(scores) == len(readings) else None,
        nfe=mean([reading.nfe for reading in readings]),
        ms=mean([reading.ms for reading in readings]),
        ece=mean(errors) if len(errors) == len(readings) else None,
        places=places,
    )
