"""The front on the page of detectors is that of the published results."""

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def module(monkeypatch):
    """The module that draws the table; benchmarks are no installed package."""
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.benign_front_table")


def test_the_front_is_that_of_the_published_results(module):
    page = module.PAGE.read_text(encoding="utf-8")
    assert "<!-- front: " in page
    assert "Nothing is measured yet." not in page
    assert module.page_with_tables(page) == page, "draw it again: python -m benchmarks.benign_front_table"


def test_a_row_says_what_was_measured_and_what_was_not(module, tmp_path):
    published = next(iter(sorted(module.RESULTS.glob("*/score_norm.json"))))
    one = json.loads(published.read_text(encoding="utf-8"))
    (tmp_path / "planted").mkdir()
    slow, blind = json.loads(json.dumps(one)), json.loads(json.dumps(one))
    slow["throughput"]["kept"]["median"], slow["arm"] = 0.123, "compose"
    slow["static"]["0.015"] = {"attack": "planted", "attacked": 7, "fooled": 1}
    slow["aware"]["0.015"] |= {"fooled": 8, "flagged": 0.25, "auroc": 0.5, "tpr": 0.125}
    slow["long"] = slow["aware"]
    blind["throughput"]["kept"]["median"], blind["arm"] = 0.987, "fast"
    blind["aware"] = {eps: {"skipped": "no"} for eps in module.EPS}
    blind.pop("long", None)
    for name, document in (("a", slow), ("b", blind)):
        (tmp_path / "planted" / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    lines = module.table("planted", tmp_path).splitlines()
    assert "recipe `fast`" in lines[2], "what keeps most stands first"
    assert "| 0.12 (" in lines[3]
    assert "fools 1 of 7" in lines[3]
    assert lines[7].count("no gradient") == 2
    assert lines[7].count("not measured") == 2
    assert lines[8].count("| 6 of 8; 0.500; 0.12 |") == 2
