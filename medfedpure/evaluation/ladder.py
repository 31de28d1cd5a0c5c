"""The rungs of the evaluation: who attacks, what he sees, how hard he tries.

After Carlini et al. 2019 (arXiv 1902.06705) and Tramer et al. 2020 (arXiv 2002.08347): the same images for every
defence, from an attacker who ignores it to one who differentiates all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from medfedpure.core.attack import Attack, Norm, Shortenable, ThreatView
from medfedpure.core.errors import ConfigError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.views import member_view, stand_in_of
from medfedpure.evaluation.views import (
    bpda_view,
    detector_view,
    exact_view,
    is_stochastic,
    static_view,
    surrogate_view,
    transfer_view,
)

Kind = Literal["replayed", "white-box", "black-box", "control"]
Sees = Literal["classifier", "bpda", "whole", "detector", "answers"]
LARGE = {"linf": 0.5, "l2": 20.0}
"""A perturbation that nothing can survive: where a defence does, its gradients are masked."""

BANDWIDTHS = (0.25, 4.0)
"""Of the gate's sigmoid, in the checks of exact attacks, which have 1: see `exact_view`."""

View = Callable[[DefendedClassifier], ThreatView]

PROBED = 8
"""Images at which the gradient of a defence is probed."""

SUITE = "auto_attack_suite"
"""The plugin behind the rung of that name."""

MEMBER = "member"
"""The rungs of a classifier that names a network to attack in its place, such as a mix its robust one."""

PATIENCE = 5
"""Steps in a row whose every look must have fallen before an image leaves: one may have been lucky."""


@dataclass(frozen=True)
class Preset:
    """How hard an evaluation tries.

    Attributes:
        images: at most so many, one for each near-duplicate group.
        steps: of every gradient attack.
        eot: looks at each step, for stochastic chains.
        restarts: starts of every PGD.
        draws: readings of every attacked image by a stochastic chain.
        queries: squares that the black-box attack tries on each image.
        checked: images of the self-checks.
        note: what stands beside every number.
        suite: whether APGD and FAB, one after the other, are a rung; of a stochastic chain APGD with these looks.

    Raises:
        ConfigError: fewer than two images, or a number below 1.
    """

    name: str
    images: int
    steps: int
    eot: int
    restarts: int
    draws: int
    queries: int
    checked: int
    note: str
    suite: bool = False

    def __post_init__(self) -> None:
        least = {"images": 2, "steps": 1, "eot": 1, "restarts": 1, "draws": 1, "queries": 1, "checked": 1}
        few = {name: getattr(self, name) for name in least if not _whole(getattr(self, name), least[name])}
        if few:
            told = ", ".join(f"{name}={value!r} (from {least[name]})" for name, value in few.items())
            raise ConfigError(f"a preset wants whole numbers that leave something to do; got {told}")

    def describe(self) -> str:
        """One line."""
        starts = "1 start" if self.restarts == 1 else f"{self.restarts} starts"
        return (
            f"{self.name}: {self.steps} steps, {starts}, EoT {self.eot}, {'APGD and FAB, ' if self.suite else ''}"
            f"{self.queries} black-box tries, {self.draws} draws; {self.note}"
        )


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


PRESETS = {
    "quick": Preset("quick", 24, 10, 2, 1, 3, 20, 12, "a quick look, NOT a robustness claim"),
    "standard": Preset("standard", 100, 20, 4, 1, 5, 100, 24, "not headline: EoT below 20, fewer than 100 steps", True),
    "headline": Preset("headline", 500, 100, 20, 3, 10, 5000, 100, "headline strength", True),
}


