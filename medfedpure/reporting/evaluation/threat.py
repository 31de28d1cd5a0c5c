"""A threat model in one line: norm, eps, attack, steps, gradient mode and EoT, without which no figure stands."""

from __future__ import annotations

from collections.abc import Sequence

from medfedpure.evaluation.records import RungResult

# What decides no strength that a reader compares; the words of the attack itself, in the list of attacks, hold all.
_LEFT_OUT = (
    "norm", "eps", "eot", "batch_size", "early_stop", "random_start", "first_share", "step", "loss", "slack", "rho",
)  # fmt: skip
_NONE = ("", "momentum 0", "rounds 1", "weight 1", "patience 1", "queries 0", "target_classes 0")


def threat(attacks: Sequence[RungResult]) -> str:
    """What a worst case is the worst of, in one line; attacks with equal settings stand together."""
    if not attacks:
        return "no attack could be counted"
    views: dict[str, list[str]] = {}
    for attack in attacks:
        views.setdefault(_settings(attack), []).append(gradient_mode(attack))
    each = [f"{settings} through {', '.join(dict.fromkeys(seen))}" for settings, seen in views.items()]
    count = "1 attack" if len(attacks) == 1 else f"per image the worst of {len(attacks)} attacks"
    return f"norm {attacks[0].norm}, eps {attacks[0].eps:.4g}; {count}: {'; '.join(each)}"


def gradient_mode(attack: RungResult) -> str:
    """The gradient that an attacker has, short: "static", "transfer from client_1", "exact", ..."""
    mode = attack.view.partition(":")[0].strip()
    if mode == "transfer":
        return attack.rung
    return "answers only (no gradient)" if mode == "black-box" else mode


def _settings(attack: RungResult) -> str:
    """Name, settings and parts; what else was noticed while it ran stands in the list of attacks."""
    said, *noticed = attack.attack.split("; ")
    name, _, listed = said.partition(":")
    parts = [part.strip() for part in listed.split(",")]
    kept = [part for part in parts if part not in _NONE and part.split(" ")[0] not in _LEFT_OUT]
    kept += [text.removeprefix("parts: ") for text in noticed if text.startswith("parts: ")]
    return f"{name} ({', '.join([*kept, f'EoT {attack.eot}'])})"
