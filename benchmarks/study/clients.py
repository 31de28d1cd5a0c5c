"""The tables of the study's federations, in Markdown, of what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.study.cells import (
    NOT_YET,
    NOTHING,
    cell,
    head,
    line,
    made_by,
    paper_attack,
    points,
    sizes,
    worst_attack,
)
from benchmarks.study.how import EPS
from benchmarks.study.stats import Answers, Difference, Document, Results, answers_of, gap, worst
from benchmarks.study.tables import STRATEGIES
from medfedpure.figures.intervals import cluster_bootstrap

POOLED: Mapping[str, str] = {"plain": "undefended", "robust": "robust_short"}
"""The arm whose training takes as many steps as all clients together, by what these train."""
PICKS: Sequence[Callable[[Document], Document | None]] = (
    answers_of("clean"),
    answers_of("paper"),
    lambda own: worst(own["ladder"], EPS) if "ladder" in own else None,
)
"""Clean, under the paper's attack, and in the worst case."""


def federation(results: Results, place: str = "br35h_fold_0") -> str:
    """One row a strategy and training: the mean of the clients, least and most; in pairs against FedAvg and pooled."""
    gaps = ["less FedAvg: clean", "worst case", "less pooled: clean", "worst case"]
    lines = head(["strategy", "training", "clean", "paper's attack", "worst case", *gaps])
    threats, met = dict[str, None](), list[list[Answers | None]]()
    for kind, arm in POOLED.items():
        together = _together(results, place, arm)
        if any(together):
            lines.append(line(["pooled", kind, *map(cell, together), *[""] * 4]))
            met.append(together)
            said, ladder = results.read(place, f"static_{arm}"), results.read(place, f"ladder_{arm}")
            threats |= _threats({**(said or {}), **({} if ladder is None else {"ladder": ladder})})
        base = results.read(place, f"clients_fedavg_{kind}")
        first = [None if base is None else _averaged(clients(results, place, base, pick)) for pick in PICKS]
        for name, words in STRATEGIES.items():
            found = results.read(place, f"clients_{name}_{kind}")
            if found is None:
                continue
            rows = [clients(results, place, found, pick) for pick in PICKS]
            own = [_averaged(row) for row in rows]
            met.append(own)
            against = [first if name != "fedavg" else [], together]
            planned = kind == "robust"  # clients that are trained plainly meet the paper's attack alone
            told = [_spread(row) if row or planned else "" for row in rows]
            cells = [
                points(gap(own[at], other[at])) if other and (planned or at == 0) else ""
                for other in against
                for at in (0, 2)
            ]
            lines.append(line([words, kind, *told, *cells]))
            for said in found["clients"].values():
                threats |= _threats(said)
    if len(lines) == 2:
        return NOTHING
    clean, paper, _ = zip(*met, strict=True)
    note = (
        "Balanced accuracy in percent, mean of the clients with its 95 % interval over near-duplicate groups, and in "
        "square brackets the least and the most of them; differences in points, in pairs, of all their images. All "
        f"clients together: clean {sizes(clean)}, attacked {sizes(paper)}. Pooled classifiers met the ladder at eps "
        f"{results.how.curve[0]:g} too, and that counts in their worst case; clients that are trained plainly meet no "
        "ladder."
    )
    command = made_by(results, f"{place}/federate_*", f"{place}/clients_*")
    return "\n".join([*lines, "", note, "", *[f"- {threat}." for threat in threats], "", command])


def insiders(results: Results, place: str = "br35h_fold_0") -> str:
    """For each strategy and training: clean, under one's own attack, and under those made on other clients' models."""
    lines = head(["strategy", "training", "not attacked", "attack made on the own model", "on another client's"])
    attack, met = "", list[Answers]()
    for kind in ("plain", "robust"):
        for name, words in STRATEGIES.items():
            found = results.read(place, f"insiders_{name}_{kind}")
            if found is None:
                continue
            kinds: dict[str, list[Answers]] = {"clean": [], "own": [], "other": []}
            for own in found["cells"]:
                made = own["crafted_on"]
                kinds["clean" if made is None else "own" if made == own["victim"] else "other"].append(
                    results.answers({place: own}, lambda own: own)
                )
                attack = own.get("attack", attack)
            lines.append(line([words, kind, *(_spread(rows) for rows in kinds.values())]))
            met += kinds["clean"]
    if len(lines) == 2:
        return NOTHING
    note = (
        "Balanced accuracy in percent, mean over clients or pairs with its 95 % interval over near-duplicate groups, "
        f"in square brackets the least and the most of them; each victim reads {sizes(met)}. {attack}; gradients of "
        "the attacker's own model, replayed on the victim, EoT 1."
    )
    return "\n".join([*lines, "", note, "", made_by(results, f"{place}/insiders_*")])


