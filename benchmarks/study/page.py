"""The page of the study and its figures, drawn of the JSON: `python -m benchmarks.study.page`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmarks import pages
from benchmarks.study import charts, clients, findings, tables
from benchmarks.study.how import CPU, GPU, How
from benchmarks.study.plan import Plan
from benchmarks.study.stats import Results
from benchmarks.study.units import Study

FOLDER = pages.RESULTS / "study"
PAGE = pages.DOCS / "results.md"
FIGURES = pages.DOCS / "diagrams"
DRAWN = (PAGE, pages.DOCS.parent / "README.md")
MARK = "study"


def tables_of(folder: Path = FOLDER, how: How = CPU) -> Mapping[str, Callable[[], str]]:
    """What stands after each mark."""
    results, larger = Results(folder, how), Results(folder, GPU if how is CPU else how)
    plan = Plan.of(Study(how, Path("data"), Path("runs", "study"), folder, 0, print))
    return {
        "short": lambda: tables.short(results),
        "findings": lambda: findings.findings(results, plan),
        "aims": lambda: findings.aims(results, larger),
        "arms": lambda: tables.arms(results),
        "arms_224": lambda: tables.arms(larger),
        "questions_224": lambda: tables.questions(larger),
        "questions": lambda: tables.questions(results),
        "costs": lambda: tables.costs(results),
        "federation": lambda: clients.federation(results),
        "insiders": lambda: clients.insiders(results),
        "brain4": lambda: tables.pooled(results, "brain4_fold_0"),
        "brain4_federation": lambda: clients.federation(results, "brain4_fold_0"),
        "pneumonia": lambda: tables.pooled(results, "pneumoniamnist"),
        "leaking": lambda: tables.pooled(results, "br35h_leaking"),
        "choice": lambda: tables.choice(results),
        "figures": lambda: figures(results, ("study_eps", "study_front")),
        "clients": lambda: figures(results, ("study_clients",)),
        "missing": lambda: tables.missing(plan),
    }


def figures(results: Results, names: Iterable[str]) -> str:
    """Those of these that are drawn, each with what it shows and of whom."""
    captions = charts.captions(results)
    there = [name for name in names if name in captions and (FIGURES / f"{name}.svg").exists()]
    told = [f"![{captions[name][0]}](diagrams/{name}.svg)\n\n{' '.join(captions[name])}" for name in there]
    return "\n\n".join(told)


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
    for path in charts.draw(Results(given.results, CPU), given.figures):
        print(path)
    for page in given.page or DRAWN:
        text = page.read_text(encoding="utf-8")
        drawn = page_with_tables(text, given.results)
        if drawn != text:
            page.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
