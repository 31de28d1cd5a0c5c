"""What the study shows, in sentences and against its aims: drawn of the figures, so that neither outlives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from benchmarks.study.cells import (
    NOT_YET,
    NOTHING,
    STATIC,
    WORDS,
    Getter,
    cell,
    doubts,
    fewer_folds,
    hardest,
    head,
    line,
    points,
    sizes,
)
from benchmarks.study.clients import gains
from benchmarks.study.how import EPS
from benchmarks.study.plan import Plan
from benchmarks.study.stats import Answers, Results, answers_of, gap, worst
from benchmarks.study.tables import QUESTIONS

SAID: Mapping[str, str] = {
    "undefended": "no defence",
    "median": "a median filter of every image",
    "detector_only": "the detector alone",
    "paper": "the paper's chain",
    "fixed_depth": "the chain at fixed depth",
    "voted": "that chain with the mean of five purifications",
    "purify_all": "purifying every image",
    "robust": "adversarial training",
    "robust_short": "a short adversarial training",
    "mixed": "adversarial training mixed with the undefended",
    "robust_chain": "adversarial training with the chain",
    "robust_purify_all": "adversarial training with every image purified",
    "tuned": "fine-tuning on purified images",
    "tuned_chain": "fine-tuning on purified images with the chain",
    "tuned_purify_all": "fine-tuning on purified images with every image purified",
}
PUBLISHED = (97.67, 87.33)
"""Clean, and under the paper's attack: the paper's defence on its own split."""


def findings(results: Results, plan: Plan) -> str:
    """What was gained, against whom, at what price, and what was not."""
    clean = {name: found for name in WORDS if (found := results.clean(name)) is not None}
    if "undefended" not in clean:
        return NOTHING
    done = sum(map(plan.study.done, plan.units.values()))
    folds = len(results.folds("static_undefended"))
    lines = [
        f"**{folds} of {len(results.how.folds)} folds and {done} of {len(plan.units)} units are measured**: "
        f"{sizes([clean['undefended']])}, one image of each attacked. Read right, in percent, balanced over classes "
        "(95 % interval over groups):",
        "",
    ]
    told = (_ignorant, _knowing, _unshown, _price, _personal, _open)
    lines += [f"- {text}" for tell in told if (text := tell(results))]
    return "\n".join(lines)


def _ignorant(results: Results) -> str:
    """The paper's own claim, beside the simplest defence."""
    found = _same(results.paper, ("undefended", "paper", "voted", "median"))
    if not {"paper", "undefended"} <= found.keys():
        return ""
    told = ", ".join(f"{SAID[name]} {cell(own)}" for name, own in found.items())
    return f"**Against who ignores the defence** ({STATIC}; {_images(found.values())}): {told}."


def _knowing(results: Results) -> str:
    """The best arm in the worst case, and what is left of the paper's."""
    hard, best = hardest(results), best_arm(results)
    if best is None:
        return ""
    told, known = [], {}
    for name in dict.fromkeys((best, "undefended", "median", "paper")):
        found = _same(hard, (name, best)).get(name)
        if found is None:
            told.append(f"{SAID[name]} {NOT_YET}")
            continue
        known[name] = found
        few = f" on {_images([found])}" if len(found.ids) < len(known[best].ids) else ""
        told.append(f"{SAID[name]} {cell(found)}{' UNRELIABLE' if doubts(results, name) else ''}{few}")
    conditions = f"{threat(results, known)}; {_images(known.values())}"
    return f"**Against who knows all of it** ({conditions}): {', '.join(told)}."


def _price(results: Results) -> str:
    """Clean accuracy that the arms of the sentences before cost."""
    names = dict.fromkeys(["paper", best_arm(results) or "robust"])
    found = {name: gap(results.clean(name), results.clean("undefended")) for name in names}
    told = [f"{SAID[name]} {points(own)} points" for name, own in found.items() if own is not None]
    base = results.clean("undefended")
    assert base is not None
    return f"**Price on clean images**, beside {100 * base.value:.1f} undefended: {', '.join(told)}." if told else ""


def _unshown(results: Results) -> str:
    """Comparisons in which nothing was gained, or something lost."""
    told: dict[str, dict[str, list[str]]] = {"Worse": {}, "No gain shown": {}}
    for _, one, other in QUESTIONS:
        found = gap(hardest(results)(one), hardest(results)(other))
        where = "in the worst case"
        if found is None:
            found, where = gap(results.paper(one), results.paper(other)), "under the paper's attack"
        if found is not None and found.low <= 0:
            own = told["Worse" if found.high < 0 else "No gain shown"].setdefault(where, [])
            own.append(f"{SAID[one]} over {SAID[other]} {points(found)} [{found.images}]")
    texts = [
        f"**{word} {where}**: {'; '.join(own)}."
        for word, places in told.items()
        for where, own in places.items()
        if own
    ]
    return " ".join([*texts, "In square brackets: images."]) if texts else ""


def _personal(results: Results) -> str:
    """Personalized strategies beside FedAvg, where attacks meet them."""
    told: dict[str, list[str]] = {"Better": [], "No gain shown": [], "Worse": []}
    for name, kind, where, found in gains(results):
        word = "Better" if found.low > 0 else "Worse" if found.high < 0 else "No gain shown"
        told[word].append(f"{name}, {kind}, {where} {points(found)}")
    parts = [f"{word}: {'; '.join(own)}" for word, own in told.items() if own]
    return f"**Personalized or alone, over FedAvg**: {'. '.join(parts)}." if parts else ""


