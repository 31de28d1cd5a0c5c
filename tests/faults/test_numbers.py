"""Every fault on the page has a test of its number, and every number a test names stands on the page."""

from __future__ import annotations

import re
from pathlib import Path

from documentation import ROOT

PAGE = (ROOT / "docs" / "explanation" / "faults.md").read_text(encoding="utf-8")
TESTS = {path: path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py")}
LISTED = set(re.findall(r"^\| ([AB]\d+) \|", PAGE, re.M))


def test_every_listed_fault_has_a_test() -> None:
    tested = {
        number
        for text in TESTS.values()
        for number in re.findall(r'def test_\w+\([^)]*\)[^:]*:\n\s+"""([AB]\d+)', text)
    }
    assert sorted(LISTED - tested) == [], "no test names these in its docstring"


def test_every_named_number_is_listed() -> None:
    named = {number for text in TESTS.values() for number in re.findall(r'"""([AB]\d+):', text)}
    assert sorted(named - LISTED) == []
