"""How fast, and beside what: `python -m benchmarks.speed [--device cuda] [--torchattacks PYTHON]`.

Throughput that a defence leaves on benign traffic, what purifying and attacking cost, mixed depths beside diffusers'
own loop, PGD beside ART's, foolbox's and torchattacks', a chain beside `diffpure` and beside a pipeline of ART's. Every
ratio is of work that takes turns in one process: median, least and most. On phantoms; networks are untrained where only
time is asked for. torchattacks cannot share our environment: it is run by the Python of its own one, or not at all.

The document is written after every section, and what stands in it is not measured again. `benchmarks.speed_table`
draws the page from it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks import pages
from benchmarks.speeds.timing import Setting, clock
from medfedpure.core.storage import write_json
from medfedpure.evaluation.versions import versions

RESULTS = pages.RESULTS / "speed"
SECTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "benign_small": ("traffic:benign", {"place": 0}),
    "benign_large": ("traffic:benign", {"place": 1}),
    "purifying_small": ("traffic:purifying", {"place": 0}),
    "purifying_large": ("traffic:purifying", {"place": 1}),
    "exact_attack": ("attacks:exact", {}),
    "libraries": ("attacks:libraries", {}),
    "mixed_depths": ("depths:mixed", {}),
    "attacked_traffic": ("depths:attacked_traffic", {}),
    "art_pipeline": ("art_pipeline:pipelines", {}),
    "processes": ("sharing:processes", {}),
    "synchronizations": ("evaluating:synchronizations", {}),
    "standard_evaluation": ("evaluating:standard", {}),
}
"""A function of `benchmarks.speeds` and its options, by name: worker processes import this file, so it imports none."""


def measured(name: str, setting: Setting) -> dict[str, Any]:
    """What a section found."""
    target, options = SECTIONS[name]
    module, _, function = target.partition(":")
    found: dict[str, Any] = getattr(importlib.import_module(f"benchmarks.speeds.{module}"), function)(
        setting, **options
    )
    return found


def facts(device: str, *, quick: bool) -> dict[str, Any]:
    """What all sections of one document share."""
    vectors = torch.backends.cpu.get_cpu_capability()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"CPU, {platform.machine()}, {vectors}",
        "threads": torch.get_num_threads(),
        "clock": clock(device)[1],
        "quick": quick,
        "versions": {**versions(), "foolbox": _foolbox()},
    }


def _foolbox() -> str:
    try:
        return version("foolbox")
    except PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Measure what is missing, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="JSON file; by default in benchmarks/results/speed")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--again", action="store_true", help="measure sections that were measured already")
    parser.add_argument("--torchattacks", metavar="PYTHON", help="of an environment that has it: see the Makefile")
    parser.add_argument("--quick", action="store_true", help="whether it runs, in a minute; no figure to publish")
    given = parser.parse_args()
    if given.torchattacks is not None and shutil.which(given.torchattacks) is None:
        parser.error(f"--torchattacks wants a Python interpreter; {given.torchattacks} is none")
    medfedpure.keep_freed_memory()
    path = given.out or RESULTS / f"{'quick' if given.quick else given.device}.json"
    shared = facts(given.device, quick=given.quick)
    document = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {**shared, "sections": {}}
    if other := [key for key in shared if document[key] != shared[key]]:
        parser.error(f"{path} was measured with another {', '.join(other)}: move it away, or name another --out")
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(given.device, given.quick, Path(folder), given.torchattacks)
        for name in given.only:
            if name in document["sections"] and not given.again:
                print(f"{name}: measured before", flush=True)
                continue
            start, busy, load = time.perf_counter(), time.process_time(), os.getloadavg()[0]
            found = measured(name, setting)
            taken = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - busy}
            document["sections"][name] = {
                **found,
                **{key: round(value, 1) for key, value in taken.items()},
                "load": round(load, 2),
            }
            write_json(path, document)
            print(f"{name}: {taken['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
