"""The tables of the study, in Markdown, of what was measured."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.study.bench import ARMS
from benchmarks.study.cells import (
    NOT_YET,
    NOTHING,
    STATIC,
    WORDS,
    cell,
    doubts,
    fewer_folds,
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
    answers_of,
    area_interval,
    gap,
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
    ("Does the mean of five purifications do better than one?", "voted", "paper"),
    ("Does fine-tuning on purified images, and flagging more, help the chain?", "tuned_chain", "paper"),
    ("Does it then do better than a median filter of every image?", "tuned_chain", "median"),
    ("Is purifying what is flagged better than purifying all then?", "tuned_chain", "tuned_purify_all"),
    ("Does fine-tuning alone help the undefended classifier?", "tuned", "undefended"),
    ("Does adversarial training help?", "robust", "undefended"),
    ("Does the chain help the adversarially trained classifier?", "robust_chain", "robust"),
    ("Does purifying all help it?", "robust_purify_all", "robust"),
    ("Does mixing it with the undefended one help?", "mixed", "robust"),
)
_NUMBER = r"-?\d[\d.]*(?:e-?\d+)?"
COMPARED = tuple(name for name in WORDS if name != "robust_short")
"""The defences of the first table: the short adversarial training is what federations are compared with."""
SHORT = {"tuned_chain": "fine-tuned on purified images + `paper`, threshold for a fifth of benign images"}
STRATEGIES: Mapping[str, str] = {
    "fedavg": "FedAvg",
    "fedper": "FedPer",
    "fedrep": "FedRep",
    "mixture": "mixture",
    "local": "alone",
}


def arms(results: Results, names: Sequence[str] = COMPARED) -> str:
    """One row an arm: clean, the paper's attack, the worst case on the images that all arms met."""
    common = _common(results, names)
    met = [len(hard.ids) for name in names if (hard := results.worst(name, EPS)) is not None]
    unequal = any(images > len(common) for images in met)
    lines = head(["defence", "folds", "clean", "paper's attack", "worst case", *["its own images"] * unequal])
    for name in names:
        clean = results.clean(name)
        if clean is None:
            continue
        folds = str(len(results.folds(f"static_{name}")))
        cells = [WORDS[name], folds, cell(clean), cell(results.paper(name)), _shared(results, name, common)]
        lines.append(line([*cells, *[_own(results, name)] * unequal]))
    if len(lines) == 2:
        return NOTHING
    names = [name for name in names if results.clean(name) is not None]
    told = made_by(results, "br35h_fold_*/static_*", "br35h_fold_*/ladder_*")
    return "\n".join([*lines, "", *_conditions(results, names), "", told])


def short(results: Results) -> str:
    """The arms that matter most, in fewer columns, for the README."""
    lines, presets = head(["defence", "clean", "paper's attack", "worst case"]), dict[str, None]()
    less = ("fixed_depth", "detector_only", "tuned", "tuned_purify_all")
    shown = [name for name in COMPARED if name not in less]
    for name in shown:
        clean = results.clean(name)
        if clean is None:
            continue
        words = SHORT.get(name, WORDS[name]) + fewer_folds(results, name)
        lines.append(line([words, cell(clean), cell(results.paper(name)), _own(results, name)]))
        presets |= dict.fromkeys(own["preset"] for own in results.folds(f"ladder_{name}").values())
    if len(lines) == 2:
        return NOTHING
    note = (
        f"{len(results.folds('static_undefended'))} of {len(results.how.folds)} folds. "
        f"Balanced accuracy in percent, 95 % interval over near-duplicate groups; linf, eps {EPS}. Clean: "
        f"{sizes(map(results.clean, shown))}. Paper's attack, on {sizes(map(results.paper, shown))}: PGD "
        "of 7 steps on the bare classifier (static), EoT 1. Worst case: per image over static, BPDA, exact gradients "
        "and black-box, on so many images as stand in square brackets, one of each group; where they differ, the "
        f"results compare in pairs; {'; '.join(presets)}. Folds are not equally hard: a row of fewer folds is no match "
        "for the others; what is fine-tuned was found on the test images of one of its folds."
    )
    return "\n".join([*lines, "", note])


