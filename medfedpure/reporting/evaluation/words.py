"""An evaluation in words: a robust accuracy never stands without norm, eps, attack, steps, gradient mode and EoT."""

from __future__ import annotations

from medfedpure.evaluation.tally import Figure
from medfedpure.figures.balanced import chance_level
from medfedpure.reporting.evaluation.summary import Line, Summary


def budget(norm: str, eps: float) -> str:
    """How far an attacker may go, for people."""
    if norm == "linf":
        return f"may change every pixel by up to {eps:.4g} of the range from black to white"
    return f"may change the image by up to {eps:.4g} in {norm.upper()} distance (pixels in [0, 1])"


def attacker(line: Line) -> str:
    """Who stands against a defence: only what attacks that count know of it."""
    if "exact" in line.modes or (line.policy == "none" and "static" in line.modes):
        return "an attacker who knows everything"
    if "white-box" in line.kinds:
        return "an attacker who knows the defence but has no exact gradient of all of it"
    return "attackers who do not know the defence"


def verdict(summary: Summary) -> list[str]:
    """The result for the defence that the evaluation is about, a sentence or two for each eps, plainly."""
    sentences = []
    for eps in summary.eps:
        line = summary.line(summary.headline, eps)
        if not line.attacks:
            sentences.append(f"At eps {eps:.4g} no attack on it could be counted.")
            continue
        who = f"Against {attacker(line)} and {budget(summary.norm, eps)}" if not sentences else f"At eps {eps:.4g}"
        text = (
            f"{who}, {line.right} of {line.images} images are still read correctly "
            f"(balanced accuracy {figure(line.balanced, words=True)}{_chance(summary, line)})"
        )
        if line.withheld:
            text += f"; {line.fooled} are misread and {line.withheld} refused"
        doubt = "Not to be relied on: " if summary.headline in summary.unreliable and not sentences else ""
        sentences.append(f"{doubt}{text}.{_beside(summary, eps)}{_rival(summary, eps)}")
    return sentences


def verdict_benign(summary: Summary) -> str:
    """The same for images that nobody attacked."""
    line = summary.line(summary.headline, None)
    return (
        f"Without an attack {line.right} of {line.images} are read correctly (balanced accuracy "
        f"{figure(line.balanced, words=True)}{_chance(summary, line)}).{_beside(summary, None)}"
    )


def _chance(summary: Summary, line: Line) -> str:
    text = beside_chance(summary, line)
    return f", {text}" if text else ""


def beside_chance(summary: Summary, line: Line) -> str:
    """How a line's balanced accuracy stands to guessing; "" where it is clearly better."""
    if line.balanced is None:
        return ""
    value, low, high = line.balanced.value, line.balanced.low, line.balanced.high
    return chance_level(value, None if low is None or high is None else (low, high), summary.anchor.balanced)


def _of_chance(summary: Summary) -> list[str]:
    """Which balanced accuracies are no better than guessing."""
    rows: dict[str, list[str]] = {}
    for line in summary.lines:
        where = "benign images" if line.eps is None else f"{summary.norm}, eps {line.eps:.4g}"
        if text := beside_chance(summary, line):
            rows.setdefault(text, []).append(f"{line.arm!r} ({where})")
    return [
        f"Balanced accuracy {text}, {summary.anchor.balanced:.2f} here"
        f"{', which lies within its interval' if text.startswith('at') else ''}: {', '.join(names)}."
        for text, names in rows.items()
    ]


def _beside(summary: Summary, eps: float | None) -> str:
    if summary.reference in (None, summary.headline):
        return ""
    bare = summary.line(summary.reference, eps)
    return f" Undefended: {bare.right} of {bare.images}." if bare.balanced is not None else ""


def _rival(summary: Summary, eps: float) -> str:
    """Whether a gain over the best of the other defences is shown."""
    best = next((rival for rival in summary.rivals if rival.eps == eps), None)
    if best is None:
        return ""
    gain = f"difference of balanced accuracies {figure(best.gain, words=True, signed=True)}"
    beside = f"beside {best.arm!r}, the best other here with {best.right}: {gain}."
    return f" Gain shown {beside}" if best.gain.low is not None and best.gain.low > 0 else f" No gain shown {beside}"


