"""What was aimed at, beside what `benchmarks.speed` measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import pages

FRONT = pages.RESULTS / "benign_front"
ARMS = {
    "compose": "compose",
    "score_norm": "score_norm",
    "denoising_disagreement": "denoising_disagreement",
    "reduced 2": "reduced",
    "distilled": "distilled",
    "staged distilled": "staged",
}
"""Of `benchmarks.benign_front`, by the names that they have here."""
SEES = 0.95
THAT_SEES = f"with an AUROC of at least {SEES}"
DEVICES = {"cpu": "CPU", "cuda": "GPU"}
UNKNOWN = "not measured"
Document = Mapping[str, Any]
Documents = Mapping[str, Document]


def table(heads: list[str], rows: list[list[str]]) -> str:
    """Rows under heads; what to say where there is none."""
    if not rows:
        return UNKNOWN
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def seeing(folder: Path = FRONT) -> set[str]:
    """The arms of `benchmarks.benign_front` at 64 px that are gated and see static PGD, at every eps that was tried."""
    found = {}
    for path in folder.glob("*_64_*/*.json"):
        arm = json.loads(path.read_text(encoding="utf-8"))
        found[arm["arm"]] = min(eps["auroc"] for eps in arm["static"].values())
    return {ARMS[name] for name, auroc in found.items() if name in ARMS and auroc >= SEES}


Pick = Callable[[Document], float | None]
"""A figure of one section."""


def _minutes(sections: Document) -> float:
    """Of processor time, all sections together."""
    return sum(part["processor_seconds"] for part in sections.values()) / 60


def _kept(*, best: bool) -> Pick:
    """The least share kept over the classifiers, by `compose`, or by the best that sees, in the fastest way."""

    def figure(part: Document) -> float | None:
        asked = seeing() if best else {"compose"}
        by_classifier: dict[str, list[float]] = {}
        for row in part["rows"]:
            if row["detector"] in asked:
                by_classifier.setdefault(row["classifier"], []).append(row["kept"]["median"])
        return min(max(values) for values in by_classifier.values()) if by_classifier else None

    return figure


def _resnet(pick: Pick) -> Pick:
    """The same of a ResNet-18 alone."""
    return lambda part: pick({**part, "rows": [row for row in part["rows"] if row["classifier"] == "ResNet-18"]})


def _each(rows: str, key: str, choose: Callable[[Iterator[float]], float]) -> Pick:
    """The least or the most over rows; of a spread its median."""
    return lambda part: choose(row[key] if isinstance(row[key], float) else row[key]["median"] for row in part[rows])


AT_LEAST, AT_MOST = "at least", "at most"
AIMS: tuple[tuple[str, str, str, Pick, str, float], ...] = (
    ("cpu", "default chain at 64 px keeps of ResNet-18", "benign_small", _resnet(_kept(best=False)), AT_LEAST, 0.5),
    ("cpu", f"the best chain there {THAT_SEES}", "benign_small", _resnet(_kept(best=True)), AT_LEAST, 0.5),
    (
        "cpu",
        "mixed depths beside diffusers image by image",
        "mixed_depths",
        lambda part: part["image_by_image_to_mixed"]["median"],
        AT_LEAST,
        1.5,
    ),
    (
        "cpu",
        "`pgd_eot` beside a bare loop, the slower classifier",
        "libraries",
        _each("rows", "pgd_eot_to_bare", max),
        AT_MOST,
        1.05,
    ),
    (
        "cpu",
        "chain at 5 % attacked traffic beside purify-all by `diffpure`",
        "attacked_traffic",
        _each("rows", "all_to_chain", max),
        AT_LEAST,
        15,
    ),
    ("cpu", "this benchmark, minutes of one thread", "", _minutes, AT_MOST, 20),
    ("cuda", f"the best chain {THAT_SEES}, 64 px, both classifiers", "benign_small", _kept(best=True), AT_LEAST, 0.35),
    ("cuda", f"the best chain {THAT_SEES}, 224 px, both classifiers", "benign_large", _kept(best=True), AT_LEAST, 0.2),
    (
        "cuda",
        "U-Net evaluations a second, 224 px",
        "purifying_large",
        _each("rates", "evaluations_a_second", max),
        AT_LEAST,
        12000,
    ),
    (
        "cuda",
        "purify all, images a second, 224 px",
        "purifying_large",
        _each("rates", "images_a_second", max),
        AT_LEAST,
        1500,
    ),
    (
        "cuda",
        "one image alone, 224 px, the worst, ms",
        "purifying_large",
        _each("alone", "worst_ms", min),
        AT_MOST,
        25,
    ),
    (
        "cuda",
        "exact PGD through purify all beside a bare loop",
        "exact_attack",
        _each("rows", "to_bare", min),
        AT_MOST,
        1.3,
    ),
    (
        "cuda",
        "waits beyond one a batch and one a purified batch",
        "synchronizations",
        lambda part: max(row["waits"] - row["at_most"] for row in part["rows"]),
        AT_MOST,
        0,
    ),
    (
        "cuda",
        "`evaluate --preset standard`, robust + purify all, 100 images, 224 px, seconds",
        "standard_evaluation",
        _each("rows", "seconds", min),
        AT_MOST,
        300,
    ),
)


def aims(documents: Documents) -> str:
    """What was aimed at beside what was measured."""
    rows = []
    for kind, words, section, pick, way, bound in AIMS:
        document = documents.get(kind, {"sections": {}})
        part = document["sections"].get(section, {}) if section else document["sections"]
        value = pick(part) if part and "not_measured" not in part else None
        met = value is not None and (value >= bound if way == AT_LEAST else value <= bound)
        verdict = UNKNOWN if value is None else "met" if met else "**missed**"
        rows.append([DEVICES[kind], words, f"{way} {bound:,g}", "" if value is None else f"{value:,.4g}", verdict])
    return table(["device", "what", "aim", "measured", ""], rows)
