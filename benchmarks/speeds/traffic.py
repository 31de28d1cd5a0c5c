"""What a defence leaves of the classifier's throughput on benign traffic, and what purifying costs.

A twentieth of the traffic is flagged, exactly: the threshold is set on these very images. Networks are untrained, which
costs them no time, and says nothing about what a detector sees.
"""

from __future__ import annotations

import copy
import statistics
from typing import Any

import torch

from benchmarks.speeds.made import (
    CLASSIFIERS,
    DETECTORS,
    SHARE,
    Way,
    bare,
    classifier,
    clear,
    flag,
    gated,
    phantoms,
    purifier,
    traffic,
    ways,
)
from benchmarks.speeds.timing import Setting, Work, in_turns, paired, seconds, spread
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier

FITTED = 60
"""Images that a detector learns from."""


def benign(setting: Setting, *, place: int) -> dict[str, Any]:
    """Throughput kept by every detector, in front of each classifier, one row each."""
    size = setting.sizes[place]
    count, batch = _traffic(setting, size)
    images, fit = traffic(count, FITTED if size < 128 else FITTED // 2, size, 1, setting.device)
    # Two of them cost minutes at this size on a CPU, and say what `compose`, which is both, says.
    left_out = ("score_norm", "denoising_disagreement") if size > 128 and not setting.cuda else ()
    rows = []
    for name in CLASSIFIERS:
        model = classifier(name, size, setting.device)
        for way in ways(setting.device):
            own = copy.deepcopy(model)
            alone = bare(own, images, batch, way)
            for arm in [arm for arm in DETECTORS if arm not in left_out]:
                cleaner = None if arm == "fast" else purifier(size, setting.device)
                chain = gated(own, cleaner, *DETECTORS[arm], fit, way)
                if arm == "staged":
                    clear(chain, images)
                flag(chain, images, round(SHARE * count), batch)
                flagged: list[int] = []
                read = _reading(chain, images, batch, flagged)
                kept = paired(alone, read, setting, 3 if size < 128 else 2, warm=not setting.cuda)
                rows.append(
                    {"classifier": name, "detector": arm, "way": way, "flagged": flagged[-1] / count, "kept": kept}
                )
    return {"size": size, "images": count, "batch": batch, "rows": rows}


def _traffic(setting: Setting, size: int) -> tuple[int, int]:
    """How many images, and how many at a time."""
    if size < 128:
        return setting.of(40, 4096, 20), setting.of(64, 512, 64)
    return setting.of(20, 1024, 20), setting.of(64, 128, 64)


def _reading(chain: DefendedClassifier, images: torch.Tensor, batch: int, flagged: list[int]) -> Work:
    """Reads them, and notes how many were flagged."""

    def work() -> None:
        flagged.append(int(chain.predict(images, seed=0, batch_size=batch).flagged.sum()))

    return work


def purifying(setting: Setting, *, place: int) -> dict[str, Any]:
    """Network evaluations and purified images a second, and one image alone, through the product."""
    size = setting.sizes[place]
    count = setting.of(16 if size < 128 else 4, 1024 if size < 128 else 256, 2)
    batch = setting.of(16, 256 if size < 128 else 64, 2)
    images = phantoms(count, size, seed=1).images.to(setting.device)
    model = classifier("ResNet-18", size, setting.device)
    rows = [_rates(way, setting, size, images, batch) for way in ways(setting.device)]
    alone = [_alone(way, setting, size, model) for way in ways(setting.device)]
    return {"size": size, "images": count, "batch": batch, "classifier": "ResNet-18", "rates": rows, "alone": alone}


def _rates(way: Way, setting: Setting, size: int, images: torch.Tensor, batch: int) -> dict[str, Any]:
    cleaner = purifier(size, setting.device)
    chain = DefendedClassifier(classifier("ResNet-18", size, setting.device), purifier=cleaner, policy="purify_all")
    chain.accelerate(way)
    some = images[:batch]
    strength, streams = some.new_ones(len(some)), Streams(0, torch.arange(len(some)), chain.acceleration.noise)
    evaluations = 0

    def purify() -> None:
        nonlocal evaluations
        with torch.no_grad(), chain.computing(some.device):
            evaluations = int(cleaner.purify(some, strength, streams=streams).nfe.sum())

    found = in_turns({"purify": purify, "read": _reading(chain, images, batch, [])}, setting, 3)
    return {
        "way": way,
        "evaluations": evaluations / len(some),
        "evaluations_a_second": spread([evaluations / taken for taken in found["purify"]]),
        "images_a_second": spread([len(images) / taken for taken in found["read"]]),
    }


def _alone(way: Way, setting: Setting, size: int, model: torch.nn.Module) -> dict[str, Any]:
    """Milliseconds of single images through the chain with `compose`, those that are flagged for themselves."""
    count = setting.of(40 if size < 128 else 20, 200, 20)
    images, fit = traffic(count, FITTED // 2, size, 3, setting.device)
    chain = gated(copy.deepcopy(model), purifier(size, setting.device), "compose", {}, fit, way)
    flag(chain, images, round(SHARE * count), batch_size=1)
    times: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1 if setting.quick else 2):  # the first time through is not counted
        times = {False: [], True: []}
        for place in range(count):
            one, ids, told = images[place : place + 1], torch.tensor([place]), []
            taken = seconds(
                lambda one=one, ids=ids, told=told: told.append(chain.predict(one, ids, seed=0)), setting.device
            )  # type: ignore[misc]
            times[bool(told[0].flagged[0])].append(1000 * taken)
    every = times[False] + times[True]
    return {
        "way": way,
        "images": count,
        "flagged": len(times[True]),
        "median_ms": round(statistics.median(every), 3),
        "median_flagged_ms": round(statistics.median(times[True]), 3),
        "worst_ms": round(max(every), 3),
    }
