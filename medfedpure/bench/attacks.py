"""Attacks at one budget: the same norm, eps and steps, and what each of them costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.bench.stage import ATTACK_STEPS, SMALL, Row, Stage, fit, timed
from medfedpure.core.attack import Attack, Budget, ThreatView, length
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create, registry
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.views import detector_view

COLUMNS = ("threat", "fooled", "eps", "mean linf", "mean l2", "passes", "ms an image")
KEPT, COUNTED, NONE = "kept", "counted", "none"
_LOCAL = 0.25


def budgeted(name: str, options: Mapping[str, Any], budget: Budget) -> Attack:
    """An attack at the norm, eps and steps of the bench, where it has such options and `options` leave them open.

    Raises:
        ConfigError: it works at another norm or eps.
    """
    fields = registry().load("attack", name).Config.model_fields
    given = dict(options or SMALL.get(("attack", name), {}))
    same: dict[str, Any] = {"norm": budget.norm, "eps": budget.eps}
    if "eps" in fields:
        steps = given.get("steps", ATTACK_STEPS)
        same["steps"] = steps
        if "step" in fields and fields["step"].default is not None and isinstance(steps, int) and steps > 0:
            largest = 1.0 if budget.norm == "linf" else float("inf")
            same["step"] = min(2.5 * budget.eps / steps, largest)
    part: Attack = create("attack", name, {**{key: same[key] for key in same if key in fields}, **given})
    own = part.budget()
    if own is not None and (own.norm != budget.norm or abs(own.eps - budget.eps) > 1e-9):
        raise ConfigError(
            f"{name} works at {own.norm} {own.eps:.4g}, and all are compared at {budget.norm} {budget.eps:.4g}: change "
            "its configuration, or --norm and --eps"
        )
    return part


def measure(part: Attack, stage: Stage) -> dict[str, float | int | str]:
    """How many of the same images an attack fools within the budget, and at what cost."""
    some, budget = stage.readable, stage.budget
    view = _seeing(stage) if part.requires & {"score", "threshold"} else ThreatView(stage.model)
    if "features" in part.requires:
        view.features = stage.model.features
    streams = stage.streams("attack", some)
    if not part.fitted:
        part.fit(stage.parts["train"], view=view, seed=stage.seed)
    with counted_passes(stage.model) as passes:
        result, spent = timed(lambda: with_gradients(lambda: part(view, some.images, some.labels, streams=streams)))
    change = result.images - some.images
    near = length(change, budget.norm) <= budget.eps * (1 + 1e-5) + 1e-6
    bound, threat = KEPT if part.budget() else COUNTED, f"{budget.norm} {budget.eps:.4g}"
    if part.requires:
        threat += f", must see {' and '.join(sorted(part.requires))}"
    if bound == COUNTED and _is_local(change):
        bound, threat, near = NONE, "few pixels, any content", torch.ones_like(near)
    return {
        "threat": threat,
        "fooled": float((result.success & near).double().mean()),
        "eps": bound,
        "mean linf": float(length(change, "linf").mean()),
        "mean l2": float(length(change, "l2").mean()),
        "passes": passes[0] / len(some) - 1,  # the last look is the audit's
        "ms an image": 1000 * spent / len(some),
    }


def _is_local(change: Tensor) -> bool:
    """Whether changes keep to few pixels, as a patch does: then their norm says little."""
    touched = (change != 0).any(1).flatten(1).double().mean(1)
    moved = touched[touched > 0]
    return bool(moved.numel()) and float(moved.mean()) <= _LOCAL


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list[int]]:
    """Counts, in the first place of a list, images that go forward or backward through a model inside the block."""
    total = [0]

    def backward(gradient: Tensor) -> None:
        total[0] += len(gradient)

    def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del module, inputs
        total[0] += len(output)
        if output.requires_grad:
            output.register_hook(backward)

    handle = model.register_forward_hook(forward)
    try:
        yield total
    finally:
        handle.remove()


def _seeing(stage: Stage) -> ThreatView:
    """The bare classifier beside the score of a detector that is differentiable and quickly fitted."""
    detector = create("detector", "mahalanobis")
    fit(detector, stage)
    chain = DefendedClassifier(stage.model, detector=detector, policy="none")
    return detector_view(chain.calibrate(stage.parts["calibrate"], 0.05, seed=stage.seed))


def with_gradients(call: Callable[[], Any]) -> Any:
    """What a call returns, gradients on."""
    with torch.enable_grad():
        return call()


def conditions(stage: Stage, rows: Sequence[Row]) -> list[str]:
    """What must stand under the table of attacks."""
    norm, eps, some = stage.budget.norm, stage.budget.eps, len(stage.readable)
    bounds = {row.figures["eps"] for row in rows if row.figures}
    lines = [
        f"fooled: share of the same {some} test images, all read correctly by the bare small_cnn, on which the attack "
        f"succeeds within {norm} {eps:.6g}; static view, no defence; EoT 1; attacks with an eps take {ATTACK_STEPS} "
        "steps where they have steps and their configuration does not say otherwise",
    ]
    if COUNTED in bounds:
        lines.append(
            f"eps counted: the attack promises none and seeks a small change, in {norm} where it can; a success counts "
            "where that change lies within eps"
        )
    if NONE in bounds:
        lines.append("few pixels, any content: a patch, whatever its norm; every success counts")
    if any("must see" in str(row.figures.get("threat")) for row in rows):
        lines.append(
            "must see ...: the attack also hides from a detector, which costs it success; the score is that of "
            "mahalanobis"
        )
    return [
        *lines,
        "passes: images forward and backward through the classifier, for each image attacked; looks at features alone "
        "are not counted",
        "linf and l2: mean size of all changes in [0, 1] units; a result that broke its eps would stand without "
        "figures; rows of one threat are comparable, rows of two are not",
    ]
