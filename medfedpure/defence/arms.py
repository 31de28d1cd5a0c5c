"""Which policy holds up best: each is attacked by who knows it, on images of no fit, no calibration and no own check.

A static attack fools the bare classifier. A knowing one goes through the very chain, by its exact gradient, and where a
part has none with the identity for the purifier's (BPDA). Both raise the margin of logits and go on after success; of
chains that draw noise the knowing one averages looks (EoT, Athalye et al. 2018). What was made against one policy is
replayed on the others, so that none looks strong because a part of it has no gradient. Where a classifier names a
network to attack in its place, as a mix does, every attack is made on that as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack, Norm, ThreatView
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError, InputError, MedFedPureError, MissingRequirementError
from medfedpure.core.progress import track
from medfedpure.core.registry import create
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import verdicts_of
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.policy import Policy
from medfedpure.defence.recipe import ARMS, Arm, Choice, best_of
from medfedpure.defence.views import bpda_view, exact_view, is_stochastic, member_view, stand_in_of
from medfedpure.figures.balanced import balanced, balanced_interval

EPS = 8 / 255
STEPS, LOOKS = 10, 4
_TOGETHER = 16


@dataclass(frozen=True)
class Subject:
    """A calibrated chain with detector and purifier, and images that nothing of it has seen.

    Attributes:
        chain: of any policy.
        images: one of each group is used.
    """

    chain: DefendedClassifier
    images: ImageDataset


def choose_policy(
    subjects: Sequence[Subject], *, eps: float | str = EPS, norm: Norm = "linf", steps: int = STEPS, seed: int = 0
) -> Choice:
    """The policy of the highest worst-case balanced accuracy over all subjects' images together.

    Where all images are labelled in the classifier's classes, labels are the truth; otherwise the bare classifier's
    verdicts on the unattacked images.

    Args:
        subjects: one, or all clients of a run.
        eps: how far images are attacked, above 0, in [0, 1] units of a pixel; "8/255" is accepted.
        norm: "linf" or "l2".
        steps: of each attack.
        seed: of the choice of images and of all noise.

    Raises:
        MissingRequirementError: a classifier without gradients.
        ConfigError: norm, eps or steps out of range.
        InputError: no subject.
    """
    if not subjects:
        raise InputError("a policy is chosen on the images of one defence or more; got none")
    labelled = all(bool(one.chain.facts_of(one.images).class_names) for one in subjects)
    tried = [
        _Tried.of(one, labelled, settings(eps, norm, steps), derive_seed(seed, "arms", n))
        for n, one in enumerate(subjects)
    ]
    labels = torch.cat([one.labels for one in tried])
    # No two clients share a group; numbers are made anew, for each client may count its own from 0.
    groups = torch.arange(len(labels))
    arms = []
    for policy in track(ARMS, "policies", len(ARMS)):
        views = [one.attack_through(policy) for one in tried]
        arms.append((policy, "; ".join(dict.fromkeys(views))))
    found = [_arm(policy, view, tried, labels, groups) for policy, view in arms]
    guessing = 1 / max(2, len(labels.unique()))
    attack: Attack = create("attack", "pgd_eot", settings(eps, norm, steps))
    truth = "labels" if labelled else "the classifier's verdicts on the unattacked images"
    told = attack.describe().replace("eot 1, ", "")
    return Choice(best_of(found, guessing), len(labels), truth, guessing, told, tuple(found))


def _arm(policy: Policy, view: str, tried: Sequence[_Tried], labels: Tensor, groups: Tensor) -> Arm:
    """What a policy is worth, once all are attacked."""
    read = [one.under(policy) for one in tried]
    right = {what: torch.cat([one.right[what] for one in read]) for what in ("clean", "static", *ARMS)}
    worst = torch.stack(list(right.values())).all(0)
    low, high = balanced_interval(worst, labels, groups) or (None, None)
    return Arm(
        policy=policy,
        clean=balanced(right["clean"], labels),
        static=balanced(right["static"], labels),
        knowing=balanced(right[policy], labels),
        worst=balanced(worst, labels),
        low=low,
        high=high,
        view=view,
        seconds=sum(one.seconds for one in read) / len(labels),
    )


def settings(eps: float | str = EPS, norm: Norm = "linf", steps: int = STEPS) -> dict[str, Any]:
    """The configuration of the attack that both kinds use, and `mix` as well; eps may be "8/255".

    Raises:
        ConfigError: norm, eps or steps out of range; an eps of 0, which attacks nothing.
    """
    asked = {"norm": norm, "eps": eps, "steps": steps}
    found = create("attack", "pgd_eot", asked).config
    if not found.eps > 0:
        raise ConfigError(f"eps > 0 is wanted, for nothing is attacked within 0; got {eps!r}")
    step = min(2.5 * found.eps / found.steps, found.eps)
    return {**asked, "eps": found.eps, "step": step, "loss": "cw", "early_stop": False}


def check_attackable(model: nn.Module, data: ImageDataset, *, eps: float | str = EPS) -> None:
    """Make sure that a classifier can be attacked by its gradient, by one step at two images.

    Raises:
        ConfigError: eps out of range.
        MissingRequirementError: it cannot.
    """
    attack: Attack = create("attack", "pgd_eot", settings(eps, steps=1))
    images = data.batch(torch.arange(min(2, len(data)))).images.to(device_of(model))
    try:
        attack(ThreatView(model), images, verdicts_of(model, images))
    except Exception as error:  # whatever a foreign model raises under a gradient
        told = str(error) if isinstance(error, MedFedPureError) else f"{type(error).__name__}: {error}"
        raise MissingRequirementError(
            f"the recipe 'robust' attacks the classifier by its gradient, which failed: {told}. Take the recipe "
            "'paper' or 'fast'"
        ) from error


@dataclass(frozen=True)
class _Read:
    """Under one policy at one subject: right `(N,)` bool by what images went through; seconds of the clean ones."""

    right: dict[str, Tensor]
    seconds: float


@dataclass(frozen=True)
class _Tried:
    """A subject, and images `(N, C, H, W)` by what they went through: "clean", "static", or a policy."""

    chain: DefendedClassifier
    data: ImageDataset
    labels: Tensor
    attack: dict[str, Any]
    seed: int
    images: dict[str, list[Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, subject: Subject, labelled: bool, attack: dict[str, Any], seed: int) -> _Tried:
        chain, data = subject.chain, subject.images.one_per_group(derive_seed(seed, "images"))
        labels = data.labels if labelled else _verdicts(chain.classifier, data)
        found = cls(chain, data, labels, attack, seed)
        views = [ThreatView(chain.classifier, of=chain, name="static: attacker ignores the defence")]
        if stand_in_of(chain.classifier) is not None:
            views.append(member_view(_with(chain, "none")))
        found.images.update(clean=[data.images], static=[found._attacked(view, 1) for view in views])
        return found

    def attack_through(self, policy: Policy) -> str:
        """Add images made by who knows this policy; in words, what he saw."""
        if policy == "none":  # who knows it attacks the bare classifier
            self.images[policy] = self.images["static"]
            return f"the static attack knows it{self._and_member()}, EoT 1"
        arm = _with(self.chain, policy)
        try:
            view = exact_view(arm)
        except MissingRequirementError:
            view = bpda_view(arm)
        looks = LOOKS if is_stochastic(arm) else 1
        views = [view] if stand_in_of(arm.classifier) is None else [view, member_view(arm)]
        with arm.noise_sequence(derive_seed(self.seed, "looks", policy)):
            self.images[policy] = [self._attacked(view, looks) for view in views]
        return f"{view.name}{self._and_member()}, EoT {looks}"

    def _and_member(self) -> str:
        return "" if stand_in_of(self.chain.classifier) is None else ", and the same on the network in its place"

    def under(self, policy: Policy) -> _Read:
        """Read all images under a policy."""
        arm, right, seconds = _with(self.chain, policy), {}, 0.0
        for what, kinds in self.images.items():
            right[what] = torch.ones_like(self.labels, dtype=torch.bool)
            for images in kinds:
                start = time.perf_counter()
                found = arm.predict(images, self.data.ids, seed=derive_seed(self.seed, what), batch_size=_TOGETHER)
                right[what] &= found.labels.cpu() == self.labels
                seconds += time.perf_counter() - start if what == "clean" else 0.0
        return _Read(right, seconds)

    def _attacked(self, view: ThreatView, looks: int) -> Tensor:
        attack: Attack = create("attack", "pgd_eot", {**self.attack, "eot": looks})
        device, made = device_of(self.chain), []
        for place, batch in enumerate(self.data.batches(_TOGETHER)):
            labels = self.labels[place * _TOGETHER :][: len(batch.ids)]
            streams = Streams(derive_seed(self.seed, "attack"), batch.ids)
            made.append(attack(view, batch.images.to(device), labels.to(device), streams=streams).images.cpu())
        return torch.cat(made)


def _verdicts(model: nn.Module, data: ImageDataset) -> Tensor:
    device = device_of(model)
    return torch.cat([verdicts_of(model, batch.images.to(device)).cpu() for batch in data.batches(_TOGETHER)])


def _with(chain: DefendedClassifier, policy: Policy) -> DefendedClassifier:
    """The same parts and threshold under another policy."""
    other = DefendedClassifier(
        chain.classifier,
        detector=chain.detector,
        purifier=chain.purifier,
        policy=policy,
        calibration=chain.calibration,
        vote=chain.vote if policy != "none" else type(chain.vote)(),
        image_facts=chain.image_facts,
    )
    other.accelerate(chain.asked)
    return other
