"""`python -m benchmarks.weather`: every case of bad weather, what happened, and whether that was right.

    python -m benchmarks.weather --only readers --only bundles

The document of an area is written when the area is over; the status is 1 where a case was not as it has to be.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
import time
from pathlib import Path

from benchmarks.weather.cases import asked
from medfedpure.core.storage import write_json

AREAS = {
    "readers": "readers",
    "bundles": "bundles",
    "predict": "predicting",
    "federation": "federation",
    "serve": "serve",
}
"""By name the module of its cases; the service comes last, as its threads outlive it for a moment."""
RESULTS = Path(__file__).parents[1] / "results" / "weather"


def main() -> int:
    """Ask them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(AREAS), help="may be given several times")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    wrong = 0
    for area in given.only or AREAS:
        began, found = time.monotonic(), []
        for case in importlib.import_module(f"benchmarks.weather.{AREAS[area]}").cases():
            found.append(asked(case))
            one = found[-1]
            wrong += bool(one["fault"])
            print(
                f"{'held' if not one['fault'] else one['fault'].upper()}  {area}: {case.name}: {one['happened']}",
                flush=True,
            )
        document = {
            "python": platform.python_version(),
            "system": platform.system(),
            "seconds": round(time.monotonic() - began, 1),
            "cases": found,
        }
        write_json(given.out / f"{area}.json", document)
    print(f"{wrong} cases were not as they have to be" if wrong else "every case held")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
