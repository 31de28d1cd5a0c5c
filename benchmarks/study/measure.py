"""What is measured of a defence: one digit for each image, how many of the draws of its noise read it right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

import medfedpure
from benchmarks.study.bench import Bench, uniform
from benchmarks.study.how import EPS, PAPER
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import ABSTAINED
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.readings import Said, hear, reading_of
from medfedpure.evaluation.tally import detection
from medfedpure.evaluation.views import is_stochastic
from medfedpure.reporting.evaluation.summary import summarize, worst_of

MOST = 100
"""Images that the paper's attack meets, one of each group."""
PAIRS = 180
"""Images that the attacks of insiders meet, over all victims."""
INSIDER: Mapping[str, Any] = {"norm": "linf", "eps": EPS, "step": 0.003, "steps": 20, "random_starts": 0}


def images_of(bench: Bench) -> dict[str, Any]:
    """The images of the test and the validation part: all figures of a place are of these, by their ids."""
    found: dict[str, Any] = {
        "class_names": list(bench.parts["test"].class_names),
        "parts": {name: [len(part), part.num_groups] for name, part in bench.parts.items()},
    }
    for name in ("test", "validation"):
        data = bench.parts[name]
        found[name] = {
            "fingerprint": data.fingerprint(),
            "ids": packed(data.ids.tolist()),
            "labels": packed(data.labels.tolist()),
            "groups": packed(data.groups.tolist()),
        }
    return found


def static(bench: Bench, chain: DefendedClassifier, test: ImageDataset | None = None) -> dict[str, Any]:
    """Clean images, and the paper's attack on the bare classifier, replayed on the defence."""
    test = test or bench.parts["test"]
    few = choose(test, MOST, bench.seed)
    attack = medfedpure.create("attack", "pgd", **PAPER)
    given = few.images.to(bench.device)
    found = attack(chain.classifier, given, few.labels.to(bench.device), streams=Streams(bench.seed, few.ids))
    clean, attacked = said(bench, chain, test, test.images), said(bench, chain, few, found.images)
    benign = said(bench, chain, few, few.images)
    draws = len(clean.verdicts)
    drawn = "one draw" if draws == 1 else f"mean of {draws} draws of the defence's noise"
    return {
        "clean": counted(clean, test),
        "paper": {
            "attack": found.description,
            "gradient": f"of the bare classifier (static), {drawn}, EoT 1",
            **counted(attacked, few),
            **detection(reading_of([benign], few.labels), reading_of([attacked], few.labels), found.success.cpu()),
        },
        "benign": counted(benign, few),
    }


def said(bench: Bench, chain: DefendedClassifier, data: ImageDataset, images: torch.Tensor) -> Said:
    """Verdicts on images, attacked or not, with the ids of a data set: one for each draw of the noise."""
    draws = bench.how.draws if is_stochastic(chain) else 1
    return hear(chain, images.to(bench.device), data.ids, seed=bench.seed, draws=draws, batch_size=64)


def counted(answers: Said, data: ImageDataset) -> dict[str, Any]:
    """By image, draws that are right and draws that are accepted and wrong; and what it cost."""
    verdicts = torch.tensor(answers.verdicts)
    right = verdicts == data.labels
    wrong = ~right & (verdicts != ABSTAINED)
    asked = len(answers.verdicts) * len(data)
    return {
        "ids": packed(data.ids.tolist()),
        "draws": len(answers.verdicts),
        "right": digits(right.sum(0).tolist()),
        "fooled": digits(wrong.sum(0).tolist()),
        "flagged": sum(answers.flagged) / len(data),
        "ms": 1000 * answers.seconds / asked,
        "nfe": answers.rows / asked,
    }


def ladder(
    bench: Bench,
    name: str,
    chain: DefendedClassifier,
    preset: Preset,
    eps: Sequence[float],
    data: ImageDataset | None = None,
) -> dict[str, Any]:
    """The worst case over every counted attack of an eps and of smaller ones, one digit for each image."""
    data = bench.parts["test"] if data is None else data
    out = bench.out / "evaluations" / name
    found = evaluate({name: chain}, data, preset=preset, eps=eps, out=out, seed=bench.seed, say=bench.say)
    summary, tally, arm = summarize(found), found.tally(), found.arms[0]
    worst = {}
    for line in summary.lines:
        if line.eps is not None and (readings := worst_of(arm, line.eps)):
            worst[f"{line.eps:.4g}"] = {
                "right": digits(tally.right(readings).tolist()),
                "fooled": digits(tally.fooled(readings).tolist()),
                "worst_of_draws": digits(tally.right(readings, "worst of N").tolist()),
                "threat": line.threat,
                "weakest": line.weakest,
            }
    keep = {"rung", "eps", "role", "images", "right", "seconds", "note", "auroc", "flagged"}
    return {
        "ids": packed(choose(data, preset.images, bench.seed).ids.tolist()),
        "clean": digits(tally.right([arm.clean]).tolist()),
        "draws": len(arm.clean.verdicts),
        "worst": worst,
        "preset": preset.describe(),
        "note": found.note,
        "unreliable": summary.unreliable.get(name, []),
        "gradients": found.gradients,
        "attacks": [row.model_dump(mode="json", include=keep) for row in summary.rungs],
    }


def transfers(bench: Bench, models: Mapping[str, ClassifierModel], test: Mapping[str, ImageDataset]) -> dict[str, Any]:
    """Attacks made on every client's model, on the victim's own test images, read by the victim's model."""
    cells: list[dict[str, Any]] = []
    attack = medfedpure.create("attack", "pgd", **INSIDER)
    for victim, model in models.items():
        few = choose(test[victim], min(MOST, PAIRS // len(models)), bench.seed)
        given, labels = few.images.to(bench.device), few.labels.to(bench.device)
        chain = uniform(model, policy="none")
        cells.append({"crafted_on": None, "victim": victim, **counted(said(bench, chain, few, given), few)})
        for attacker, own in models.items():
            found = attack(own, given, labels, streams=Streams(bench.seed, few.ids))
            row = counted(said(bench, chain, few, found.images), few)
            cells.append({"crafted_on": attacker, "victim": victim, "attack": found.description, **row})
    return {"gradient": "of the attacker's own model, EoT 1", "cells": cells}


def packed(values: Iterable[int]) -> str:
    """Whole numbers as one line of a file."""
    return " ".join(map(str, values))


def digits(values: Iterable[int]) -> str:
    """One digit each."""
    return "".join(str(int(value)) for value in values)
