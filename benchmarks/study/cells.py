"""What the tables of the study share: words, cells, and what stands below a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from benchmarks.study.how import EPS, PAPER, SIZES
from benchmarks.study.stats import Answers, Difference, Document, Results

Getter = Callable[[str], Answers | None]
WORDS: Mapping[str, str] = {
    "undefended": "undefended",
    "median": "median filter on all",
    "detector_only": "detector only, refuses what it flags",
    "paper": "`paper`: detect, purify what is flagged, depth by score",
    "fixed_depth": "the same, all at the greatest depth",
    "voted": "`paper`, mean of five purifications",
    "purify_all": "purify all",
    "robust": "adversarially trained",
    "robust_short": "adversarially trained, short",
    "mixed": "adversarially trained and undefended, mixed",
    "robust_chain": "adversarially trained + `paper`",
    "robust_purify_all": "adversarially trained + purify all",
    "tuned": "fine-tuned on purified images",
    "tuned_chain": "the same + `paper`, threshold for a fifth of benign images",
    "tuned_purify_all": "the same + purify all",
}
STATIC = (
    f"PGD, {PAPER['norm']}, eps {PAPER['eps']}, {PAPER['steps']} steps, gradient of the bare classifier (static), EoT 1"
)
NOT_YET = "not measured"
NOTHING = "Nothing is measured yet."


def hardest(results: Results) -> Getter:
    """The worst case of an arm at the study's eps."""
    return lambda name: results.worst(name, EPS)


def cell(found: Answers | None) -> str:
    """Balanced accuracy with its interval."""
    if found is None:
        return NOT_YET
    low, high = found.interval()
    return f"{100 * found.value:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def points(found: Difference | None) -> str:
    """A difference with its interval."""
    if found is None:
        return NOT_YET
    return f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"


def head(cells: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [line(cells), "|" + "---|" * len(cells)]


def line(cells: Sequence[str]) -> str:
    """A row; an interval is not broken into two lines."""
    return re.sub(r"(?<=[([])(\S+) to (\S+)(?=[)\]])", "\\1\u00a0to\u00a0\\2", f"| {' | '.join(cells)} |")


def sizes(rows: Iterable[Answers | Difference | None]) -> str:
    """How many images of how many groups, the least and the most of these figures."""
    found = set()
    for row in rows:
        if isinstance(row, Difference):
            found.add((row.images, row.groups))
        elif row is not None:
            found.add((len(row.ids), len(row.groups.unique())))
    ends = sorted({min(found), max(found)})
    return " to ".join(
        f"{images} images of {'as many' if images == groups else groups} groups" for images, groups in ends
    )


def paper_attack(said: Document) -> str:
    """The threat model of what the paper's attack left."""
    return f"paper's attack: {said['paper']['attack']}; {said['paper']['gradient']}"


def worst_attack(ladder: Document) -> str:
    """The threat model of a worst case."""
    return f"worst case: {ladder['worst'][f'{EPS:.4g}']['threat']}; {ladder['note']}"


def doubts(results: Results, name: str) -> list[str]:
    """Why an arm's worst case may be an artefact."""
    return [doubt for own in results.folds(f"ladder_{name}").values() for doubt in own["unreliable"]]


def fewer_folds(results: Results, name: str) -> str:
    """Where a defence is measured on fewer folds than the undefended classifier, on how many."""
    folds = len(results.folds(f"static_{name}"))
    return f" ({folds} fold{'s' * (folds > 1)})" if 0 < folds < len(results.folds("static_undefended")) else ""


def made_by(results: Results, *patterns: str) -> str:
    """The commands behind a table."""
    units = " ".join(f"'{pattern}'" for pattern in patterns)
    size = next(name for name, how in SIZES.items() if how.name == results.how.name)
    words = "" if size == "cpu" else f"--size {size} "
    return f"Measured by `python -m benchmarks.study --data FOLDER {words}{units}`."