def weakest_point(summary: Summary, eps: float) -> str:
    """The attack that the defence bears least, and what happens to sensitivity."""
    line = summary.line(summary.headline, eps)
    if not line.attacks:
        return line.threat
    text = f"the attack {line.weakest!r} alone leaves {line.weakest_right} of {line.weakest_of} images read correctly."
    if line.sensitivity is not None:
        before = summary.line(summary.headline, None).sensitivity
        text += f" Sensitivity for {found(summary)}: {line.sensitivity:.2f} in the worst case, {before:.2f} without."
    return text


def found(summary: Summary) -> str:
    """The finding in words: one class, or any of several."""
    names = [repr(name) for name in summary.positive]
    return names[0] if len(names) == 1 else f"any finding ({', '.join(names)})"


def figure(value: Figure | None, *, words: bool = False, signed: bool = False) -> str:
    """An estimate with its interval."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    point = f"{value.value:{sign}.2f}"
    if value.low is None or value.high is None:
        return f"{point}, no interval: a single group" if words else point
    if words:
        return f"{point}, 95 % interval {value.low:{sign}.2f} to {value.high:{sign}.2f}"
    return f"{point} [{value.low:{sign}.2f}, {value.high:{sign}.2f}]"


def _method(summary: Summary) -> str:
    if summary.groups == summary.images:
        return "after Wilson, of differences after Newcombe, of the classes together after Zou and Donner"
    return "by bootstrap over groups"


def footnotes(summary: Summary) -> list[str]:
    """What the columns mean, and what the figures rest on."""
    draws = max(line.draws for line in summary.lines)
    lines = [
        f"{summary.images} images of {summary.groups} near-duplicate groups of {summary.data!r}; {summary.seeds}; "
        f"intervals: 95 %, {_method(summary)}.",
        "Attacked rows are worst cases: right = accepted and read correctly under every counted attack, fooled = a "
        "wrong reading accepted under one or more, refused = neither. One draw of the noise. Uniform noise counts as a "
        "control, not as an attack.",
        "Flagged: share of the images in the first draw; NFE (evaluations of the purifier's network) and ms: means for "
        "each image and draw; in attacked rows means over the counted attacks.",
        f"Sens.: images of {found(summary)} read as such; spec.: others accepted and not read as such."
        if summary.positive
        else "No class is named as no finding, so there is no sensitivity; recall: the share of a class that is right.",
    ]
    if len(summary.eps) > 1:
        lines.append("What falls at a smaller eps counts as fallen at a larger one: the same change is allowed there.")
        sizes = ", ".join(f"{eps:.4g}" for eps in sorted(summary.eps))
        lines.append(
            "Expected: expected robustness, the mean balanced accuracy over all sizes from 0 to that eps (norm "
            f"{summary.norm}), by the trapezoidal rule over eps 0 (benign), {sizes}, each the worst case of the "
            "threats above, and straight between two sizes. In brackets the same of the ends of the intervals."
        )
    if summary.met_by_all is not None:
        lines.append(
            "Cascade: an image meets no further attack once none can change its count. The first "
            f"{summary.met_by_all} images met every attack, and attacks are compared on these. All else of a single "
            "attack (right, flagged, AUROC, NFE) is of the images that met it, most of which resisted the ones before."
        )
    if draws > 1:
        lines.append(
            f"Worst / majority of N: {draws} draws of the noise of a stochastic defence for each image; right in every "
            "draw, or in more draws than any other answer."
        )
    for precision in dict.fromkeys(summary.rounded.values()):
        names = ", ".join(repr(name) for name, own in summary.rounded.items() if own == precision)
        lines.append(f"Computed in {precision}, the attackers' gradients through them too: {names}.")
    if summary.reference:
        lines.append(f"Difference: balanced accuracy less that of {summary.reference!r}, paired on the same images.")
    anchor = summary.anchor
    return [
        *lines,
        *_of_chance(summary),
        f"Majority class: what always answering {anchor.answer!r} gets (accuracy {anchor.accuracy:.2f} here).",
    ]
