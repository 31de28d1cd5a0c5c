"""Measurements, each reproducible by one command."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # whose helpers make some of what is measured