def questions(results: Results) -> str:
    """One row a question: differences in points, in pairs."""
    lines = head(["question", "clean", "paper's attack", "worst case", "answer"])
    pairs: list[list[Difference]] = [[], [], []]
    getters = (results.clean, results.paper, hardest(results))
    rows = [(words, [gap(getter(one), getter(other)) for getter in getters]) for words, one, other in QUESTIONS]
    for _, found in rows:
        for column, own in zip(pairs, found, strict=True):
            column += [own] if own is not None else []
    most = [max((own.images for own in column), default=0) for column in pairs]
    for words, found in rows:
        if not any(found):
            continue
        cells = [points(own) + _fewer(own, images) for own, images in zip(found, most, strict=True)]
        lines.append(line([words, *cells, _verdict(found)]))
    columns = zip(("clean", "paper's attack", "worst case"), pairs, strict=True)
    met = "; ".join(f"{name} {sizes(own)}" for name, own in columns if own)
    note = (
        "Differences of balanced accuracy in points, first less second arm, on the images that both met, with 95 % "
        f"intervals in pairs over near-duplicate groups: {met}, in square brackets where they are not the most. "
        "The answer looks at the worst case where it is "
        f"measured and at the paper's attack otherwise. Paper's attack: {STATIC}; worst case: the same norm and eps, "
        "attacks, steps, gradients and EoT of each arm as under the first table."
    )
    told = made_by(results, "br35h_fold_*/static_*", "br35h_fold_*/ladder_*")
    return "\n".join([*lines, "", note, "", told])


def costs(results: Results) -> str:
    """One row an arm: milliseconds and network evaluations an image, and what the detector did."""
    lines = head(["defence", "ms", "evaluations", "flagged, benign", "flagged, attacked", "AUROC"])
    for name in COMPARED:
        documents = list(results.folds(f"static_{name}").values())
        if not documents:
            continue
        timed = [own["clean"] for own in documents if own["device"].startswith("CPU")]
        clean, attacked, benign = ([document[kind] for document in documents] for kind in ("clean", "paper", "benign"))
        told = ["", "", ""]
        if ARMS[name][1] not in ("none", "median", "purify_all"):
            told = [f"{_mean(clean, 'flagged'):.2f}; {_share(benign)}", _share(attacked), _area(documents)]
        evaluations = " / ".join(f"{_mean(rows, 'nfe'):.1f}" for rows in (clean, attacked))
        lines.append(line([WORDS[name], f"{_mean(timed, 'ms'):.0f}" if timed else NOT_YET, evaluations, *told]))
    if len(lines) == 2:
        return NOTHING
    known = [name for name in COMPARED if results.clean(name) is not None]
    said = next(iter(results.folds(f"static_{known[0]}").values()))
    bare = [
        own["clean"]["ms"]
        for name in known
        for own in results.folds(f"static_{name}").values()
        if name in ("undefended", "robust", "tuned") and own["device"].startswith("CPU")
    ]
    least, slowest = min(bare, default=0.0), max(bare, default=0.0)
    note = (
        "Milliseconds of one image and draw, batches of 64, one thread of a CPU whose load changed, of the folds "
        f"measured there: one network took from {least:.0f} to {slowest:.0f}, so count evaluations instead. "
        "Evaluations are those of the noise predictor, benign / "
        f"attacked. Benign evaluations and the first share of flags: {sizes(map(results.clean, known))}; all else, "
        "one image of each group: "
        f"{sizes(map(results.paper, known))}, with 95 % intervals, of shares after Wilson, of the AUROC after Hanley "
        "and McNeil. AUROC: attacked images that fooled the bare classifier, their number in brackets, against benign "
        f"ones, mean over folds. Attacked: {said['paper']['attack']}; of the bare classifier (static), EoT 1."
    )
    return "\n".join([*lines, "", note, "", made_by(results, "br35h_fold_*/static_*")])


