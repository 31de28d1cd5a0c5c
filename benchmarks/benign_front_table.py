"""The tables of `benchmarks.benign_front`: `python -m benchmarks.benign_front_table` writes them into their page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import pages
from benchmarks.pages import redrawn, write_tables

RESULTS = pages.RESULTS / "benign_front"
PAGE = pages.DOCS / "how-to" / "choose-a-detector.md"
WORDS: Mapping[str, str] = {
    "compose": "`compose` (default)",
    "score_norm": "`score_norm`",
    "denoising_disagreement": "`denoising_disagreement`",
    "reduced 2": "`reduced`, factor 2, `score_norm`",
    "reduced 4": "`reduced`, factor 4, `score_norm`",
    "distilled": "`distilled`, pixels and logits",
    "distilled, features": "`distilled`, features and logits",
    "staged distilled": "`staged`, `distilled` then `compose`",
    "staged reduced 2": "`staged`, `reduced` 2 then `compose`",
    "fast": "recipe `fast`: `feature_squeezing`, median",
}
AWARE = ("aware", "long")
"""The attackers who know the detector, in few steps and in many."""
EPS = ("0.015", "8/255")


def table(name: str, folder: Path = RESULTS) -> str:
    """One row an arm, in the order of what it keeps, for who ignores and for who knows it; the conditions below."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / name).glob("*.json"))]
    if not found:
        return "Nothing is measured yet."
    found.sort(key=lambda one: -one["throughput"]["kept"]["median"])
    static = [f"static PGD, eps {eps}" for eps in EPS]
    lines = _head(["detector", "throughput kept", "benign flagged", *static])
    for one in found:
        kept = one["throughput"]["kept"]
        cells = [WORDS[one["arm"]], f"{kept['median']:.2f} ({kept['least']:.2f} to {kept['most']:.2f})"]
        lines.append(_line([*cells, f"{one['flagged']:.3f}", *(_seen(one["static"][eps]) for eps in EPS)]))
    aware = {kind: words for kind in AWARE if (words := _words(kind, found))}
    lines += ["", *_head(["detector", *(f"{words}, eps {eps}" for words in aware.values() for eps in EPS)])]
    for one in found:
        cells = [_passed(one[kind][eps]) if kind in one else "not measured" for kind in aware for eps in EPS]
        lines.append(_line([WORDS[one["arm"]], *cells]))
    return "\n".join([*lines, "", *_conditions(found)])


def _words(kind: str, found: Sequence[Mapping[str, Any]]) -> str:
    """The attack of a kind with its steps, as it was; nothing where none was."""
    texts = [seen["attack"] for one in found for seen in one.get(kind, {}).values() if "attack" in seen]
    steps = re.search(r"steps (\d+)", texts[0]) if texts else None
    return f"`{texts[0].partition(':')[0]}`, {steps[1]} steps" if steps else ""


def _seen(seen: Mapping[str, Any]) -> str:
    """AUROC, its interval, and the true-positive rate."""
    if "auroc" not in seen:
        return f"fools {seen['fooled']} of {seen['attacked']}"
    return f"{seen['auroc']:.3f} ({seen['low']:.3f} to {seen['high']:.3f}); {seen['tpr']:.2f}"


def _passed(seen: Mapping[str, Any]) -> str:
    """How many images fool and are not flagged, and AUROC and true-positive rate of those that fool."""
    if "skipped" in seen:
        return "no gradient"
    if "auroc" not in seen:
        return f"fools {seen['fooled']} of {seen['attacked']}"
    passed = round(seen["fooled"] * (1 - seen["flagged"]))
    return f"{passed} of {seen['fooled']}; {seen['auroc']:.3f}; {seen['tpr']:.2f}"


def _head(cells: Sequence[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _conditions(found: Sequence[Mapping[str, Any]]) -> list[str]:
    first = found[0]
    s, parts, bare = first["setting"], first["parts"], first["throughput"]
    dealt = ", ".join(f"{images} of {groups} groups to {what}" for what, (images, groups) in parts.items())
    lines = [
        "First table: AUROC of the attacked images that fool the bare classifier against benign ones, its 95 % "
        "interval over groups, and the true-positive rate at 5 % false positives (the benign images' own quantile). "
        "Second table: how many of those that fool it the detector does not flag at its calibrated threshold, their "
        "AUROC and that rate. `orthogonal_pgd` aims just below the threshold, so an AUROC may be high where every "
        "image passes: read the count.",
        "",
        f"- {s['data']}, {s['size']} px: {dealt}; one test image of each group is read, {first['images']} in all; the "
        f"threshold is from {first['calibration']} groups, for 5 %.",
        f"- {s['classifier']}, {s['classifier_steps']} steps; `ddpm`, {s['denoiser_steps']} steps; trained for this "
        "table only.",
        f"- Throughput kept: of the bare classifier's images a second ({first['device']}, one thread), by the whole "
        f"gated chain on {bare['images']} benign images, purification of what it flags included; median, least and "
        f"most of {bare['kept']['of']} interleaved pairs.",
    ]
    for kind in ("static", *AWARE):
        words = _words(kind, found)
        for eps in EPS:
            met = [one[kind][eps] for one in found if kind in one and "attack" in one[kind][eps]]
            if not met:
                continue
            fooled = sorted({one["fooled"] for one in met})
            count = f"{fooled[0]} to {fooled[-1]}" if len(fooled) > 1 else str(fooled[0])
            texts = "; ".join(dict.fromkeys(one["attack"] for one in met))
            lines.append(
                f"- {words}, eps {eps}: {texts}; {count} of {met[0]['attacked']} images were read rightly and fool it."
            )
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def page_with_tables(page: str, folder: Path = RESULTS) -> str:
    """The page with what was measured of each setting after its mark."""
    return redrawn(page, lambda name: table(name, folder), mark="front")


if __name__ == "__main__":
    write_tables(__doc__, PAGE, page_with_tables)
