"""The tables of the study, in Markdown, of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.bench import ARMS
from benchmarks.study.cells import (
    NOT_YET,
    NOTHING,
    WORDS,
    cell,
    hardest,
    head,
    line,
    made_by,
    paper_attack,
    points,
    sizes,
    worst_attack,
)
from benchmarks.study.how import EPS
from benchmarks.study.plan import Plan
from benchmarks.study.stats import (
    Answers,
    Difference,
    Document,
    Results,
    area_interval,
    difference,
    numbers,
    unattacked,
    worst,
)
from medfedpure.figures.intervals import wilson

QUESTIONS: Sequence[tuple[str, str, str]] = (
    ("Does detecting and purifying help the undefended classifier?", "paper", "undefended"),
    ("Does it do better than a median filter of every image?", "paper", "median"),
    ("Is purifying what is flagged better than purifying all?", "paper", "purify_all"),
    ("The same around the adversarially trained one?", "robust_chain", "robust_purify_all"),
    ("Is depth by score better than the greatest depth?", "paper", "fixed_depth"),
    ("Does adversarial training help?", "robust", "undefended"),
    ("Does the chain help the adversarially trained classifier?", "robust_chain", "robust"),
    ("Does purifying all help it?", "robust_purify_all", "robust"),
    ("Does mixing it with the undefended one help?", "mixed", "robust"),
)


def arms(results: Results, names: Iterable[str] = tuple(WORDS)) -> str:
    """One row an arm: clean, the paper's attack, the worst case on the images that all arms met."""
    common = _common(results)
    hardest = [f"worst case, the same {len(common)} images", "worst case, all attacked"]
    lines = head(["defence", "folds", "clean", "paper's attack", *hardest])
    for name in names:
        clean = results.clean(name)
        if clean is None:
            continue
        hard = results.worst(name, EPS)
        everything = NOT_YET if hard is None else f"{cell(hard)}{_mark(results, name)} ({len(hard.ids)})"
        folds = str(len(results.folds(f"static_{name}")))
        cells = [WORDS[name], folds, cell(clean), cell(results.paper(name))]
        lines.append(line([*cells, _shared(results, name, common), everything]))
    if len(lines) == 2:
        return NOTHING
    return "\n".join([*lines, "", *_conditions(results, names)])


def short(results: Results) -> str:
    """The same arms in fewer columns, for the README."""
    common = _common(results)
    lines, presets = head(["defence", "clean", "paper's attack", "worst case"]), dict[str, None]()
    for name in WORDS:
        clean = results.clean(name)
        if clean is None or name == "robust_short":
            continue
        lines.append(line([WORDS[name], cell(clean), cell(results.paper(name)), _shared(results, name, common)]))
        presets |= dict.fromkeys(own["preset"] for own in results.folds(f"ladder_{name}").values())
    if len(lines) == 2:
        return NOTHING
    note = (
        f"Balanced accuracy in percent, 95 % interval over near-duplicate groups; linf, eps {EPS}. Paper's attack: PGD "
        "of 7 steps on the bare classifier (static), EoT 1. Worst case: per image over static, BPDA, exact gradients "
        f"and black-box, on the same {len(common)} images for all; {'; '.join(presets)}."
    )
    return "\n".join([*lines, "", note])


def questions(results: Results) -> str:
    """One row a question: differences in points, in pairs."""
    lines = head(["question", "clean", "paper's attack", "worst case", "answer"])
    for words, one, other in QUESTIONS:
        found = [gap(getter(one), getter(other)) for getter in (results.clean, results.paper, hardest(results))]
        lines.append(line([words, *map(points, found), _verdict(found)]))
    note = (
        "Differences of balanced accuracy in points, first less second arm, on the images that both met, with 95 % "
        "intervals in pairs over near-duplicate groups. The answer looks at the worst case where it is measured and at "
        f"the paper's attack otherwise; linf, eps {EPS}."
    )
    return "\n".join([*lines, "", note])


