"""Self-checks: reasons not to believe a robust accuracy (Athalye et al. 2018, 1802.00420; Carlini 2019, 1902.06705).

`probe` looks at a chain: does a gradient come through, does it read every image by itself? `compare` looks at
results: does an attacker who knows more, tries harder or may change more also achieve more? Two attacks are compared
on the same images by a sign test, so that a handful of images decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from medfedpure.core.attack import without_parameter_gradients
from medfedpure.core.errors import MedFedPureError
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.records import RungResult
from medfedpure.evaluation.views import exact_view

SURE = 0.01
"""Largest chance, under no difference, at which the sign test calls one attack stronger."""
LEFT = 0.2
"""Share of images that a check on a few may leave: of those that survive an eps that nothing can survive, of zero
gradients, of pixels pressed against a bound."""


def clearly_more(one: Tensor, other: Tensor) -> bool:
    """Whether `one` `(N,)` bool holds more often than `other` on the same images, beyond chance (sign test)."""
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    total = only_one + only_other
    tail = sum(math.comb(total, k) for k in range(only_one, total + 1)) / 2**total
    return only_one > only_other and tail <= SURE


def probe(chain: DefendedClassifier, images: Tensor, labels: Tensor, ids: Tensor, *, seed: int) -> list[str]:
    """What makes attacks on a chain meaningless, from a few images `(N, C, H, W)`."""
    found = []
    try:
        view = exact_view(chain)
    except MedFedPureError as error:
        found.append(f"no exact gradient: {error}")
    else:
        found += _gradient(chain, view, images, labels, seed)
    if chain.purifier is not None and chain.policy in ("purify_flagged", "purify_all"):
        found += _purifier(chain, images, ids, seed)
    return found + _alone(chain, images, ids, seed)


def _gradient(chain: DefendedClassifier, view: torch.nn.Module, images: Tensor, labels: Tensor, seed: int) -> list[str]:
    leaf = images.clone().requires_grad_(True)
    with chain.noise_sequence(seed), without_parameter_gradients(chain):
        logits = view(leaf)
        own = torch.nn.functional.one_hot(labels, logits.shape[1]).bool()
        margin = logits.masked_fill(own, -torch.inf).amax(1) - logits[own]
        if not margin.requires_grad:
            return ["zero gradient: nothing connects the answer to the image"]
        (gradient,) = torch.autograd.grad(margin.sum(), leaf)
    finite = gradient.flatten(1).isfinite().all(1)
    zero = gradient.flatten(1).abs().amax(1) == 0
    found = []
    if not bool(finite.all()):
        found.append(f"the gradient is not finite at {int((~finite).sum())} of {len(images)} images")
    if float(zero.double().mean()) > LEFT:
        found.append(f"zero gradient at {int(zero.sum())} of {len(images)} images: gradient attacks cannot work")
    return found


def _purifier(chain: DefendedClassifier, images: Tensor, ids: Tensor, seed: int) -> list[str]:
    """Does it pass a gradient, and does it keep values inside the range, or press them against its bounds?"""
    assert chain.purifier is not None
    leaf, streams = images.clone().requires_grad_(True), Streams(seed, ids)
    with without_parameter_gradients(chain):
        cleaned = chain.purifier.purify(leaf, leaf.new_ones(len(leaf)), streams=streams).images
        found = []
        if chain.purifier.differentiable:
            connected = cleaned.requires_grad
            gradient = torch.autograd.grad(cleaned.sum(), leaf)[0] if connected else torch.zeros_like(leaf)
            if not bool(gradient.any()):
                found.append(
                    f"the purifier {chain.purifier.name!r} passes no gradient, though it says it does: it is detached "
                    "somewhere, and exact attacks see only the unpurified branch"
                )
    inside = (images > 0.02) & (images < 0.98)
    cleaned = cleaned.detach()
    pressed = inside & ((cleaned <= 0) | (cleaned >= 1))
    share = float(pressed.sum()) / max(int(inside.sum()), 1)
    if share > LEFT:
        found.append(
            f"the purifier {chain.purifier.name!r} presses {share:.0%} of the pixels that lay inside (0, 1) "
            "against its bounds, as when normalized values are clamped: perturbations and gradients vanish there"
        )
    return found


def _alone(chain: DefendedClassifier, images: Tensor, ids: Tensor, seed: int) -> list[str]:
    """Is an image read alike alone and among others? In full precision: what is rounded moves with its batch."""
    asked = chain.asked
    chain.accelerate("off")
    try:
        whole = chain.predict(images, ids=ids, seed=seed)
        parts = [chain.predict(images[k][None], ids=ids[k][None], seed=seed) for k in range(len(images))]
    finally:
        chain.accelerate(asked)
    found = []
    if whole.scores is not None:
        alone = torch.cat([part.scores for part in parts if part.scores is not None])
        gap = (alone - whole.scores).abs() / whole.scores.abs().clamp_min(1e-3)
        if float(gap.max()) > 1e-2:
            found.append(
                f"the detector looks at the batch: a score is {float(whole.scores[gap.argmax()]):.4g} among others and "
                f"{float(alone[gap.argmax()]):.4g} alone"
            )
    # a probability may move with rounding, and by much only where the batch matters
    moved = (torch.cat([part.probabilities for part in parts]) - whole.probabilities).abs().amax(1) > 0.05
    same_gate = torch.cat([part.flagged for part in parts]) == whole.flagged
    if bool((moved & same_gate).any()):
        found.append(f"the answer to {int((moved & same_gate).sum())} of {len(images)} images depends on their batch")
    return found


def skipped_chain(chain: DefendedClassifier, purified: Sequence[bool], flagged: Sequence[bool]) -> list[str]:
    """Whether clean accuracy went through the chain: what its policy purifies was purified."""
    done, wanted = torch.tensor(purified), torch.tensor(flagged)
    if chain.policy == "purify_all":
        wanted = torch.ones_like(wanted)
    elif chain.policy != "purify_flagged":
        wanted = torch.zeros_like(wanted)
    if torch.equal(done, wanted):
        return []
    return [
        f"clean accuracy skipped the chain: of {int(wanted.sum())} benign images that {chain.policy!r} purifies, "
        f"{int((done & wanted).sum())} were purified"
    ]


def compare(
    rungs: Sequence[RungResult],
    checks: Sequence[RungResult],
    labels: Tensor,
    stochastic: bool,
    met_by_all: int | None = None,
) -> list[str]:
    """Why these results must not be believed; nothing where there is no reason.

    Attacks are compared on images that met all of them: what an attack met because others had failed there would speak
    for it.

    Args:
        rungs: of one defence, on all images `(N,)`, or on some of them in a cascade.
        checks: of the same, on the first few.
        labels: `(N,)` int64.
        stochastic: two answers of the defence to one image may differ.
        met_by_all: of a cascade: the first so many images met every rung; None = all did.
    """
    found = [f"{result.rung}: {result.problem}" for result in (*rungs, *checks) if result.problem]
    for eps in dict.fromkeys(result.eps for result in rungs):
        own = {result.rung: result for result in rungs if result.eps == eps and result.reading}
        found += _within(own, labels, eps, met_by_all)
    unseen = [r for r in rungs if r.kind == "white-box" and r.skipped and r.rung in ("orthogonal", "joint")]
    found += [f"no attacker who knows the detector: {r.rung} at eps {r.eps:.4g}: {r.skipped}" for r in unseen[:1]]
    if stochastic:
        blind = [r.rung for r in rungs if r.kind == "white-box" and r.reading is not None and r.eot == 1]
        if blind:
            found.append(f"a stochastic defence was attacked without EoT: {', '.join(dict.fromkeys(blind))}")
    return found + _sweep(rungs, checks, labels)


def _within(found: dict[str, RungResult], labels: Tensor, eps: float, met_by_all: int | None) -> list[str]:
    """Rungs of one eps against each other."""
    fell = {
        name: result.reading.fooled(result.reading.own(labels))[:met_by_all]
        for name, result in found.items()
        if result.reading is not None
    }
    reasons = []
    for stronger, weaker in (("exact", "bpda"), ("exact", "static"), ("joint", "static")):
        if stronger in fell and weaker in fell and clearly_more(fell[weaker], fell[stronger]):
            reasons.append(
                f"eps {eps:.4g}: {stronger} is weaker than {weaker} ({int(fell[stronger].sum())} against "
                f"{int(fell[weaker].sum())} images fooled): the gradient is masked, or its attack too short"
            )
    gradients = [name for name in fell if found[name].kind in ("white-box", "replayed")]
    if gradients:
        best = max(gradients, key=lambda name: int(fell[name].sum()))
        for name in fell:
            if found[name].kind in ("black-box", "control") and clearly_more(fell[name], fell[best]):
                reasons.append(
                    f"eps {eps:.4g}: {name}, without gradients, fools {int(fell[name].sum())} images, and the best "
                    f"gradient attack, {best}, {int(fell[best].sum())}: gradients are masked"
                )
    return reasons


def _sweep(rungs: Sequence[RungResult], checks: Sequence[RungResult], labels: Tensor) -> list[str]:
    """More steps, looks or eps must not help the defender; a huge eps must leave next to nothing."""
    if not checks or not rungs:
        return []
    base = checks[0].rung.split(",")[0]
    main = next((r for r in rungs if r.rung == base and r.eps == rungs[0].eps and r.reading is not None), None)
    size = max((len(r.reading.flagged) for r in checks if r.reading is not None), default=0)
    fell = {r.rung.split(", ", 1)[1]: r.reading.fooled(labels[:size]) for r in checks if r.reading is not None}
    reasons = []
    if main is not None and main.reading is not None:
        fell["the attack itself"] = main.reading.fooled(main.reading.own(labels))[:size]
    for weaker, stronger, what in (
        ("half eps", "the attack itself", "a larger eps"),
        ("the attack itself", "double eps", "a larger eps"),
        ("a quarter of the steps", "the attack itself", "more steps"),
        ("EoT 1", "the attack itself", "more EoT looks"),
    ):
        if weaker in fell and stronger in fell and clearly_more(fell[weaker], fell[stronger]):
            reasons.append(
                f"{what} helps the defender: {base} fools {int(fell[weaker].sum())} images with {weaker}, "
                f"{int(fell[stronger].sum())} with {stronger}"
            )
    for width in (name for name in fell if name.startswith("gate bandwidth")):
        if "the attack itself" in fell and clearly_more(fell[width], fell["the attack itself"]):
            reasons.append(
                f"{base} with {width} fools {int(fell[width].sum())} images, with 1 "
                f"{int(fell['the attack itself'].sum())}: its gradient through the gate is not the best one"
            )
    large = fell.get("large eps")
    if large is not None and len(large):
        left = torch.nonzero(~large).numel()
        if left / len(large) > LEFT and left > 1:
            eps = next(r.eps for r in checks if r.rung.endswith("large eps"))
            reasons.append(
                f"{left} of {len(large)} images survive eps {eps:g}, which nothing can survive: gradients are masked"
            )
    return reasons
