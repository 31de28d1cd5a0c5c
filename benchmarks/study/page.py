"""The page of the study and its figures, drawn of the JSON: `python -m benchmarks.study.page`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import pages
from benchmarks.study import tables
from benchmarks.study.how import CPU, How
from benchmarks.study.plan import Plan
from benchmarks.study.stats import Results
from benchmarks.study.units import Study

FOLDER = pages.RESULTS / "study"
PAGE = pages.DOCS / "results.md"
FIGURES = pages.DOCS / "diagrams"
DRAWN = (PAGE, pages.DOCS.parent / "README.md")
MARK = "study"
SHOWN: Mapping[str, str] = {
    "study_eps": "Balanced accuracy in the worst case over eps, with 95 % bands",
    "study_front": "Clean accuracy against the worst case, with 95 % intervals",
    "study_clients": "Each client of each strategy, adversarially trained: clean, and under the paper's attack",
}


def tables_of(folder: Path = FOLDER, how: How = CPU) -> Mapping[str, Callable[[], str]]:
    """What stands after each mark."""
    results = Results(folder, how)
    plan = Plan.of(Study(how, Path("data"), Path("runs", "study"), folder, 0, print))
    return {
        "short": lambda: tables.short(results),
        "arms": lambda: tables.arms(results),
        "questions": lambda: tables.questions(results),
        "costs": lambda: tables.costs(results),
        "federation": lambda: tables.federation(results),
        "insiders": lambda: tables.insiders(results),
        "brain4": lambda: tables.pooled(results, "brain4_fold_0"),
        "brain4_federation": lambda: tables.federation(results, "brain4_fold_0"),
        "pneumonia": lambda: tables.pooled(results, "pneumoniamnist"),
        "leaking": lambda: tables.pooled(results, "br35h_leaking"),
        "choice": lambda: tables.choice(results),
        "figures": figures,
        "missing": lambda: tables.missing(plan),
    }


def figures() -> str:
    """Those that are drawn."""
    there = [f"![{words}](diagrams/{name}.svg)" for name, words in SHOWN.items() if (FIGURES / f"{name}.svg").exists()]
    return "\n\n".join(there) or tables.NOTHING


def page_with_tables(page: str, folder: Path = FOLDER) -> str:
    """The page with what was measured after each mark."""
    drawn = tables_of(folder)
    return pages.redrawn(page, lambda name: drawn[name](), MARK)


def main() -> None:
    """Draw the page anew, the short table of the README where it has the mark, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, action="append", help="by default the page of results and the README")
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--figures", type=Path, default=FIGURES)
    given = parser.parse_args()
    from benchmarks.study.charts import draw

    for path in draw(Results(given.results, CPU), given.figures):
        print(path)
    for page in given.page or DRAWN:
        text = page.read_text(encoding="utf-8")
        drawn = page_with_tables(text, given.results)
        if drawn != text:
            page.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
