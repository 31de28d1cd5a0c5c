"""Files of a study that nobody measured, and what a table must say of one that somebody did."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.study.how import CPU, EPS
from benchmarks.study.measure import digits, packed

FOLD = "br35h_fold_0"
IMAGES = {"ids": packed(range(20)), "labels": packed([0, 1] * 10), "groups": packed(range(20))}
CONDITIONS = (
    "images of",
    "groups",
    "95 %",
    "linf",
    "eps",
    "EoT",
    "steps",
    r"\(static\)|through static|gradients of",
    "python -m benchmarks.study",
)
"""How many images of how many groups, with which intervals, against whom, and by which command."""


def write(folder: Path, name: str, document: dict[str, Any], place: str = FOLD) -> None:
    """One unit's JSON."""
    path = folder / CPU.name / place / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"seconds": 1, "whole": True, "device": "CPU, 1 thread", **document}))


def static(right: str, draws: int = 1, attacked: str = "") -> dict[str, Any]:
    """What an arm said of the twenty images, and of them under the paper's attack, where it differs."""
    row = {"ids": IMAGES["ids"], "draws": draws, "right": right, "fooled": "0" * 20, "flagged": 0, "ms": 1, "nfe": 0}
    told = {"attack": "pgd: norm linf, eps 0.015, steps 7", "gradient": "of the bare classifier (static), EoT 1"}
    return {"clean": row, "paper": {**row, **told, "right": attacked or right}, "benign": row}


def ladder(right: str, unreliable: tuple[str, ...] = ()) -> dict[str, Any]:
    """What is left of the first images, one for each digit, in the worst case."""
    threat = "norm linf, eps 0.015; per image the worst of 2 attacks: pgd_eot (steps 20, EoT 1) through static, exact"
    worst = {"right": right, "fooled": digits([0] * len(right)), "threat": threat}
    found = {"draws": 1, "note": "not headline: EoT below 20", "preset": "short", "unreliable": list(unreliable)}
    return {**found, "ids": packed(range(len(right))), "clean": "1" * len(right), "worst": {f"{EPS:.4g}": worst}}


ELSEWHERE = {"findings", "aims", "short", "missing", "figures", "clients"}
"""Tables whose conditions stand in other words, or that measure nothing."""


def wanting(table: str) -> list[str]:
    """What a table says too little of."""
    return [words for words in CONDITIONS if not re.search(words, table)]
