"""What stands in the documentation is what was measured."""

import importlib.util
from pathlib import Path

from medfedpure.evaluation.records import Evaluation
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import markdown

ROOT = Path(__file__).parents[1]


def test_the_ladder_on_real_mri_is_that_of_the_published_results():
    published = ROOT / "benchmarks" / "results" / "br35h_ladder.json"
    found = Evaluation.model_validate_json(published.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "explanation" / "measured.md").read_text(encoding="utf-8")
    assert markdown(summarize(found)).strip() in page, f"draw the table again from {published.name}"


def test_the_tables_of_the_flagship_are_those_of_the_published_results():
    spec = importlib.util.spec_from_file_location("flagship_table", ROOT / "benchmarks" / "flagship_table.py")
    assert spec is not None
    assert spec.loader is not None
    drawing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(drawing)
    page = drawing.PAGE.read_text(encoding="utf-8")
    assert "| undefended |" in page
    assert drawing.page_with_tables(page) == page, "draw them again: python -m benchmarks.flagship_table"
