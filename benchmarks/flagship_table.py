"""The tables of `benchmarks.flagship`: `python -m benchmarks.flagship_table` writes them into their page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.pages import redrawn, write_tables
from benchmarks.study.tables import STRATEGIES

RESULTS = pages.RESULTS / "flagship"
PAGE = pages.DOCS / "explanation" / "flagship.md"
WORDS: Mapping[str, str] = {
    "plain": "undefended",
    "robust": "adversarially trained, PGD",
    "robust_long": "adversarially trained, PGD, long",
    "fast": "adversarially trained, `fast`",
    "schedule": "adversarially trained, PGD, eps rising",
    "more_pgd": "adversarially trained, then 150 steps of PGD",
    "more_fast": "adversarially trained, then 150 steps of `fast`",
    "more_trades": "adversarially trained, then 150 steps of TRADES",
    "more_awp": "adversarially trained, then 150 steps of PGD with AWP",
    "more_group_positives": "adversarially trained, then 150 steps of PGD with group positives",
    "more_samples": "adversarially trained, then 150 steps of PGD with 30 % synthetic images",
    "chain": "undefended + gated chain",
    "purify_all": "undefended + purify all",
    "robust_chain": "adversarially trained, PGD, long + gated chain",
    "robust_purify_all": "adversarially trained, PGD, long + purify all",
    "voted_chain": "undefended + gated chain, mean of 5 purifications",
    "one_step": "undefended + one_step, all",
    "robust_one_step": "adversarially trained, PGD, long + one_step, all",
    "hardened_one_step": "undefended + one_step, hardened, all",
    "hardened_one_step_long": "undefended + one_step, hardened longer, all",
    "guided_one_step": "undefended + one_step, guided, all",
    "joint_one_step": "adversarially trained, PGD, long + one_step, hardened together, all",
}


def table(split: str, folder: Path = RESULTS) -> str:
    """One row a unit that was measured, in percent; the conditions below."""
    documents = read(split, folder)
    if split.startswith("federated_"):
        return _federated(documents)
    lines = [
        "| defence | clean, all test images | clean | paper's attack | worst case of the ladder |",
        "|---|---|---|---|---|",
    ]
    for name, words in WORDS.items():
        if name in documents:
            found = documents[name]
            cells = [words, _figure(found["clean"]), _figure(found["paper"]["clean"])]
            cells += [_figure(found["paper"]["robust"]), _worst(found.get("ladder"))]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_conditions(documents)])


def read(split: str, folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """What was measured of a split, by unit; of two presets the one with a ladder."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((folder / split).glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if "ladder" in document or document["unit"] not in found:
            found[document["unit"]] = document
    return found


def _federated(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """One row a unit: the mean of its clients, and the least and the most of them."""
    lines = ["| strategy | training | clean | paper's attack | worst case of the ladder |", "|---|---|---|---|---|"]
    for strategy in STRATEGIES:
        for kind in ("plain", "robust"):
            if (found := documents.get(f"{strategy}_{kind}")) is None:
                continue
            clients = list(found["clients"].values())
            cells = [STRATEGIES[strategy], kind, _spread([one["clean"]["balanced"] for one in clients])]
            cells.append(_spread([one["paper"]["robust"]["balanced"] for one in clients]))
            ladders = [_line(one["ladder"])["balanced"]["value"] for one in clients if "ladder" in one]
            cells.append(_spread(ladders) if ladders else "not measured")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_federated_conditions(documents)])


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def _federated_conditions(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not documents:
        return ["Nothing is measured yet."]
    clients = list(next(iter(documents.values()))["clients"].values())
    clean, paper = clients[0]["clean"], clients[0]["paper"]
    steps = ", ".join(f"{found['unit']} {found['steps']}" for found in documents.values())
    lines = [
        f"Balanced accuracy in percent: mean of the {len(clients)} clients, in brackets the least and the most of "
        f"them. Clean: all {clean['images']} test images; the rest: one image of each of {paper['clean']['groups']} "
        f"groups. {next(iter(documents.values()))['rounds']} rounds; steps of a client: {steps}.",
        "",
        f"- Paper's attack: {paper['attack']}; {paper['gradient']}.",
    ]
    firsts = {name: next(iter(found["clients"].values())) for name, found in documents.items()}
    return [*lines, *_threats(firsts)]


def _figure(counted: Mapping[str, Any]) -> str:
    return f"{100 * counted['balanced']:.1f} ({100 * counted['low']:.1f} to {100 * counted['high']:.1f})"


def _line(ladder: Mapping[str, Any]) -> Mapping[str, Any]:
    lines: Sequence[Mapping[str, Any]] = ladder["lines"]
    return next(line for line in lines if line["eps"] is not None)


def _worst(ladder: Mapping[str, Any] | None) -> str:
    if ladder is None:
        return "not measured"
    line = _line(ladder)
    balanced, unreliable = line["balanced"], " UNRELIABLE" if ladder["unreliable"] else ""
    low, high = 100 * balanced["low"], 100 * balanced["high"]
    return f"{100 * balanced['value']:.1f} ({low:.1f} to {high:.1f}){unreliable}"


def _conditions(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not documents:
        return ["Nothing is measured yet."]
    first = next(iter(documents.values()))
    parts = {name: f"{images} of {groups} groups to {name}" for name, (images, groups) in first["parts"].items()}
    paper = first["paper"]
    lines = [
        f"Balanced accuracy in percent, its 95 % interval over near-duplicate groups. Images of {first['size']} px, "
        f"read at {max(first['size'], 128)} px: {', '.join(parts.values())}. All columns but the first: one test image "
        f"of each group, {paper['clean']['images']} images.",
        "",
        *_attacks({WORDS[name]: documents[name] for name in WORDS if name in documents}),
    ]
    return [*lines, *_threats({WORDS[name]: documents[name] for name in WORDS if name in documents})]


def _attacks(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The paper's attack once for each way in which its figures came about, with those that they are of."""
    met: dict[str, list[str]] = {}
    for name, found in documents.items():
        met.setdefault(f"{found['paper']['attack']}; {found['paper']['gradient']}", []).append(name)
    return [f"- Paper's attack, {'; '.join(names)}: {attack}." for attack, names in met.items()]


def _threats(documents: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Every threat once, with those that met it."""
    met: dict[str, list[str]] = {}
    for name, found in documents.items():
        if "ladder" in found:
            met.setdefault(f"{_line(found['ladder'])['threat']}; {found['ladder']['note']}", []).append(name)
    return [f"- Worst case, {'; '.join(names)}: {threat}." for threat, names in met.items()]


def page_with_tables(page: str, folder: Path = RESULTS) -> str:
    """The page with what was measured of each split after its mark."""
    return redrawn(page, lambda split: table(split, folder))


if __name__ == "__main__":
    write_tables(__doc__, PAGE, page_with_tables)
