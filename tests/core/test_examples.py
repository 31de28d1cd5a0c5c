"""The examples in the docstrings of core run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import medfedpure.core


def modules_of_core() -> list[str]:
    return [f"medfedpure.core.{found.name}" for found in pkgutil.iter_modules(medfedpure.core.__path__)]


@pytest.mark.parametrize("name", modules_of_core())
def test_examples_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0, f"{result.failed} of {result.attempted} examples in {name} fail: run python -m doctest"


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in modules_of_core() for test in finder.find(importlib.import_module(name)) if test.examples]
    assert found, "no docstring of core holds an example"
