"""Plan the study, and do its units: `python -m benchmarks.study --data FOLDER_OF_DATASETS [UNIT...]`

Below --data lie br35h and brain4, one sub-folder for each class, and pneumoniamnist/pneumoniamnist.npz. A unit is named
as the plan names it, or by a pattern such as 'br35h_fold_0/static_*'. Each keeps what it trained under --out and its
figures as JSON under --results, goes on where it was cut off, and is not done twice: several processes may work at
once.
"""

from __future__ import annotations

import argparse
import fnmatch
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import medfedpure
from benchmarks.folds import progress
from benchmarks.study.adopt import adopt
from benchmarks.study.how import SIZES
from benchmarks.study.plan import Plan
from benchmarks.study.units import Study, Unit, catalog
from medfedpure.core.errors import ArtifactError
from medfedpure.core.storage import locked

BUSY = 75
"""Exit status where another process does the unit."""


def main() -> int:
    """0 where everything that was asked for is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", metavar="UNIT", help="names or patterns; see --plan")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets")
    parser.add_argument("--out", type=Path, default=Path("runs", "study"), help="keeps models")
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "study"), help="keeps figures")
    parser.add_argument("--size", choices=sorted(SIZES), default="cpu", help="paper = 224 px, on a GPU")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plan", action="store_true", help="list all units, and do none")
    parser.add_argument("--required", action="store_true", help="all units in order of worth, a process for each")
    parser.add_argument("--here", action="store_true", help="do all in this process, not one for each unit")
    parser.add_argument("--processes", type=int, default=1, help="so many at once; a GPU serves a dozen under CUDA MPS")
    parser.add_argument("--minutes", type=float, help="begin no unit that is forecast to end later")
    parser.add_argument("--adopt", type=Path, metavar="FOLDER", help="what benchmarks.flagship kept under its --out")
    given = parser.parse_args()
    medfedpure.keep_freed_memory()
    study = Study(SIZES[given.size], given.data, given.out, given.results, given.seed, progress())
    plan = Plan.of(study)
    if given.adopt:
        for key in adopt(given.adopt, study):
            study.say(f"{key}: adopted")
        return 0
    if given.plan:
        print(plan.table())
        return 0
    wanted = [unit for unit in catalog(study.how) if _named(unit, given.units)] if given.units else []
    unknown = [name for name in given.units if not any(_named(unit, [name]) for unit in wanted)]
    if unknown or not (wanted or given.required):
        raise SystemExit(f"no unit is named {', '.join(unknown) or 'so'}: --plan lists them, --required does them all")
    if given.processes < 1:
        raise SystemExit(f"--processes {given.processes}: at least one has to do the work")
    if len(wanted) == 1 and not given.required:
        return _one(study, wanted[0])
    if given.processes > 1:
        return _together(study, wanted or catalog(study.how), given.processes)
    begin = _tried if given.here else _process
    return _many(study, wanted or catalog(study.how), given.minutes, begin)


def _named(unit: Unit, names: list[str]) -> bool:
    return any(fnmatch.fnmatchcase(unit.key, name) for name in names)


def _lock(study: Study, unit: Unit) -> Path:
    return study.out / study.how.name / "locks" / unit.key.replace("/", ".")


def _one(study: Study, unit: Unit) -> int:
    """Do a unit in this process."""
    try:
        with locked(_lock(study, unit), f"the unit {unit.key}"):
            if not study.done(unit):
                study.say(f"{unit.key} begins")
                study.do(unit)
    except ArtifactError as error:
        if "is in use by" not in str(error):
            raise
        study.say(str(error))
        return BUSY
    study.say(f"{unit.key} is done")
    return 0


def _many(study: Study, wanted: list[Unit], minutes: float | None, begin: Callable[[Study, Unit], int]) -> int:
    """The first unit that can begin, and so on; those that other processes do are waited for."""
    began, failed, busy = time.perf_counter(), set[str](), set[str]()
    while True:
        plan, spent = Plan.of(study), time.perf_counter() - began
        left = [unit for unit in wanted if not study.done(unit) and unit.key not in failed]
        ready = [unit for unit in left if plan.ready(unit)]
        if minutes:
            ready = [unit for unit in ready if spent + plan.forecast(unit).seconds <= 60 * minutes]
        unit = next((unit for unit in ready if unit.key not in busy), None)
        if unit is None and busy & {unit.key for unit in ready}:
            time.sleep(5)
            busy.clear()
            continue
        if unit is None:
            study.say(f"{sum(map(study.done, wanted))} of {len(wanted)} units are done, {len(failed)} failed")
            return int(not all(map(study.done, wanted)))
        code = BUSY if _held(study, unit) else begin(study, unit)
        busy = busy | {unit.key} if code == BUSY else set()
        if code not in (0, BUSY):
            study.say(f"{unit.key} failed (exit status {code}); the rest goes on")
            failed.add(unit.key)


def _together(study: Study, wanted: list[Unit], count: int) -> int:
    """So many processes, each of which takes what is ready; where a unit fails, each of them tries it once."""
    options = [word for word in sys.argv[1:] if word != "--"]
    words = [sys.executable, "-m", "benchmarks.study", *options, "--processes", "1"]
    for process in [subprocess.Popen(words) for _ in range(count)]:
        process.wait()
    return int(not all(map(study.done, wanted)))


def _held(study: Study, unit: Unit) -> bool:
    """Whether another process does it now."""
    try:
        with locked(_lock(study, unit), f"the unit {unit.key}"):
            return False
    except ArtifactError:
        return True


def _tried(study: Study, unit: Unit) -> int:
    """Do a unit in this process; where it fails, the rest goes on."""
    try:
        return _one(study, unit)
    except Exception as error:  # whatever it is, it is shown, and the unit counts as failed
        if "CUDA error" in str(error):  # nothing that this process asks of the card works after it
            raise
        traceback.print_exc()
        return 1


def _process(study: Study, unit: Unit) -> int:
    """Do a unit in a process of its own, whose memory goes with it."""
    return subprocess.run([sys.executable, "-m", "benchmarks.study", *_words(study, unit)], check=False).returncode


def _words(study: Study, unit: Unit) -> list[str]:
    size = next(name for name, how in SIZES.items() if how is study.how)
    words = [unit.key, "--data", study.data, "--out", study.out, "--results", study.results]
    return [str(word) for word in [*words, "--size", size, "--seed", study.seed]]


if __name__ == "__main__":
    sys.exit(main())
