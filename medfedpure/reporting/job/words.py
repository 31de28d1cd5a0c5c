"""A run in words: what the defence is worth, first, and what must stand beside it."""

from __future__ import annotations

from medfedpure.evaluation.tally import Figure
from medfedpure.figures.balanced import chance_level
from medfedpure.job.gain import gain_over_best, shown
from medfedpure.job.records import ClientResult, RunResult
from medfedpure.reporting.job.table import choice_of

_NAMES = {"bare": "the undefended classifier", "majority": "the majority class"}


def baseline(result: RunResult, name: str) -> str:
    """A baseline for people; the filter by its plugin."""
    return f"{result.anchor.partition(',')[0]} on every image" if name == "anchor" else _NAMES[name]


def verdict(result: RunResult) -> str:
    """What the defence is worth against an attacker who does not know it, beside the best of what is simpler."""
    robust = result.mean["defended.robust_balanced_accuracy"]
    where = f"balanced accuracy, mean over {len(result.clients)} clients"
    best = gain_over_best([client.gains for client in result.clients])
    if best is None:
        bare = result.mean["bare.robust_balanced_accuracy"]
        return f"On attacked images {robust:.1%} with the defence, {bare:.1%} without ({where})."
    name, gain = best
    if shown(gain):
        return (
            f"On attacked images the defence reaches {robust:.1%} ({where}): {points(gain)} beside "
            f"{baseline(result, name)}, the best of what is simpler."
        )
    return (
        f"No gain shown: on attacked images the defence reaches {robust:.1%} ({where}), {points(gain)} beside "
        f"{baseline(result, name)}, the best of what is simpler."
    )


def points(gain: Figure) -> str:
    """A difference of balanced accuracies, in points with its interval."""
    text = f"{100 * gain.value:+.1f} points"
    if gain.low is None or gain.high is None:
        return f"{text} (no interval: a single group)"
    return f"{text} (95 % interval {100 * gain.low:+.1f} to {100 * gain.high:+.1f})"


def caveats(result: RunResult) -> list[str]:
    """What the verdict leaves out: the price on benign images, and an attacker who knows the defence."""
    mean = result.mean
    clean = mean["defended.clean_balanced_accuracy"] - mean["bare.clean_balanced_accuracy"]
    lines = [
        f"Attack: {result.attack}. It is crafted on the undefended classifier and ignores the defence; one draw of "
        "noise.",
        f"On benign images the defence reads {mean['defended.clean_balanced_accuracy']:.1%}, "
        f"{100 * clean:+.1f} points beside the undefended classifier, and flags {mean['flagged_benign']:.1%} of them.",
    ]
    if result.policy == "abstain":
        lines.append(
            "What the defence flags it refuses, and here a refusal counts as an error, on attacked and benign images: "
            f"{mean['flagged_attacked']:.1%} of the attacked ones are refused."
        )
    choice = choice_of(result)
    if choice is not None:
        worst = next(arm.worst for arm in choice.arms if arm.policy == choice.policy)
        lines.append(
            f"The policy {choice.policy} was chosen on {choice.images} images of the clients' tune parts, where its "
            f"worst case is {worst:.1%}, the best of {len(choice.arms)} policies that were attacked by who knows them."
        )
        lines += [choice.weakness() + "."] if choice.weakness() else []
    knowing = mean.get("bpda_robust_balanced_accuracy")
    if knowing is not None:
        lines.append(
            f"The same attack through the whole chain ({result.bpda}, EoT 1) leaves {knowing:.1%}: a quick look. What "
            "an attacker can do who knows the defence is answered by medfedpure evaluate on this folder."
        )
        if knowing > mean["defended.robust_balanced_accuracy"]:
            lines.append(
                "That leaves more than the attack that ignores the defence: it was the weaker attack, and "
                "the lower figure is the one to quote."
            )
    return lines


def of_chance(result: RunResult, client: ClientResult) -> str:
    """How one client's defence stands to guessing on attacked images; "" where it is clearly better."""
    anchor, gain = client.majority_balanced_accuracy, client.gains.get("majority")
    held = None if gain is None or gain.low is None or gain.high is None else (anchor + gain.low, anchor + gain.high)
    return chance_level(client.defended.robust_balanced_accuracy, held, guessing(result, client))


def guessing(result: RunResult, client: ClientResult) -> float:
    """The balanced accuracy of guessing: 1 / K of the K classes that occur in the client's test part."""
    arm = client.defended
    recalls = arm.clean_recalls.values() or (arm.clean_sensitivity, arm.clean_specificity)
    several = len(result.class_names) > 2 and not arm.clean_recalls  # version 0.1 does not say
    return 1 / (len(result.class_names) if several else max(1, sum(recall is not None for recall in recalls)))


def of_client(result: RunResult, client: ClientResult) -> str:
    """One client's gain over the baseline that the verdict names."""
    best = gain_over_best([one.gains for one in result.clients])
    if best is None:
        return ""
    name, own = best[0], client.gains[best[0]]
    return f"{'' if shown(own) else 'no gain shown: '}{points(own)} beside {baseline(result, name)}"
