"""What two processes gain on two CPU cores, starting them included."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

import medfedpure
from benchmarks.speeds.made import SHARE, classifier, flag, gated, phantoms, purifier, traffic, trained
from benchmarks.speeds.timing import Setting, paired
from medfedpure.parallel.predict import predict_on

WORKERS = 2
FREE = 0.5
"""Load average at most, for each core that is wanted: beside other work two processes get what one would."""


def processes(setting: Setting) -> dict[str, Any]:
    """Time that passes in this process, on one thread, to that in two workers of one thread each."""
    if setting.cuda:
        return {"not_measured": "processes share CPU cores"}
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    if not setting.quick and (cores < WORKERS or load > cores - WORKERS + FREE):
        return {"not_measured": f"{WORKERS} idle cores are wanted; of {cores} a load of {load:.1f} was taken"}
    size = setting.sizes[0]
    images, fit = traffic(setting.of(512, 512, 40), 30, size, 1, "cpu")
    model = classifier("ResNet-18", size, "cpu")
    chain = gated(model, purifier(size, "cpu"), "compose", {}, fit, "off")
    flag(chain, images, round(SHARE * len(images)), 32)
    data = phantoms(100, size, seed=0)
    arm = medfedpure.DefendedClassifier(trained("small_cnn", data.select(torch.arange(40)), 10, "cpu"), policy="none")
    test = data.select(torch.arange(40, 100))

    batch = 8 if setting.quick else 32

    def predicted(count: int) -> Callable[[], float]:
        own = {} if count == 1 else {"processes": count, "threads": 1}
        return lambda: _passed(lambda: predict_on(chain, images, seed=0, batch_size=batch, **own))

    def evaluated(count: int) -> Callable[[], float]:
        own: dict[str, Any] = {} if count == 1 else {"processes": count, "threads": 1}
        return lambda: _passed(lambda: medfedpure.evaluate({"undefended": arm}, test, eps=0.015, batch_size=8, **own))

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [
            {"what": what, "one_to_two": paired(work(1), work(WORKERS), setting, 3)}
            for what, work in (("predict_on", predicted), ("evaluate", evaluated))
        ]
    finally:
        torch.set_num_threads(before)
    return {"size": size, "images": len(images), "rows": rows}


def _passed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
