"""What an evaluation takes, told before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from medfedpure.core.attack import Norm, ThreatView, without_parameter_gradients
from medfedpure.core.errors import MedFedPureError, MissingRequirementError
from medfedpure.core.results import device_of
from medfedpure.core.verdict import as_they_answer
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.ladder import PROBED, SUITE, Preset, Rung, checks, replayed_options, rungs
from medfedpure.evaluation.looks import Looks, looks_of
from medfedpure.evaluation.pairs import Victims
from medfedpure.evaluation.views import exact_view, is_stochastic

TIMED = 8
"""Images whose gradient is timed, after a first time that is not."""


@dataclass(frozen=True)
class Cost:
    """What is asked at the most, of one image each: less where images fall early or attacks are finished.

    Attributes:
        gradients: of a whole defence; where loss and score have a gradient each, both count.
        answers: of a whole defence, without a gradient; all draws of a vote are one.
        passes: of a bare classifier, with a gradient or without.
        seconds: that all of them take here.
    """

    gradients: int = 0
    answers: int = 0
    passes: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.gradients + other.gradients,
            self.answers + other.answers,
            self.passes + other.passes,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: int) -> Cost:
        return Cost(self.gradients * times, self.answers * times, self.passes * times, self.seconds * times)

    def __str__(self) -> str:
        return (
            f"{self.passes:,} passes of bare classifiers, {self.answers:,} answers and {self.gradients:,} gradient "
            f"evaluations of whole defences, at most {in_words(self.seconds)} here: less where images fall early or "
            "attacks are finished"
        )


def foresee(
    chains: Iterable[DefendedClassifier],
    images: Tensor,
    preset: Preset,
    norm: Norm,
    eps: Sequence[float],
    attackers: Mapping[str, nn.Module],
    *,
    federation: Victims | None = None,
    batch_size: int = 64,
    seed: int,
) -> Cost:
    """What an evaluation takes at the most; a few looks at every defence and classifier are timed.

    Args:
        chains: the defences, calibrated.
        images: `(N, C, H, W)` in [0, 1], all that are attacked.
        preset: how hard the attackers try.
        norm: "linf" or "l2".
        eps: perturbation sizes, the first one that of the self-checks.
        attackers: other models by name, for transfer attacks.
        federation: clients' defences, and the images that each is attacked on.
        batch_size: images that are attacked at a time.
        seed: of the noise.
    """
    each = foresee_each(
        chains, images, preset, norm, eps, attackers, federation=federation, batch_size=batch_size, seed=seed
    )
    return sum(each, Cost())


def foresee_each(
    chains: Iterable[DefendedClassifier],
    images: Tensor,
    preset: Preset,
    norm: Norm,
    eps: Sequence[float],
    attackers: Mapping[str, nn.Module],
    *,
    federation: Victims | None = None,
    batch_size: int = 64,
    seed: int,
) -> list[Cost]:
    """As `foresee`, of each defence on images `(N, C, H, W)`, and last of the federation.

    What they share counts where it comes first.
    """
    found, timed, crafted = [], _Timed(seed), set[tuple[str, int]]()
    for chain in chains:
        plan = [rung for size in eps for rung in rungs(chain, preset, norm, size, attackers)]
        tests = checks(chain, preset, norm, eps[0])
        found.append(_arm(chain, images, preset, plan, tests, timed, crafted, batch_size))
    return [*found, _pairs(federation or {}, preset, norm, eps, timed)]


def _arm(
    chain: DefendedClassifier,
    images: Tensor,
    preset: Preset,
    plan: Sequence[Rung],
    tests: Sequence[Rung],
    timed: _Timed,
    crafted: set[tuple[str, int]],
    batch_size: int,
) -> Cost:
    """One defence under every rung; what was crafted before is not crafted again."""
    size, few = len(images), min(preset.checked, len(images))
    probed, draws = min(PROBED, few), preset.draws if is_stochastic(chain) else 1
    answer, gradient = timed.answer(chain, images), timed.gradient(chain, images)
    # Benign images, bare and whole; the probe; and uniform noise.
    cost = timed.passed(chain.classifier, images) * size + answer * (draws * size)
    cost += gradient * (2 * probed) + answer * (2 * probed)
    cost += answer * (draws * size * len({rung.eps for rung in plan}))
    for rung, count, readings in [*((rung, size, draws) for rung in plan), *((rung, few, 1) for rung in tests)]:
        view = _view_of(rung, chain)
        if view is None:
            continue
        cost += answer * (readings * count)
        key = rung.label(), id(chain.classifier)
        if rung.kind == "replayed" and key in crafted:
            continue
        crafted.add(key)
        looks = looks_of(rung.attack, rung.options, timed.classes(chain, images))
        cost += _crafting(rung, view, looks, timed, chain, images) * count
        if rung.attack in ("square", SUITE):  # these are shown one image of each chunk, to count classes
            shown = timed.passed(chain.classifier, images) if rung.sees == "classifier" else answer
            cost += shown * -(-count // batch_size)
    return cost


def _view_of(rung: Rung, chain: DefendedClassifier) -> ThreatView | None:
    """What the attacker sees, or None where there is no such attack."""
    if rung.absent:
        return None
    try:
        return rung.view(chain)
    except MissingRequirementError:
        return None


def _crafting(
    rung: Rung, view: ThreatView, looks: Looks, timed: _Timed, chain: DefendedClassifier, images: Tensor
) -> Cost:
    """One image under one attack, by what each look asks of a view."""
    answer, gradient = timed.answer(chain, images), timed.gradient(chain, images)
    if rung.sees == "classifier":
        assert isinstance(view.predict, nn.Module)
        return timed.passed(view.predict, images) * (looks.steep + looks.plain)
    passed = timed.passed(chain.classifier, images)
    if rung.sees == "answers":
        return answer * looks.plain
    if rung.sees == "bpda":  # what the purifier gives is an answer, and the rest is the classifier's
        return (answer + passed) * (looks.steep + looks.plain)
    return gradient * looks.gradients + (passed if rung.sees == "detector" else answer) * looks.plain


def _pairs(victims: Victims, preset: Preset, norm: Norm, eps: Sequence[float], timed: _Timed) -> Cost:
    """Every client's defence: without an attack, and under those crafted on every client's classifier."""
    cost = Cost()
    for chain, data in victims.values():
        read = timed.answer(chain, data.images) + timed.passed(chain.classifier, data.images)
        cost += read * (len(data) * (1 + len(eps) * len(victims)))
        for size in eps:
            looks = looks_of("pgd_eot", replayed_options(preset, norm, size))
            for other, _ in victims.values():
                cost += timed.passed(other.classifier, data.images) * (len(data) * (looks.steep + looks.plain))
    return cost


@dataclass(frozen=True)
class _Timed:
    """One of each kind, with the seconds that it takes here for each image: asked once of every model."""

    seed: int
    found: dict[tuple[str, int], tuple[nn.Module, float]] = field(default_factory=dict)

    def gradient(self, chain: DefendedClassifier, images: Tensor) -> Cost:
        """The gradient of a whole defence; where there is none, of its parts, that of the classifier and an answer."""
        try:
            exact_view(chain)
        except MedFedPureError:
            parts = self.answer(chain, images).seconds + self.passed(chain.classifier, images).seconds
            return Cost(gradients=1, seconds=parts)
        seconds = self._once("gradient", chain, lambda: seconds_of(chain, images, seed=self.seed, gradient=True))
        return Cost(gradients=1, seconds=seconds)

    def answer(self, chain: DefendedClassifier, images: Tensor) -> Cost:
        """An answer of a whole defence."""
        seconds = self._once("answer", chain, lambda: seconds_of(chain, images, seed=self.seed, gradient=False))
        return Cost(answers=1, seconds=seconds)

    @torch.no_grad()
    def classes(self, chain: DefendedClassifier, images: Tensor) -> int:
        """That a defence answers."""
        with as_they_answer(chain):
            return int(chain.classifier(images[:1].to(device_of(chain))).shape[1])

    def passed(self, model: nn.Module, images: Tensor) -> Cost:
        """A pass of a classifier, with its gradient."""
        seconds = self._once("pass", model, lambda: seconds_of(model, images, seed=self.seed, gradient=True))
        return Cost(passes=1, seconds=seconds)

    def _once(self, kind: str, model: nn.Module, measure: Callable[[], float]) -> float:
        if (kind, id(model)) not in self.found:
            self.found[kind, id(model)] = model, measure()
        return self.found[kind, id(model)][1]


def seconds_of(model: nn.Module, images: Tensor, *, seed: int, gradient: bool) -> float:
    """Wall-clock seconds that one look at a model takes here for each image.

    A defence is timed at its hardest: every image is purified at full strength, in all draws of its vote.

    Args:
        model: a classifier, or a defence that is ready to predict.
        images: `(N, C, H, W)` in [0, 1], on any device; a few are taken.
        seed: of the noise; the defence's own counter does not move.
        gradient: with the gradient, as far as there is one.
    """
    some = images[:TIMED].to(device_of(model))
    if isinstance(model, DefendedClassifier):
        with model.noise_sequence(seed):
            return _seconds(lambda leaf: _hardest(model, leaf), model, some, gradient)
    return _seconds(lambda leaf: model(leaf).sum(), model, some, gradient)


def _seconds(look: Callable[[Tensor], Tensor], model: nn.Module, some: Tensor, gradient: bool) -> float:
    start = 0.0
    with as_they_answer(model), without_parameter_gradients(model), torch.set_grad_enabled(gradient):
        for _ in range(2):
            start = time.perf_counter()
            leaf = some.clone().requires_grad_(gradient)
            found = look(leaf)
            if found.requires_grad:
                torch.autograd.grad(found, leaf)
            if some.is_cuda:
                torch.cuda.synchronize(some.device)
    return (time.perf_counter() - start) / len(some)


def _hardest(chain: DefendedClassifier, images: Tensor) -> Tensor:
    """The sum of everything that a chain may compute for `(N, C, H, W)`."""
    found = chain.inspect(images, chain.next_streams(len(images)))
    total = found.logits.sum() if found.scores is None else found.logits.sum() + found.scores.sum()
    if chain.policy in ("purify_flagged", "purify_all"):
        total = total + chain.clean(images, torch.ones_like(found.strength), found.streams).logits.sum()
    return total


def in_words(seconds: float) -> str:
    """A duration, roughly."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