def _open(results: Results) -> str:
    """Arms without a worst case."""
    left = [name for name in WORDS if name != "robust_short" and results.worst(name, EPS) is None]
    told = [f"the worst case of {len(left)} of {len(WORDS) - 1} defences"] if left else []
    folds = len(results.how.folds) - len(results.folds("static_undefended"))
    told += [f"{folds} folds"] if folds else []
    return f"**[Not measured](#what-is-not-measured)**: {'; '.join(told)}." if told else ""


def aims(results: Results, larger: Results) -> str:
    """What the study was to reach, and what it reached; `larger`: at the size of a GPU."""
    hard, best = hardest(results), best_arm(results)
    rows: list[tuple[str, str, str, bool | None]] = []

    def level(words: str, found: Answers | None, least: float) -> None:
        met = None if found is None else 100 * found.value >= least
        rows.append((words, f"at least {least:g}", cell(found), met))

    level("undefended, clean", results.clean("undefended"), 90)
    wanted = {"paper": "`paper`", "voted": WORDS["voted"], "tuned_chain": "`paper`, fine-tuned, threshold for a fifth"}
    for name, words in wanted.items():
        words += fewer_folds(results, name)
        level(f"{words}, the paper's attack", results.paper(name), PUBLISHED[1])
        cost = gap(results.clean(name), results.clean("undefended"))
        met = None if cost is None else 100 * cost.value >= -1.5 and 100 * cost.low >= -4
        rows.append((f"{words} less undefended, clean", "at least -1.5, interval from -4", points(cost), met))
    level(f"{SAID[best] if best else 'the best defence'}, best in the worst case", hard(best) if best else None, 75)
    more = None if best is None else gap(hard(best), hard("robust"))
    words = "the best defence less adversarial training, worst case"
    told = "adversarial training is the best" if best == "robust" else points(more)
    rows.append((words, "at least 0", told, None if more is None else more.value >= 0))
    leaking = [_leaking(results, name) for name in WORDS]
    both = max((own for own in leaking if own is not None), key=lambda own: own[1].value, default=None)
    told = NOT_YET if both is None else f"{cell(both[0])} and {cell(both[1])}"
    met = None if both is None else all(100 * own.value >= least for own, least in zip(both, PUBLISHED, strict=True))
    words = "one defence on the paper's own, leaking split, clean and in the worst case"
    rows.append((words, f"at least {PUBLISHED[0]} and {PUBLISHED[1]}", told, met))
    level("with larger images, undefended, clean", larger.clean("undefended"), 95)
    level("with larger images, `paper`, the paper's attack", larger.paper("paper"), 93)
    strongest = best_arm(larger)
    words = "with larger images, the best in the worst case"
    level(words, hardest(larger)(strongest) if strongest else None, PUBLISHED[1])
    lines = head(["aim", "wanted", "measured", "reached"])
    lines += [line([*texts, NOT_YET if met is None else "yes" if met else "**no**"]) for *texts, met in rows]
    note = (
        f"By the figure itself, on {len(results.folds('static_undefended'))} of {len(results.how.folds)} folds; larger "
        f"images are those of {larger.how.size} px; intervals, images, threat models and units as under the other "
        "tables."
    )
    return "\n".join([*lines, "", note])


def best_arm(results: Results) -> str | None:
    """Of the defences whose worst case is known on the most images, and is no artefact, the best one."""
    known = {
        name: found
        for name in WORDS
        if name != "undefended" and (found := results.worst(name, EPS)) is not None and not doubts(results, name)
    }
    return max(known, key=lambda name: (len(known[name].ids), known[name].value), default=None)


def threat(results: Results, names: Iterable[str]) -> str:
    """Norm, eps, attacks, steps, gradients and EoT of the worst case of some arms, in few words."""
    documents = [document for name in names for document in results.folds(f"ladder_{name}").values()]
    text = "; ".join(document["worst"][f"{EPS:.4g}"]["threat"] for document in documents)
    counts = [int(number) for number in re.findall(r"the worst of (\d+) attacks", text)] or [1]
    attacks = " to ".join(map(str, sorted({min(counts), max(counts)})))
    steps, draws = ({int(number) for number in re.findall(rf"{word} (\d+)", text)} for word in ("steps", "EoT"))
    seen = dict.fromkeys(mode for found in re.findall(r"through ([\w, ]+)", text) for mode in found.strip().split(", "))
    told = [f"worst of {attacks} attacks for each image, linf, eps {EPS}, through {', '.join(seen)}"]
    told += [f"up to {max(steps)} steps"] if steps else []
    told += [f"EoT {' to '.join(map(str, sorted({min(draws), max(draws)})))}"] if draws else []
    return ", ".join([*told, *dict.fromkeys(document["note"].partition(":")[0] for document in documents)])


def _leaking(results: Results, name: str) -> tuple[Answers, Answers] | None:
    said, ladder = results.read("br35h_leaking", f"static_{name}"), results.read("br35h_leaking", f"ladder_{name}")
    if said is None or ladder is None:
        return None
    clean = results.answers({"br35h_leaking": said}, answers_of("clean"))
    return clean, results.answers({"br35h_leaking": ladder}, lambda own: worst(own, EPS))


def _same(getter: Getter, names: Iterable[str]) -> dict[str, Answers]:
    """Of the arms that are measured, on the images that all of them met."""
    found = {name: answers for name in names if (answers := getter(name)) is not None}
    common = set.intersection(*(set(answers.ids.tolist()) for answers in found.values())) if found else set()
    return {name: answers.at(sorted(common)) for name, answers in found.items()} if common else {}


def _images(found: Iterable[Answers]) -> str:
    return f"{max(len(own.ids) for own in found)} images"
