"""The examples in the docstrings of the library run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import medfedpure

ROOMS = ("core", "data", "defence", "evaluation", "figures", "training")


def modules() -> list[str]:
    found = [module.name for module in pkgutil.walk_packages(medfedpure.__path__, "medfedpure.")]
    return [name for name in found if name.split(".")[1] in ROOMS]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples in {name} fail: run python -m doctest"


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in modules() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert found, "no docstring holds an example"
