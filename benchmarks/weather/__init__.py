"""Bad weather: what is read, written, served and shared, under inputs and faults that nobody wants.

`python -m benchmarks.weather` asks all of it; `benchmarks.weather_table` draws its page. Some of it is made by the
tests' own helpers: this needs a clone, the extra `test`, and Linux.
"""

import sys
from pathlib import Path

_TESTS = Path(__file__).parents[2] / "tests"
sys.path += [str(_TESTS / folder) for folder in ("faults", "federation", "service", "verdicts")]
