"""Every parser answers mutated files with what it read or with one of the project's own errors.

A fixed number of mutations, drawn from a seed; `python tests/fuzz/run.py` searches on, guided by what the code does.
"""

import random
import time

import pytest
from mutations import mutated
from parsers import PARSERS, read

MOST = 10.0
"""Seconds of one input, as in a search."""
COUNTS = {"bundle": 60, "dicom": 150, "config": 60}
"""Mutations of each parser, where the usual number takes too long."""


@pytest.mark.parametrize("name", PARSERS)
def test_only_the_projects_own_errors_come_out(name, tmp_path):
    parser, chance = PARSERS[name], random.Random(1)
    (tmp_path / "seeds").mkdir()
    (tmp_path / "work").mkdir()
    seeds = list(parser.seeds(tmp_path / "seeds"))
    target = parser.target(tmp_path / "work")
    for seed in seeds:
        read(target, seed)
    for number in range(COUNTS.get(name, 200)):
        content = mutated(chance.choice(seeds), chance)
        began = time.monotonic()
        try:
            read(target, content)
        except BaseException as error:
            raise AssertionError(f"mutation {number} of {name}: {content[:2000]!r}") from error
        assert time.monotonic() - began < MOST, f"mutation {number} of {name} took too long: {content[:2000]!r}"