def pooled(results: Results, place: str) -> str:
    """One row an arm of a place that is no fold of Br35H, and plain accuracy beside the balanced one."""
    lines, threats = head(["classifier", "clean", "accuracy", "paper's attack", "worst case"]), dict[str, None]()
    for name in WORDS:
        found = results.read(place, f"static_{name}")
        if found is None:
            continue
        clean, paper = (results.answers({place: found}, answers_of(kind)) for kind in ("clean", "paper"))
        ladder = results.read(place, f"ladder_{name}")
        hard = None if ladder is None else results.answers({place: ladder}, lambda own: worst(own, EPS))
        plain = f"{100 * float(clean.right.mean()):.1f}"
        lines.append(line([WORDS[name], cell(clean), plain, cell(paper), cell(hard)]))
        threats[f"Clean: {sizes([clean])}; attacked: {sizes([paper])}; 95 % intervals over groups."] = None
        threats[f"{paper_attack(found)}."] = None
        if ladder is not None:
            threats[f"{worst_attack(ladder)}."] = None
    if len(lines) == 2:
        return NOTHING
    return "\n".join([*lines, "", *[f"- {threat}" for threat in threats], "", made_by(results, f"{place}/*")])


def choice(results: Results, place: str = "br35h_fold_0") -> str:
    """The arms of the recipe `robust` and of `paper` on validation groups: where a default is chosen."""
    lines = head(["defence", "clean", "worst case, validation groups", "worst case, test groups"])
    seen: dict[str, Answers] = {}
    trusted: dict[str, tuple[Answers, Answers | None]] = {}
    threats = []
    for name in WORDS:
        found, tested = results.read(place, f"choose_{name}"), results.read(place, f"ladder_{name}")
        if found is None:
            continue
        clean = results.answers({place: found}, unattacked, "validation")
        hard = results.answers({place: found}, lambda own: worst(own, EPS), "validation")
        test = None if tested is None else results.answers({place: tested}, lambda own: worst(own, EPS))
        marks = [" UNRELIABLE" * bool(own and own["unreliable"]) for own in (found, tested)]
        size = "" if test is None else f" [{len(test.ids)}]"
        lines.append(line([WORDS[name], cell(clean), cell(hard) + marks[0], cell(test) + marks[1] + size]))
        seen[name] = hard
        if not marks[0]:
            trusted[name] = hard, None if marks[1] else test
        threats.append(f"- {name}: {worst_attack(found)}.")
    if not seen:
        return NOTHING
    told = f"{sizes(seen.values())} on validation, 95 % intervals over groups; in brackets: test images."
    commands = made_by(results, f"{place}/choose_*")
    return "\n".join([*lines, "", _chosen(trusted), "", told, "", *threats, "", commands])


def _chosen(seen: Mapping[str, tuple[Answers, Answers | None]]) -> str:
    """What validation groups alone would choose, and what it got on the test images that all of them met."""
    if not seen:
        return "No worst case on validation groups can be trusted."
    chosen = max(seen, key=lambda name: seen[name][0].value)
    told = f"Without the unreliable ones validation groups choose *{WORDS[chosen]}*"
    both = {name: test for name, (_, test) in seen.items() if test is not None}
    if chosen not in both:
        return f"{told}, whose worst case on test groups is not known."
    common = sorted(set.intersection(*(set(test.ids.tolist()) for test in both.values())))
    tested = {name: test.at(common) for name, test in both.items()}
    best = max(tested, key=lambda name: tested[name].value)
    told += f": {cell(tested[chosen])} on the {len(common)} test images that all of these met."
    if best == chosen:
        return f"{told} It is the best there too."
    return f"{told} The best there is *{WORDS[best]}*: {cell(tested[best])}."


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


def _common(results: Results, names: Iterable[str]) -> set[int]:
    """Images that every one of these arms met whose ladder is measured on the most folds."""
    folds = {name: len(results.folds(f"ladder_{name}")) for name in names}
    most = max(folds.values(), default=0)
    whole = [results.worst(name, EPS) for name, count in folds.items() if count == most]
    met = [set(hard.ids.tolist()) for hard in whole if hard is not None]
    return set.intersection(*met) if met else set()


def _shared(results: Results, name: str, common: set[int]) -> str:
    """An arm's worst case on the images that all met."""
    hard = results.worst(name, EPS)
    if hard is None:
        return NOT_YET
    if not common or not common <= set(hard.ids.tolist()):
        return "not on these"
    return f"{cell(hard.at(sorted(common)))}{_mark(results, name)}"


def _own(results: Results, name: str) -> str:
    """An arm's worst case on all images that it met, and their number."""
    hard = results.worst(name, EPS)
    return NOT_YET if hard is None else f"{cell(hard)}{_mark(results, name)} [{len(hard.ids)}]"


def _mark(results: Results, name: str) -> str:
    return " UNRELIABLE" if doubts(results, name) else ""