def costs(results: Results) -> str:
    """One row an arm: milliseconds and network evaluations an image, and what the detector did."""
    lines = head(
        [
            "defence",
            "ms",
            "evaluations, benign",
            "evaluations, attacked",
            "flagged, benign",
            "flagged, attacked",
            "AUROC",
        ]
    )
    for name in WORDS:
        documents = list(results.folds(f"static_{name}").values())
        if not documents or name == "robust_short":
            continue
        clean, attacked = ([document[kind] for document in documents] for kind in ("clean", "paper"))
        scores = [document["paper"]["auroc"] for document in documents if "auroc" in document["paper"]]
        detects = ARMS[name][1] in ("purify_flagged", "fixed_depth", "abstain")
        shares = [f"{_mean(rows, 'flagged'):.2f}" if detects else "" for rows in (clean, attacked)]
        evaluations = [f"{_mean(rows, 'nfe'):.1f}" for rows in (clean, attacked)]
        area = f"{sum(scores) / len(scores):.3f}" if detects and scores else ""
        lines.append(line([WORDS[name], f"{_mean(clean, 'ms'):.0f}", *evaluations, *shares, area]))
    note = (
        "Milliseconds of one image and draw, batches of 64, on the machine that measured, which did other things too: "
        "compare them roughly. Evaluations are those of the noise predictor. Attacked: the paper's attack; AUROC: "
        "images that fooled the bare classifier against benign ones, mean over folds."
    )
    return "\n".join([*lines, "", note])


def pooled(results: Results, place: str) -> str:
    """One row an arm of a place that is no fold of Br35H, and plain accuracy beside the balanced one."""
    lines, threats = head(["classifier", "clean", "accuracy", "paper's attack", "worst case"]), dict[str, None]()
    for name in WORDS:
        found = results.read(place, f"static_{name}")
        if found is None:
            continue
        clean, paper = (results.answers({place: found}, _pick(kind)) for kind in ("clean", "paper"))
        ladder = results.read(place, f"ladder_{name}")
        hard = None if ladder is None else results.answers({place: ladder}, lambda own: worst(own, EPS))
        plain = f"{100 * float(clean.right.mean()):.1f}"
        lines.append(line([WORDS[name], cell(clean), plain, cell(paper), cell(hard)]))
        sizes = f"{len(clean.ids)} images of {len(clean.groups.unique())} groups, {len(paper.ids)} of them attacked"
        threats[f"{sizes}; paper's attack: {found['paper']['attack']}; {found['paper']['gradient']}"] = None
        if ladder is not None:
            threats[f"worst case: {ladder['worst'][f'{EPS:.4g}']['threat']}; {ladder['note']}"] = None
    return "\n".join([*lines, "", *[f"- {threat}" for threat in threats]]) if len(lines) > 2 else NOTHING


def choice(results: Results, place: str = "br35h_fold_0") -> str:
    """The arms of the recipe `robust` and of `paper` on validation groups: where a default is chosen."""
    lines, told = head(["defence", "clean", "worst case, validation groups", "worst case, test groups"]), ""
    for name in WORDS:
        found, tested = results.read(place, f"choose_{name}"), results.read(place, f"ladder_{name}")
        if found is None:
            continue
        clean = results.answers({place: found}, unattacked, "validation")
        hard = results.answers({place: found}, lambda own: worst(own, EPS), "validation")
        test = None if tested is None else results.answers({place: tested}, lambda own: worst(own, EPS))
        lines.append(line([WORDS[name], *map(cell, (clean, hard, test))]))
        told = f"{len(hard.ids)} images of as many groups; {found['worst'][f'{EPS:.4g}']['threat']}; {found['note']}."
    return "\n".join([*lines, "", told]) if len(lines) > 2 else NOTHING