@dataclass(frozen=True)
class Rung:
    """One attacker against one chain.

    Attributes:
        name: as it stands in the table.
        kind: "replayed" attacks are crafted on a bare model and do not depend on the chain around it.
        view: what the attacker sees of a chain.
        sees: which of these it is, in a word: what a look costs follows from it.
        attack: name of the attack plugin.
        options: of the plugin.
        norm, eps: the budget, which every result is audited against.
        absent: why there is no such attacker, or "".
        make: builds the attack; by default the plugin with these options.
    """

    name: str
    kind: Kind
    view: View
    sees: Sees
    attack: str
    options: Mapping[str, Any]
    norm: Norm
    eps: float
    absent: str = ""
    make: Callable[[], Attack] | None = None

    def label(self) -> str:
        """Unique within an arm."""
        return label(self.name, self.norm, self.eps)


def label(name: str, norm: Norm | str, eps: float) -> str:
    """What a rung is kept under; two eps never share one, however near."""
    return f"{name} {norm} {float(eps)!r}"


def preset_of(preset: str | Preset) -> Preset:
    """A preset by its name.

    Raises:
        ConfigError: no such preset.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise ConfigError(f"no preset is named {preset!r}; the presets are {', '.join(PRESETS)}")
    return PRESETS[preset]


def rungs(
    chain: DefendedClassifier, preset: Preset, norm: Norm, eps: float, attackers: Mapping[str, nn.Module]
) -> list[Rung]:
    """Every attacker that makes sense against a chain, cheap ones first, so that a cascade has less to do."""
    eot = preset.eot if is_stochastic(chain) else 1
    patient = replayed_options(preset, norm, eps)
    found = [Rung("static", "replayed", static_view, "classifier", "pgd_eot", patient, norm, eps)]
    member = stand_in_of(chain.classifier)
    if member is not None:
        found.append(Rung(MEMBER, "replayed", _bare_member, "classifier", "pgd_eot", patient, norm, eps))
    for name, model in attackers.items():
        view = _transfer(model, name)
        found.append(Rung(f"transfer from {name}", "replayed", view, "classifier", "pgd_eot", patient, norm, eps))
    through = _pgd(preset, norm, eps, eot)
    if chain.policy in ("purify_flagged", "purify_all"):
        found.append(Rung("bpda", "white-box", bpda_view, "bpda", "pgd_eot", through, norm, eps))
        if isinstance(chain.purifier, Shortenable) and preset.name != "quick":
            found.append(Rung("surrogate", "white-box", _surrogate, "whole", "pgd_eot", through, norm, eps))
        found.append(Rung("exact", "white-box", exact_view, "whole", "pgd_eot", through, norm, eps))
        if member is not None:
            found.append(Rung(f"{MEMBER}, purified", "white-box", member_view, "whole", "pgd_eot", through, norm, eps))
    if preset.suite and chain.policy != "abstain":  # that answers as its bare classifier, which is judged undefended
        # first where it can be: it lets an image go once it has fallen, and a replayed attack goes on
        found.insert(0 if chain.policy == "none" else len(found), _suite(chain, preset, norm, eps, eot))
    aware = {key: value for key, value in through.items() if key != "loss"}
    aware["early_stop"] = True
    if chain.detector is not None and chain.policy == "purify_flagged":
        found.append(Rung("joint", "white-box", exact_view, "whole", "joint_pgd", aware, norm, eps))
    if chain.detector is not None and chain.policy in ("purify_flagged", "abstain"):
        found.append(Rung("orthogonal", "white-box", detector_view, "detector", "orthogonal_pgd", aware, norm, eps))
    queries = {"eps": eps, "queries": preset.queries}
    absent = "" if norm == "linf" else "ART's Square works in linf only"
    found.append(Rung("square", "black-box", answers_view, "answers", "square", queries, norm, eps, absent=absent))
    return found


def checks(chain: DefendedClassifier, preset: Preset, norm: Norm, eps: float) -> list[Rung]:
    """Attacks that tell whether the strongest white-box rung can be believed, for a few images.

    None for a chain that abstains: it may refuse what is far away, and its classifier is judged undefended.
    """
    if chain.policy == "abstain":
        return []
    purifies = chain.policy in ("purify_flagged", "purify_all")
    view, stochastic = (exact_view if purifies else static_view), is_stochastic(chain)
    name = "exact" if purifies else "static"
    sees: Sees = "whole" if purifies else "classifier"
    eot = preset.eot if stochastic else 1

    def made(
        suffix: str,
        radius: float,
        *,
        steps: int = preset.steps,
        looks: int = eot,
        seen: View = view,
        random_start: bool = False,
    ) -> Rung:
        options = {**_pgd(preset, norm, radius, looks), "steps": steps, "step": _step(norm, radius, steps)}
        options["random_start"] = random_start
        return Rung(f"{name}, {suffix}", "white-box", seen, sees, "pgd_eot", options, norm, radius)

    found = [
        made("half eps", eps / 2),
        made("double eps", max(min(2 * eps, LARGE[norm]), eps)),
        # from the image itself the way into a ball that large may end where a network answers alike everywhere
        made("large eps", max(LARGE[norm], eps), steps=max(preset.steps, 40), random_start=True),
        made("a quarter of the steps", eps, steps=max(preset.steps // 4, 1)),
    ]
    if stochastic and eot > 1:
        found.append(made("EoT 1", eps, looks=1))
    if chain.policy == "purify_flagged":
        found += [made(f"gate bandwidth {width:g}", eps, seen=_gated(width)) for width in BANDWIDTHS]
    return found


def replayed_options(preset: Preset, norm: Norm, eps: float) -> dict[str, Any]:
    """Of a PGD that goes on after success: what only just fools one model seldom fools another."""
    return {**_pgd(preset, norm, eps, 1), "early_stop": False}


def _pgd(preset: Preset, norm: Norm, eps: float, eot: int) -> dict[str, Any]:
    return {
        "norm": norm,
        "eps": eps,
        "step": _step(norm, eps, preset.steps),
        "steps": preset.steps,
        "restarts": preset.restarts,
        "eot": eot,
        "patience": 1 if eot == 1 else PATIENCE,
        "loss": "cw",
        "batch_size": 64,
    }


def _suite(chain: DefendedClassifier, preset: Preset, norm: Norm, eps: float, eot: int) -> Rung:
    """APGD and FAB, or APGD with looks; Square, the suite's last part, is a rung of its own."""
    options = {
        "norm": norm,
        "eps": eps,
        "version": "rand" if is_stochastic(chain) else "standard",
        "steps": preset.steps,
        "queries": 0,
        "eot": eot,
        "patience": 1 if eot == 1 else PATIENCE,
        "batch_size": 64,
    }
    bare = chain.policy == "none"
    sees: Sees = "classifier" if bare else "whole"
    return Rung("suite", "white-box", static_view if bare else exact_view, sees, SUITE, options, norm, eps)


def _step(norm: Norm, eps: float, steps: int) -> float:
    """Large enough to cross the ball and come back."""
    return min(2.5 * eps / steps, 1.0) if norm == "linf" else 2.5 * eps / steps


def _transfer(model: nn.Module, name: str) -> View:
    return lambda _: transfer_view(model, name)


def _bare_member(chain: DefendedClassifier) -> ThreatView:
    return member_view(DefendedClassifier(chain.classifier, policy="none"))


def _gated(width: float) -> View:
    return lambda chain: exact_view(chain, bandwidth=width)


def _surrogate(chain: DefendedClassifier) -> ThreatView:
    return surrogate_view(chain, steps=1)


def answers_view(chain: DefendedClassifier) -> ThreatView:
    """What a black-box attacker asks: one answer of the chain at a time, noise and all; never that it was refused."""
    blind = "; refusals are not seen" if chain.policy == "abstain" or chain.vote.min_agreement > 0 else ""
    return ThreatView(chain, name=f"black-box: answers of the chain{blind}", stochastic=is_stochastic(chain))
