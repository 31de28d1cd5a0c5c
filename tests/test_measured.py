"""What stands in the documentation is what was measured."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from medfedpure.evaluation.records import Evaluation
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import markdown

ROOT = Path(__file__).parents[1]


@pytest.fixture
def drawing(request, monkeypatch) -> ModuleType:
    """A module of `benchmarks`, which is no installed package."""
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module(f"benchmarks.{request.param}")


def test_the_ladder_on_real_mri_is_that_of_the_published_results():
    published = ROOT / "benchmarks" / "results" / "br35h_ladder.json"
    found = Evaluation.model_validate_json(published.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "explanation" / "measured.md").read_text(encoding="utf-8")
    assert markdown(summarize(found)).strip() in page, f"draw the table again from {published.name}"


@pytest.mark.parametrize("drawing", ["flagship_table"], indirect=True)
def test_the_tables_of_the_flagship_are_those_of_the_published_results(drawing):
    page = drawing.PAGE.read_text(encoding="utf-8")
    assert "| undefended |" in page
    assert drawing.page_with_tables(page) == page, "draw them again: python -m benchmarks.flagship_table"


@pytest.mark.parametrize("drawing", ["speed_table"], indirect=True)
def test_the_tables_of_performance_are_those_of_the_published_results(drawing):
    page = drawing.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- table: {name} -->" in page for name in drawing.TABLES)
    assert drawing.page_with_tables(page) == page, "draw them again: python -m benchmarks.speed_table"


@pytest.mark.parametrize("drawing", ["unet_size_table"], indirect=True)
def test_the_table_of_noise_predictors_is_that_of_the_published_results(drawing):
    page = drawing.PAGE.read_text(encoding="utf-8")
    assert "million MACs" in page
    assert drawing.page_with_tables(page) == page, "draw it again: python -m benchmarks.unet_size_table"