def gains(results: Results, place: str = "br35h_fold_0") -> Iterator[tuple[str, str, str, Difference]]:
    """Of each strategy beside FedAvg: its name, what was trained, under what, and the difference in pairs."""
    for kind in POOLED:
        base = results.read(place, f"clients_fedavg_{kind}")
        for name, words in STRATEGIES.items():
            own = results.read(place, f"clients_{name}_{kind}")
            if name == "fedavg" or own is None or base is None:
                continue
            for where, pick in (("worst case", PICKS[2]), ("paper's attack", PICKS[1])):
                found = gap(*(_averaged(clients(results, place, said, pick)) for said in (own, base)))
                if found is not None:
                    yield words, kind, where, found
                    break


def clients(
    results: Results, place: str, found: Document, pick: Callable[[Document], Document | None]
) -> list[Answers]:
    """What each client's model said; equal models were read once."""
    rows = []
    for own in found["clients"].values():
        chosen = pick(found["clients"][own["as"]] if "as" in own else own)
        if chosen is not None:
            rows.append(results.answers({place: chosen}, lambda document: document))
    return rows


def _together(results: Results, place: str, arm: str) -> list[Answers | None]:
    """Clean, under the paper's attack and in the worst case: the classifier of pooled training with as many steps."""
    said, hard = results.read(place, f"static_{arm}"), results.read(place, f"ladder_{arm}")
    found = [None if said is None else results.answers({place: said}, answers_of(kind)) for kind in ("clean", "paper")]
    return [*found, None if hard is None else results.answers({place: hard}, lambda own: worst(own, EPS))]


def _threats(said: Document) -> dict[str, None]:
    """The threat models of what was measured of one model."""
    found = [paper_attack(said)] if "paper" in said else []
    return dict.fromkeys([*found, *([worst_attack(said["ladder"])] if "ladder" in said else [])])


def _averaged(rows: Sequence[Answers]) -> Answers | None:
    """The mean over clients that read the same images, or all images of clients that read different ones."""
    if not rows:
        return None
    first, fields = rows[0], ("ids", "labels", "groups", "right", "fooled")
    if all(row.ids.tolist() == first.ids.tolist() for row in rows):
        right, fooled = (torch.stack([getattr(row, name) for row in rows]).mean(0) for name in fields[3:])
        return Answers(first.ids, first.labels, first.groups, right, fooled)
    return Answers(*(torch.cat([getattr(row, name) for row in rows]) for name in fields))


def _spread(rows: Sequence[Answers]) -> str:
    """The mean of several, its interval, the least and the most."""
    if not rows:
        return NOT_YET
    values = [100 * row.value for row in rows]
    low, high = _interval(rows)
    middle = sum(values) / len(values)
    return f"{middle:.1f} ({100 * low:.1f} to {100 * high:.1f}) [{min(values):.1f} to {max(values):.1f}]"


def _interval(rows: Sequence[Answers]) -> tuple[float, float]:
    """95 % of the mean of several balanced accuracies, over groups; of clients that read different images, too."""
    together = _averaged(rows)
    assert together is not None
    if len(together.ids) == len(rows[0].ids):
        return together.interval()
    classes = int(together.labels.max()) + 1
    client = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.ids) for row in rows]))
    cells = client * classes + together.labels

    def drawn(places: Tensor) -> float:
        counts = cells[places].bincount(minlength=len(rows) * classes).view(len(rows), classes)
        right = cells[places].bincount(together.right[places], minlength=len(rows) * classes).view(len(rows), classes)
        there = counts > 0  # a client is judged by the classes that were drawn for it
        shares = torch.where(there, right / counts.clamp_min(1), 0.0).sum(1) / there.sum(1).clamp_min(1)
        return float(shares[there.any(1)].mean())

    return cluster_bootstrap(drawn, together.groups)
