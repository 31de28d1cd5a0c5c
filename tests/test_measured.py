"""What stands in the documentation is what was measured."""

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
