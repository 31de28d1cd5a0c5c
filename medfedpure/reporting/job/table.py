"""The main job's figures as a table for the terminal and as Markdown."""

from __future__ import annotations

import re

from medfedpure.defence.recipe import Choice
from medfedpure.job.records import RunResult, flatten

ROWS: tuple[tuple[str, str], ...] = (
    ("test images", "test_images"),
    ("test groups", "test_groups"),
    ("majority class: balanced accuracy", "majority_balanced_accuracy"),
    ("bare: clean balanced accuracy", "bare.clean_balanced_accuracy"),
    ("defended: clean balanced accuracy", "defended.clean_balanced_accuracy"),
    ("median filter: clean balanced accuracy", "anchor.clean_balanced_accuracy"),
    ("bare: clean sensitivity", "bare.clean_sensitivity"),
    ("defended: clean sensitivity", "defended.clean_sensitivity"),
    ("bare: robust balanced accuracy", "bare.robust_balanced_accuracy"),
    ("defended: robust balanced accuracy", "defended.robust_balanced_accuracy"),
    ("median filter: robust balanced accuracy", "anchor.robust_balanced_accuracy"),
    ("defended, BPDA: robust balanced accuracy", "bpda_robust_balanced_accuracy"),
    ("defended: robust sensitivity", "defended.robust_sensitivity"),
    ("detector AUROC, attacked against benign", "detector_auroc"),
    ("flagged: benign", "flagged_benign"),
    ("flagged: attacked", "flagged_attacked"),
    ("bare: ms per image", "bare_ms_per_image"),
    ("defended: ms per benign image", "defended_benign_ms_per_image"),
    ("defended: ms per attacked image", "defended_attacked_ms_per_image"),
    ("purifier evaluations per benign image", "purifier_nfe_benign"),
    ("purifier evaluations per attacked image", "purifier_nfe_attacked"),
)
STRATEGY_ROWS: tuple[tuple[str, str], ...] = (
    ("bare, clean", "bare.clean_balanced_accuracy"),
    ("bare, attacked", "bare.robust_balanced_accuracy"),
    ("defended, clean", "defended.clean_balanced_accuracy"),
    ("defended, attacked", "defended.robust_balanced_accuracy"),
)
_COUNTS = {"test_images", "test_groups"}


def cells(result: RunResult) -> list[list[str]]:
    """Header and rows: a figure, one column for each client, the mean."""
    flat = [flatten(client) for client in result.clients]
    table = [["", *[client.client for client in result.clients], "mean"]]
    recalls = [key for key in result.mean if re.match(r"(bare|defended)\.\w+_recalls\.", key)]
    for label, key in (*ROWS, *[(_recall(key), key) for key in recalls]):
        if key in result.mean:
            table.append([label, *[_text(key, row.get(key)) for row in flat], _text(key, result.mean[key])])
    return table


def strategy_cells(result: RunResult) -> list[list[str]]:
    """Balanced accuracy by strategy: header, then rows of figure, strategy, each client, mean, worst client."""
    table = [["balanced accuracy", "strategy", *[client.client for client in result.clients], "mean", "worst client"]]
    for label, key in STRATEGY_ROWS:
        for place, found in enumerate(result.strategies):
            own = [flatten(client).get(key) for client in found.clients]
            shown = [_text(key, value) for value in (*own, found.mean.get(key), found.worst.get(key))]
            table.append([label if place == 0 else "", found.strategy, *shown])
    return table


def strategy_conditions(result: RunResult) -> list[str]:
    """What must stand beside the comparison of strategies."""
    own, *others = [found.strategy for found in result.strategies]
    return [
        f"{', '.join(others)}: the classifier of the same images, seed and steps by another strategy than {own}, in a "
        "defence with the same purifier and a detector and threshold of its own",
        "attacked = every classifier under its own static attack, as above; worst client = the lowest in the row",
    ]


def choice_of(result: RunResult) -> Choice | None:
    """How the recipe "robust" came to the policy; None where another recipe did."""
    return None if result.choice is None else Choice.read(result.choice, "these results")


def choice_cells(result: RunResult) -> list[list[str]]:
    """Policies that were tried: header, then a row for each; empty where none was chosen."""
    choice = choice_of(result)
    if choice is None:
        return []
    table = [["policy", "clean", "static", "attacked through it", "worst case", "95 % interval", "ms an image"]]
    for arm in choice.arms:
        held = "-" if arm.low is None or arm.high is None else f"{arm.low:.3f} to {arm.high:.3f}"
        shares = [f"{share:.3f}" for share in (arm.clean, arm.static, arm.knowing, arm.worst)]
        table.append([arm.policy, *shares, held, f"{1000 * arm.seconds:.3g}"])
    return table


def choice_conditions(result: RunResult) -> list[str]:
    """What must stand beside the choice of a policy; empty where none was chosen."""
    choice = choice_of(result)
    if choice is None:
        return []
    return [
        f"{choice.policy} is taken: the best worst case, of equal ones the cheapest, over {choice.images} images of "
        "the tune parts of all clients, one of each group; the best of several there looks better than it is",
        f"balanced accuracy against {choice.truth}; {choice.attack}",
        "worst case = read rightly unattacked, under the static attack and as attacked through every policy",
        *(f"{arm.policy}: {arm.view}" for arm in choice.arms),
    ]


def conditions(result: RunResult) -> list[str]:
    """What must stand beside the numbers."""
    lines = [
        f"robust = under {result.attack}; {result.attacker}; one draw of noise, no EoT",
        f"median filter = {result.anchor}; {_sensitivity(result)}",
    ]
    if result.bpda is not None:
        lines.append(f"BPDA = the same attack on the whole chain, {result.bpda}, EoT 1: a quick look, not a headline")
    lines += [f"{client.client}: {client.calibration}" for client in result.clients]
    return lines


def markdown(result: RunResult) -> str:
    """The tables and their conditions."""
    lines = [*markdown_table(cells(result)), "", *[f"- {line}" for line in conditions(result)]]
    if len(result.strategies) > 1:
        lines += ["", *markdown_table(strategy_cells(result)), ""]
        lines += [f"- {line}" for line in strategy_conditions(result)]
    if result.choice is not None:
        lines += ["", *markdown_table(choice_cells(result)), ""]
        lines += [f"- {line}" for line in choice_conditions(result)]
    return "\n".join(lines) + "\n"


def markdown_table(rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its header."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _sensitivity(result: RunResult) -> str:
    names = [repr(name) for name in (result.class_names[-1:] if result.positive is None else result.positive)]
    if not names:
        return "no sensitivity: no class is named as no finding"
    return "sensitivity = recall of " + (f"the class {names[0]}" if len(names) == 1 else f"any of {', '.join(names)}")


def _recall(key: str) -> str:
    """bare.clean_recalls.glioma as "bare: clean recall of glioma"."""
    arm, images, name = key.split(".", 2)
    return f"{arm}: {images.removesuffix('_recalls')} recall of {name}"


def _text(key: str, value: float | None) -> str:
    if value is None or value != value:
        return "-"
    if key in _COUNTS:
        return f"{value:.0f}"
    if "ms_per" in key or "nfe" in key:
        return f"{value:.1f}"
    return f"{value:.3f}" if key == "detector_auroc" else f"{value:.1%}"