def _fewer(found: Difference | None, most: int) -> str:
    """The images of a difference, where others are of more."""
    return f" [{found.images}]" if found is not None and found.images < most else ""


def _verdict(found: Sequence[Difference | None]) -> str:
    clean, paper, hard = found
    asked = hard or paper
    if asked is None:
        return NOT_YET
    where = "in the worst case" if hard else "under the paper's attack only"
    word = "yes" if asked.low > 0 else "no, it costs" if asked.high < 0 else "not shown"
    price = f"; it costs {-100 * clean.value:.1f} clean" if clean is not None and clean.high < 0 else ""
    return f"{word} {where}{price}"


def _conditions(results: Results, names: Sequence[str]) -> list[str]:
    common = len(_common(results, names))
    cases = (
        f"worst case: the same {common} images of all defences that met attackers on the most folds, or, where it has "
        "a column, the defence's own, with their number"
        if common
        else "worst case: the defence's own images, with their number"
    )
    told = (
        "Balanced accuracy in percent, 95 % interval over near-duplicate groups. Clean: "
        f"{sizes(map(results.clean, names))}, each tested once; paper's attack: {sizes(map(results.paper, names))}, "
        f"one image of each group; {cases}. A refused image is not right. Images of {results.how.size} px, eps in "
        "these pixels. Folds are not equally hard: where not all five are measured, compare rows of equal folds only. "
        f"{_machines(results, names)}"
    )
    threats: dict[str, list[str]] = {}
    marked = []
    for name in names:
        for own in results.folds(f"static_{name}").values():
            _told(threats, paper_attack(own), name)
        for own in results.folds(f"ladder_{name}").values():
            _told(threats, worst_attack(own), name)
        if doubts(results, name):
            marked.append(f"- UNRELIABLE, {name}: {'; '.join(_by_fold(results, name))}.")
    return [told, "", *[f"- {', '.join(names)}: {threat}." for threat, names in threats.items()], *marked]


def _by_fold(results: Results, name: str) -> list[str]:
    """Each kind of doubt in the words of its first fold, and of the others in their numbers."""
    found: dict[str, list[str]] = {}
    for place, own in results.folds(f"ladder_{name}").items():
        for reason in own["unreliable"]:
            kind = re.sub(_NUMBER, "", reason)
            told = ", ".join(re.findall(_NUMBER, reason)) if kind in found else reason
            found.setdefault(kind, []).append(f"{told} (fold {place.rpartition('_')[2]})")
    return [" | ".join(own).replace(" | ", ", so ", 1).replace(" | ", ", ") for own in found.values()]


def _machines(results: Results, names: Iterable[str]) -> str:
    """Which folds were trained or measured on what."""
    found: dict[str, set[str]] = {}
    for name in names:
        for kind in ("static", "ladder"):
            for place, own in results.folds(f"{kind}_{name}").items():
                found.setdefault(own["device"].partition(",")[0], set()).add(place.rpartition("_")[2])
    told = [f"{device}: fold{'s' * (len(folds) > 1)} {', '.join(sorted(folds))}" for device, folds in found.items()]
    return f"Measured on {'; '.join(told)}."


def _told(threats: dict[str, list[str]], threat: str, name: str) -> None:
    own = threats.setdefault(threat, [])
    if name not in own:
        own.append(name)


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    images = [len(numbers(row["ids"])) for row in rows]
    return float(sum(row[name] * size for row, size in zip(rows, images, strict=True)) / sum(images))


def _share(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of images of as many groups, those that were flagged."""
    images = sum(len(numbers(row["ids"])) for row in rows)
    share = _mean(rows, "flagged")
    low, high = wilson(round(share * images), images)
    return f"{share:.2f} ({low:.2f} to {high:.2f})"


def _area(documents: Sequence[Document]) -> str:
    """Mean of the folds where an attacked image fooled."""
    known = [own for own in documents if "auroc" in own["paper"]]
    if not known:
        return NOT_YET
    areas = [own["paper"]["auroc"] for own in known]
    fooled, benign = ([own["paper"]["scored"] for own in known], [len(numbers(own["benign"]["ids"])) for own in known])
    low, high = area_interval(areas, fooled, benign)
    return f"{sum(areas) / len(areas):.3f} ({low:.3f} to {high:.3f}) [{sum(fooled)}]"
