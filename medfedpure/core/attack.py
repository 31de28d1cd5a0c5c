"""Attacks: evasion of a classifier, audited against their own budget."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_image_layout, check_images, check_labels
from medfedpure.core.component import Component
from medfedpure.core.errors import AuditError, InputError, MissingRequirementError
from medfedpure.core.results import AttackResult
from medfedpure.core.streams import Streams

Norm = Literal["linf", "l2"]
VERDICTS = 64
"""Attacked images that are read at a time, to see which have fallen."""


Sight = tuple[Tensor, Tensor]
"""Logits `(N, K)` and scores `(N,)` of one look."""


class ThreatView(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to logits `(N, K)`, as an attacker sees them.

    Attributes:
        name: the gradient mode, to be printed beside every number: "static", "bpda", ...
        score: images to detector scores `(N,)`, or None where hidden.
        threshold: the calibrated threshold of that score, or None where hidden.
        features: images to classifier features `(N, F)`, or None where hidden.
        stochastic: whether two looks at one image may differ, so that an attacker should average (EoT).
    """

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        *,
        name: str = "static",
        score: Callable[[Tensor], Tensor] | None = None,
        threshold: float | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        sight: Callable[[Tensor], Sight] | None = None,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        self.predict = predict
        self.name = name
        self.score = score
        self.threshold = threshold
        self.features = features
        self.sight = sight
        self.stochastic = stochastic

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)`."""
        return self.predict(images)

    def look(self, images: Tensor) -> Sight:
        """Logits `(N, K)` and scores `(N,)`, in one pass where the view can.

        Raises:
            MissingRequirementError: the score is hidden.
        """
        if self.sight is not None:
            return self.sight(images)
        if self.score is None:
            raise MissingRequirementError(f"the view {self.name!r} hides the detector's score")
        return self.predict(images), self.score(images)

    def provides(self) -> frozenset[str]:
        """What it shows beyond logits."""
        return frozenset(n for n in ("score", "threshold", "features") if getattr(self, n) is not None)


@runtime_checkable
class Shortenable(Protocol):
    """A purifier that can lend a cheaper copy of itself to an attacker."""

    def shortened(self, steps: int) -> nn.Module:
        """A purifier with the same network that spends at most so many network evaluations."""


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for parameters inside the block: an attacker needs those of images only."""
    active = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in active:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in active:
            parameter.requires_grad_(True)


def as_view(module: nn.Module) -> ThreatView:
    """A plain module as a view that shows logits only; a view is returned as it is."""
    return module if isinstance(module, ThreatView) else ThreatView(module, name="static")


def averaged(view: ThreatView, draws: int, *, chunk: int = 256) -> ThreatView:
    """The log of the mean of probabilities over `draws` looks (EoT), for attacks that take no looks of their own.

    Args:
        view: stochastic.
        draws: looks at each image.
        chunk: at most so many rows are looked at together.
    """

    def predict(images: Tensor) -> Tensor:
        together = max(1, min(draws, chunk // max(len(images), 1)))
        total, left = 0.0, draws
        while left:
            now = min(together, left)
            looked = view(images.repeat_interleave(now, 0)).softmax(1)
            total = total + looked.unflatten(0, (-1, now)).sum(1)
            left -= now
        assert isinstance(total, Tensor)
        return (total / draws).clamp_min(torch.finfo(total.dtype).tiny).log()

    shown = {name: getattr(view, name) for name in ("score", "threshold", "features")}
    return ThreatView(predict, name=f"{view.name}, mean of {draws} draws", stochastic=view.stochastic, **shown)


@dataclass(frozen=True)
class Budget:
    """How far an attack may go: ||x_adv - x|| <= eps.

    Attributes:
        norm: "linf" or "l2".
        eps: in [0, 1] units of a pixel.
    """

    norm: Norm
    eps: float


class Attack(Component):
    """One method to write: `generate`. An attack holds no model, so one instance serves many."""

    kind: ClassVar[str] = "attack"
    learns_from_batch: ClassVar[bool] = False
    """It takes its knowledge of benign images from the batch, so an image's result depends on the others."""
    supports_mask: ClassVar[bool] = False
    supports_targets: ClassVar[bool] = False

    @property
    def requires(self) -> frozenset[str]:
        """Which of "score", "threshold", "features" it must see beyond logits."""
        return frozenset()

    def budget(self) -> Budget | None:
        """The perturbation size it promises to respect; None for minimal-distance attacks."""
        eps = getattr(self.config, "eps", None)
        return None if eps is None else Budget(getattr(self.config, "norm", "linf"), float(eps))

    def describe(self) -> str:
        """Settings as they must stand beside any robust accuracy."""
        budget = self.budget()
        stated = {} if budget is None else {"norm": budget.norm, "eps": budget.eps}
        values = {**stated, **self.config.model_dump()}
        settings = ", ".join(f"{key} {_short(value)}" for key, value in values.items() if value is not None)
        return f"{self.name}: {settings}" if settings else self.name

    @abstractmethod
    def generate(
        self,
        view: ThreatView,
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        streams: Streams,
    ) -> Tensor:
        """Adversarial images `(N, C, H, W)` in [0, 1].

        Args:
            view: what the attacker sees: images to logits, and score, threshold, features where given.
            images: benign images in [0, 1].
            labels: `(N,)` int64, the true classes.
            mask: `(N, 1, H, W)` bool, where the attacker may change pixels; None = everywhere.
            targets: `(N,)` int64, classes to reach; None = any wrong class.
            streams: the source of all randomness.
        """
        raise NotImplementedError

    def __call__(
        self,
        view: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        streams: Streams | None = None,
    ) -> AttackResult:
        """Checked and audited `generate`; a plain module is wrapped as a view.

        Raises:
            InputError: bad images, labels, mask or targets.
            MissingRequirementError: the view does not show what the attack requires.
            AuditError: the result breaks its budget, leaves [0, 1], or is not finite.
        """
        check_images(images)
        check_labels(labels, len(images))
        threat = as_view(view)
        missing = self.requires - threat.provides()
        if missing:
            raise MissingRequirementError(
                f"the attack {self.name!r} must see {', '.join(sorted(missing))}, which the view {threat.name!r} hides"
            )
        for given, supported, what in ((mask, self.supports_mask, "mask"), (targets, self.supports_targets, "targets")):
            if given is not None and not supported:
                raise InputError(f"the attack {self.name!r} does not support {what}")
        if targets is not None:
            check_labels(targets, len(images))
        wanted = (len(images), 1, *images.shape[2:])
        if mask is not None and (mask.dtype != torch.bool or mask.shape != wanted):
            raise InputError(f"mask must be bool of shape {wanted}; got {mask.dtype} of shape {tuple(mask.shape)}")
        source = streams or Streams.for_batch(0, len(images))
        adversarial = self.generate(threat, images, labels, mask=mask, targets=targets, streams=source).detach()
        distance = audit(images, adversarial, self.budget(), mask=mask, who=self.describe())
        with torch.no_grad():
            verdict = torch.cat([threat(part).argmax(1) for part in adversarial.split(VERDICTS)])
        success = verdict == targets if targets is not None else verdict != labels
        return AttackResult(adversarial, success, distance, self.describe())


def audit(
    images: Tensor, adversarial: Tensor, budget: Budget | None, *, mask: Tensor | None = None, who: str = "the attack"
) -> Tensor:
    """Distances `(N,)` of adversarial images, after making sure that they may count.

    Raises:
        AuditError: another shape, not finite, outside [0, 1], beyond eps, or changed outside the mask.
    """
    check_image_layout(adversarial)
    if adversarial.shape != images.shape:
        raise AuditError(f"{who} returned shape {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if not bool(adversarial.isfinite().all()):
        raise AuditError(f"{who} returned images that are not finite")
    if images.numel() and (float(adversarial.min()) < -1e-6 or float(adversarial.max()) > 1 + 1e-6):
        raise AuditError(f"{who} left [0, 1]: {float(adversarial.min()):.4g} to {float(adversarial.max()):.4g}")
    change = (adversarial - images).flatten(1)
    norm = "linf" if budget is None else budget.norm
    distance = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    if budget is not None and len(images) and float(distance.max()) > budget.eps * (1 + 1e-5) + 1e-6:
        raise AuditError(f"{who} spent {float(distance.max()):.6g} of a {norm} budget of {budget.eps:.6g}")
    if mask is not None and bool((change.reshape(images.shape) * ~mask).any()):
        raise AuditError(f"{who} changed pixels outside its mask")
    return distance


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
