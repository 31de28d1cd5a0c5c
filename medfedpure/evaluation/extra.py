"""Attacks of others on the ladder: against the bare classifier, and against all of a defence that they work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from medfedpure.core.attack import Attack, Budget, Norm, ThreatView, averaged, length
from medfedpure.core.errors import ConfigError, MissingRequirementError
from medfedpure.core.results import AttackResult
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.ladder import Kind, Preset, Rung, Sees, View, answers_view
from medfedpure.evaluation.views import bpda_view, detector_view, exact_view, is_stochastic, static_view


def check_attacks(attacks: Mapping[str, Attack]) -> None:
    """Raise ConfigError for what is no attack, or has no name."""
    for name, attack in attacks.items():
        if not isinstance(attack, Attack):
            raise ConfigError(
                f"extra_attacks names attacks, create('attack', ...) or one of your class; got a "
                f"{type(attack).__name__} for {name!r}"
            )
        if not isinstance(name, str) or not name.strip():
            raise ConfigError(f"an attack of extra_attacks wants a name; got {name!r}")


def extra_rungs(
    chain: DefendedClassifier,
    preset: Preset,
    norm: Norm,
    eps: float,
    attacks: Mapping[str, Attack],
    *,
    fitted_here: bool = False,
) -> list[Rung]:
    """Two rungs of each attack, static and strongest; a chain of which only the classifier can fall has the first.

    Args:
        chain: the defence.
        preset: how hard the others try, and how many looks a stochastic chain gets.
        norm: "linf" or "l2".
        eps: perturbation size; the attack is built again with it, and with looks where the chain is stochastic, all
            else of its configuration as it is: never with fewer looks than it has.
        attacks: by name.
        fitted_here: reference images will fit them.

    Raises:
        ConfigError: a configuration that does not take this norm or eps.
    """
    looks = preset.eot if is_stochastic(chain) else 1
    found = []
    for name, attack in attacks.items():
        absent = _why_not(attack, norm, eps, fitted_here)
        own = looks if absent else _looks_of(attack, norm, eps, looks)
        plans: list[tuple[str, Kind, View, Sees, int]] = [("static", "replayed", static_view, "classifier", 1)]
        if (view := _strongest(attack, chain)) is not None:
            kind: Kind = "black-box" if attack.uses == "verdicts" else "white-box"
            seen = view if own or attack.uses == "verdicts" else _looked(view, looks)
            plans.append(("strongest", kind, seen, "whole", own or looks))
        for what, kind, seen, sees, eot in plans:
            options = {"eot": eot}
            make = _maker(attack, norm, eps, eot if own else None)
            found.append(Rung(f"{name} ({what})", kind, seen, sees, attack.name, options, norm, eps, absent, make))
    return found


def at_budget(attack: Attack, norm: Norm, eps: float, eot: int | None = None) -> Attack:
    """The same attack, as fitted as it is, at a norm, eps and looks (None: its own), where it has such settings."""
    fields = type(attack).Config.model_fields
    given = {"norm": norm, "eps": eps, "eot": eot}
    asked = {key: value for key, value in given.items() if key in fields and value is not None}
    fresh = type(attack)({**attack.config.model_dump(), **asked})
    fresh.plugin_name = attack.plugin_name
    if attack.fitted:
        fresh.restore(attack.fitted_state())
        fresh.mark_fitted()
    return fresh


def within(found: AttackResult, images: torch.Tensor, budget: Budget) -> AttackResult:
    """A result of an attack that promises no size: images that went too far come back as they were, unbeaten.

    Args:
        found: of these images.
        images: `(N, C, H, W)` in [0, 1], benign.
        budget: how far is too far.
    """
    far = length(found.images - images, budget.norm) > budget.eps * (1 + 1e-5) + 1e-6
    return replace(
        found,
        images=torch.where(far[:, None, None, None], images, found.images),
        success=found.success & ~far,
        distance=length(found.images - images, budget.norm).masked_fill(far, 0.0),
        description=f"{found.description}; promises no eps, and {int(far.sum())} changes beyond it were withdrawn",
    )


def _why_not(attack: Attack, norm: Norm, eps: float, fitted_here: bool) -> str:
    if not attack.fitted and not fitted_here:
        return "it is not fitted, and there are no reference images: fit it, or pass reference="
    own = at_budget(attack, norm, eps).budget()
    if own is not None and (own.norm != norm or abs(own.eps - eps) > 1e-9):
        return f"it works at {own.norm} {own.eps:.4g} only"
    return ""


def _strongest(attack: Attack, chain: DefendedClassifier) -> View | None:
    """The view of most of a chain that shows what an attack must see; None where that is the bare classifier."""
    if chain.policy in ("none", "abstain"):  # what is not purified is answered by the bare classifier
        return detector_view if "score" in attack.requires and chain.policy == "abstain" else None
    if attack.uses == "verdicts" and not attack.requires:
        return answers_view
    return lambda whole: _first_of(attack, whole)


def _first_of(attack: Attack, chain: DefendedClassifier) -> ThreatView:
    reasons = []
    for view in (exact_view, bpda_view, detector_view):
        try:
            seen = view(chain)
        except MissingRequirementError as error:
            reasons.append(str(error))
            continue
        if attack.requires <= seen.provides():
            return seen
        reasons.append(f"{seen.name.partition(':')[0]} hides {', '.join(sorted(attack.requires - seen.provides()))}")
    raise MissingRequirementError("; ".join(dict.fromkeys(reasons)))


def _looks_of(attack: Attack, norm: Norm, eps: float, looks: int) -> int | None:
    """How many looks an attack takes by itself, its own or these if they are more; None where it takes one."""
    if "eot" not in type(attack).Config.model_fields:
        return None
    wanted = max(looks, attack.config.eot) if looks > 1 else 1
    try:
        at_budget(attack, norm, eps, wanted)
    except ConfigError:  # such as of the suite's standard version
        return None
    return wanted


def _looked(view: View, looks: int) -> View:
    """A view that is averaged for an attack that takes no looks of its own."""
    if looks == 1:
        return view

    def seen(chain: DefendedClassifier) -> ThreatView:
        once = view(chain)
        return averaged(once, looks) if once.stochastic else once

    return seen


def _maker(attack: Attack, norm: Norm, eps: float, eot: int | None) -> Callable[[], Attack]:
    return lambda: at_budget(attack, norm, eps, eot)
