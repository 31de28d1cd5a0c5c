"""The figures of the study, as SVG files that are equal for equal results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.study.cells import sizes
from benchmarks.study.clients import PICKS, clients
from benchmarks.study.how import EPS, PAPER
from benchmarks.study.stats import Answers, Document, Results
from benchmarks.study.tables import STRATEGIES

COLOURS = (
    *("#00796b", "#d95f02", "#5e60ce", "#b5179e", "#8a6d3b", "#2b2d42", "#3a86ff", "#7cb518", "#e63946", "#6c757d"),
    *("#f4a261", "#9ad1d4"),
)
PLACE = "br35h_fold_0"
NAMES = {
    "undefended": "undefended",
    "median": "median",
    "detector_only": "detector only",
    "paper": "paper",
    "fixed_depth": "fixed depth",
    "voted": "paper, five votes",
    "purify_all": "purify all",
    "robust": "robust",
    "mixed": "mixed",
    "robust_chain": "robust + paper",
    "robust_purify_all": "robust + purify all",
    "tuned_chain": "fine-tuned + paper",
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what there is something to draw of; the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context({"svg.hashsalt": "study", "svg.fonttype": "path", "font.size": 10}):
        found = {"study_eps": over_eps(results), "study_front": front(results), "study_clients": bars(results)}
        for name, figure in found.items():
            if figure is not None:
                paths.append(folder / f"{name}.svg")
                figure.savefig(paths[-1], bbox_inches="tight", metadata={"Date": None})
    return paths


def captions(results: Results) -> Mapping[str, tuple[str, str]]:
    """Of each figure that there is something to draw of: what it shows, and the conditions."""
    met = [answers for name in NAMES if (answers := results.worst(name, EPS)) is not None]
    found: dict[str, tuple[str, str]] = {}
    command = "Drawn by `python -m benchmarks.study.page`."
    if met:
        notes = dict.fromkeys(own["note"] for name in NAMES for own in results.folds(f"ladder_{name}").values())
        told = (
            f"Attacked: {sizes(met)}. Norm linf; attacks, steps, gradients and EoT of each defence as under the first "
            f"table; {'; '.join(notes)}. {command}"
        )
        found["study_eps"] = "Balanced accuracy in the worst case over eps, with 95 % bands.", told
        seen = sizes(map(results.clean, NAMES))
        found["study_front"] = (
            f"Clean accuracy against the worst case at eps {EPS}, with 95 % intervals.",
            f"Clean: {seen}. {told}",
        )
    own = next(_federated(results), None)
    if own is not None:
        clean, paper = ([*clients(results, PLACE, own, PICKS[kind])] for kind in (0, 1))
        found["study_clients"] = (
            "Each client of each strategy, adversarially trained: clean, and under the paper's attack.",
            f"Whiskers: 95 % intervals over groups. Clean: {sizes(clean)}; attacked: {sizes(paper)}; PGD, linf, eps "
            f"{EPS}, {PAPER['steps']} steps, gradient of the client's own classifier (static), EoT 1. {command}",
        )
    return found


def over_eps(results: Results) -> Figure | None:
    """Worst case over eps with bands, of the arms that met several sizes."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    shown = 0
    for place, name in enumerate(NAMES):
        clean = results.unattacked(name)
        points = [(eps, results.worst(name, eps)) for eps in results.how.curve]
        known: list[tuple[float, Answers]] = [(eps, answers) for eps, answers in points if answers is not None]
        if clean is None or not known:
            continue
        known.insert(0, (0.0, clean))
        low, high = zip(*(answers.interval() for _, answers in known), strict=True)
        across, colour = [eps for eps, _ in known], COLOURS[place]
        axes.plot(across, [100 * answers.value for _, answers in known], "o-", label=NAMES[name], color=colour)
        axes.fill_between(across, [100 * x for x in low], [100 * x for x in high], color=colour, alpha=0.12)
        shown += 1
    if not shown:
        return None
    axes.set(xlabel="eps (linf)", ylabel="balanced accuracy, worst case, %", ylim=(0, 102))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.grid(alpha=0.3)
    return figure


def front(results: Results) -> Figure | None:
    """Clean accuracy against the worst case."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    shown = 0
    for place, name in enumerate(NAMES):
        clean, hard = results.clean(name), results.worst(name, EPS)
        if clean is None or hard is None:
            continue
        (left, right), (low, high) = clean.interval(), hard.interval()
        x, y = 100 * clean.value, 100 * hard.value
        across, up = [[x - 100 * left], [100 * right - x]], [[y - 100 * low], [100 * high - y]]
        axes.errorbar(x, y, up, across, fmt="o", color=COLOURS[place], label=NAMES[name], elinewidth=0.8)
        shown += 1
    if not shown:
        return None
    axes.set(xlabel="clean balanced accuracy, %", ylabel=f"worst case at eps {EPS}, %", ylim=(-2, 102))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    axes.grid(alpha=0.3)
    return figure


def _federated(results: Results) -> Iterator[Document]:
    """What the clients of each strategy said, adversarially trained."""
    found = (results.read(PLACE, f"clients_{name}_robust") for name in STRATEGIES)
    return (document for document in found if document is not None)


def bars(results: Results, place: str = PLACE) -> Figure | None:
    """Clean and under the paper's attack, of every client of every strategy, adversarially trained."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    ticks: list[tuple[float, str]] = []
    across = 0
    for name, words in STRATEGIES.items():
        found = results.read(place, f"clients_{name}_robust")
        if found is None:
            continue
        clean, paper = (clients(results, place, found, PICKS[kind]) for kind in (0, 1))
        for client, (one, other) in enumerate(zip(clean, paper, strict=True)):
            labels = ("clean", "paper's attack") if not ticks and not client else (None, None)
            for shift, answers, shade, label in ((-0.2, one, 0.35, labels[0]), (0.2, other, 1.0, labels[1])):
                value, (low, high) = 100 * answers.value, answers.interval()
                axes.bar(across + shift, value, 0.4, color=COLOURS[0], alpha=shade, label=label)
                spread = [[value - 100 * low], [100 * high - value]]
                axes.errorbar(across + shift, value, spread, fmt="none", ecolor="#222222", elinewidth=0.8)
            across += 1
        ticks.append((across - len(clean) / 2 - 0.5, words))
        across += 1
    if not ticks:
        return None
    axes.set_xticks([at for at, _ in ticks], [words for _, words in ticks])
    axes.set(ylabel=f"balanced accuracy, %; eps {EPS}", ylim=(0, 102))
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1))
    return figure