def missing(plan: Plan) -> str:
    """What is not measured, and what it would cost."""
    rows: dict[tuple[str, str], list[float]] = {}
    for unit in plan.units.values():
        if not plan.study.done(unit):
            rows.setdefault((unit.place, unit.kind), []).append(plan.forecast(unit).seconds)
    if not rows:
        return "Every unit is measured."
    lines = head(["where", "what", "units", "hours of one core, forecast"])
    for (place, kind), seconds in rows.items():
        lines.append(line([place, kind, str(len(seconds)), f"{sum(seconds) / 3600:.1f}"]))
    total = sum(sum(seconds) for seconds in rows.values()) / 3600
    return "\n".join([*lines, "", f"Together {total:.1f} hours of one core."])


def _pick(kind: str) -> Callable[[Document], Document]:
    return lambda document: document[kind]


def _common(results: Results) -> set[int]:
    """Images that every arm met whose ladder is measured."""
    met = [set(hard.ids.tolist()) for name in WORDS if (hard := results.worst(name, EPS)) is not None]
    return set.intersection(*met) if met else set()


def _shared(results: Results, name: str, common: set[int]) -> str:
    """An arm's worst case on the images that all met."""
    hard = results.worst(name, EPS)
    return NOT_YET if hard is None else f"{cell(hard.at(sorted(common)))}{_mark(results, name)}"


def _mark(results: Results, name: str) -> str:
    return " UNRELIABLE" if _doubts(results, name) else ""


def gap(one: Answers | None, other: Answers | None) -> Difference | None:
    if one is None or other is None or not set(one.ids.tolist()) & set(other.ids.tolist()):
        return None
    return difference(one, other)


def _verdict(found: Sequence[Difference | None]) -> str:
    clean, paper, hard = found
    asked = hard or paper
    if asked is None:
        return NOT_YET
    where = "in the worst case" if hard else "under the paper's attack only"
    word = "yes" if asked.low > 0 else "no, it costs" if asked.high < 0 else "not shown"
    price = f"; it costs {-100 * clean.value:.1f} clean" if clean is not None and clean.high < 0 else ""
    return f"{word} {where}{price}"


def _doubts(results: Results, name: str) -> list[str]:
    return [doubt for own in results.folds(f"ladder_{name}").values() for doubt in own["unreliable"]]


def _conditions(results: Results, names: Iterable[str]) -> list[str]:
    images = {len(found.ids): found for name in names if (found := results.clean(name)) is not None}
    most = images[max(images)]
    head = (
        f"Balanced accuracy in percent, 95 % interval over near-duplicate groups. Clean: up to {len(most.ids)} test "
        f"images of {len(most.groups.unique())} groups, each tested once; the rest: one image of each group. A refused "
        f"image is not right. Images of {results.how.size} px, eps in these pixels. In brackets: images attacked. "
        "Folds are not equally hard: where not all five are measured, compare rows of equal folds only."
    )
    threats: dict[str, list[str]] = {}
    doubts = []
    for name in names:
        for own in results.folds(f"static_{name}").values():
            _told(threats, f"paper's attack: {own['paper']['attack']}; {own['paper']['gradient']}", name)
        for own in results.folds(f"ladder_{name}").values():
            _told(threats, f"worst case: {own['worst'][f'{EPS:.4g}']['threat']}; {own['note']}", name)
        if reasons := dict.fromkeys(_doubts(results, name)):
            doubts.append(f"- UNRELIABLE, {name}: {'; '.join(reasons)}")
    return [head, "", *[f"- {', '.join(names)}: {threat}." for threat, names in threats.items()], *doubts]


def _told(threats: dict[str, list[str]], threat: str, name: str) -> None:
    own = threats.setdefault(threat, [])
    if name not in own:
        own.append(name)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    sizes = [len(numbers(row["ids"])) for row in rows]
    return float(sum(row[name] * size for row, size in zip(rows, sizes, strict=True)) / sum(sizes))
