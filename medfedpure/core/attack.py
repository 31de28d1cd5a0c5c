"""Attacks: evasion of a classifier, audited against their own budget."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from medfedpure.core.checks import (
    check_image_layout,
    check_images,
    check_labels,
    check_logits,
    check_mask,
    check_scores,
    highest_class,
    mismatch,
)
from medfedpure.core.component import Component
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import AuditError, InputError, MedFedPureError, MissingRequirementError
from medfedpure.core.results import AttackResult
from medfedpure.core.rows.memory import MeanOfLooks, halved_once, made_within_memory
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import Uses, Watch, as_they_answer, fooled, modules_behind, verdicts_of
from medfedpure.core.verdict import without_parameter_gradients as without_parameter_gradients

Norm = Literal["linf", "l2"]


def length(change: Tensor, norm: Norm) -> Tensor:
    """Sizes `(N,)` of changes d `(N, C, H, W)`: max |d| in linf, sqrt(sum d^2) in l2."""
    flat = change.flatten(1)
    found: Tensor = flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)
    return found


def unit(gradient: Tensor) -> Tensor:
    """`(N, C, H, W)` at l2 length 1 for each image, g / ||g||; zero stays zero."""
    # A power of two brings each image's gradient near 1, without rounding: its squares neither vanish nor overflow.
    power = torch.frexp(length(gradient, "linf").float()).exponent.clamp(-120, 120)
    gradient = torch.ldexp(gradient, -power[:, None, None, None]).to(gradient)
    return gradient / length(gradient, "l2").clamp_min(1e-20)[:, None, None, None]


def step_along(gradient: Tensor, norm: Norm, size: float) -> Tensor:
    """Where a gradient g `(N, C, H, W)` rises most in one step: size sign(g) in linf, size g / ||g|| in l2."""
    along = gradient.sign() if norm == "linf" else unit(gradient)
    return size * along


def project(moved: Tensor, images: Tensor, norm: Norm, eps: float, mask: Tensor | None = None) -> Tensor:
    """The nearest images within ||moved - images|| <= eps, then within [0, 1]: x + d min(1, eps / ||d||) in l2.

    Args:
        moved: `(N, C, H, W)`, anywhere.
        images: `(N, C, H, W)` in [0, 1], the centres of the balls.
        norm: "linf" or "l2".
        eps: the radius.
        mask: `(N, 1, H, W)` bool; outside it the images themselves come back. None = everywhere.
    """
    if norm == "linf":
        moved = torch.minimum(torch.maximum(moved, images - eps), images + eps)
    else:
        change = moved - images
        share = (eps / length(change, norm).clamp_min(1e-20)).clamp(max=1)
        moved = images + change * share[:, None, None, None]
    moved = moved.clamp(0, 1)
    return moved if mask is None else torch.where(mask, moved, images)


Sight = tuple[Tensor, Tensor]
"""Logits `(N, K)` and scores `(N,)` of one look."""


class ThreatView(nn.Module):
    """Images `(N, C, H, W)` in [0, 1] to logits `(N, K)`, as an attacker sees them.

    Its parameters and modules are those of `predict`, where that is a module, and of `behind`. Logits in half precision
    are answered in float32.

    Attributes:
        predict: images to logits, a module or a function.
        behind: the modules that its functions run: as given by `of`, the owners of methods, and what functions close
            over; a function does not say more of what it runs.
        name: the gradient mode, to be printed beside every number: "static", "bpda", ...
        score: images to detector scores `(N,)`, or None where hidden.
        threshold: the calibrated threshold of that score, or None where hidden.
        features: images to classifier features `(N, F)`, or None where hidden.
        stochastic: whether two looks at one image may differ, so that an attacker should average (EoT).
        watch: sees every answer, while an attack runs.

    Raises:
        InputError: on construction, what cannot be called; on a look, an answer that is no logits, or images of another
            dtype or device than the weights.
    """

    watch: Watch | None = None

    def __init__(
        self,
        predict: Callable[[Tensor], Tensor],
        *,
        of: nn.Module | Sequence[nn.Module] = (),
        name: str = "static",
        score: Callable[[Tensor], Tensor] | None = None,
        threshold: float | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        sight: Callable[[Tensor], Sight] | None = None,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        if not callable(predict) or isinstance(predict, type):
            got = f"the class {predict.__name__}, not built" if isinstance(predict, type) else type(predict).__name__
            raise InputError(f"a view shows a module, or a function, from images to logits; got {got}")
        self.predict = predict
        given = [of] if isinstance(of, nn.Module) else list(of)
        functions = [part for part in (predict, score, features, sight) if not isinstance(part, nn.Module)]
        self.behind = nn.ModuleList(dict.fromkeys([*given, *modules_behind(*functions)]))
        self.name = name
        self.score = score
        self.threshold = threshold
        self.features = features
        self.sight = sight
        self.stochastic = stochastic

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)`."""
        return self._seen(self._ask(self.predict, images), images)

    def look(self, images: Tensor) -> Sight:
        """Logits `(N, K)` and scores `(N,)`, in one pass where the view can.

        Raises:
            MissingRequirementError: the score is hidden.
        """
        if self.sight is not None:
            logits, scores = self._ask(self.sight, images)
        elif self.score is None:
            raise MissingRequirementError(f"the view {self.name!r} hides the detector's score")
        else:
            logits, scores = self._ask(self.predict, images), self.score(images)
        check_scores(scores, len(images), f"the score of the view {self.name!r}")
        return self._seen(logits, images), scores

    def watched(self, watch: Watch) -> Self:
        """The same view, and the same modules, under watch."""
        found = copy.copy(self)
        found.watch = watch
        return found

    def _ask(self, function: Callable[[Tensor], Any], images: Tensor) -> Any:
        try:
            return function(images)
        except RuntimeError as error:
            reason = mismatch(self, images, error)
            if reason is None or isinstance(error, MedFedPureError):
                raise
            raise reason from error

    def _seen(self, logits: Tensor, images: Tensor) -> Tensor:
        check_logits(logits, len(images))
        if self.watch is not None:
            self.watch.see(logits, images)
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def provides(self) -> frozenset[str]:
        """What it shows beyond logits."""
        return frozenset(n for n in ("score", "threshold", "features") if getattr(self, n) is not None)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """A view never puts what it shows into training mode: a defence does not change with who looks at it."""
        return super().train(False)


@runtime_checkable
class Shortenable(Protocol):
    """A purifier that can lend a cheaper copy of itself to an attacker."""

    def shortened(self, steps: int) -> nn.Module:
        """A purifier with the same network that spends at most so many network evaluations."""


def as_view(module: nn.Module | Callable[[Tensor], Tensor]) -> ThreatView:
    """A module or a function from images `(N, C, H, W)` to logits `(N, K)` as a view of these; a view as it is."""
    return module if isinstance(module, ThreatView) else ThreatView(module, name="static")


def averaged(view: ThreatView, draws: int, *, chunk: int = 256) -> ThreatView:
    """The log of the mean of probabilities over `draws` looks (EoT), for attacks that take no looks of their own.

    Args:
        view: stochastic.
        draws: looks at each image.
        chunk: at most so many rows are looked at together; half as many from where a device's memory is out.
    """
    shown = {name: getattr(view, name) for name in ("score", "threshold", "features")}
    name = f"{view.name}, mean of {draws} draws"
    mean = MeanOfLooks(view, draws, chunk)
    return ThreatView(mean, of=view, name=name, stochastic=view.stochastic, **shown)


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
    """One method to write: `generate`; and `fit` where something is learned.

    An attack holds no model, so one instance serves many.

    Attributes:
        learns_from_batch: it takes its knowledge of benign images from the batch, so an image's result depends on
            the others.
        supports_mask: it can keep to pixels inside a mask.
        supports_targets: it can aim at classes.
        uses: what it takes from a model's answers: "gradients", their values, "logits", or "verdicts" alone.
    """

    kind: ClassVar[str] = "attack"
    learns_from_batch: bool = False
    supports_mask: bool = False
    supports_targets: bool = False
    uses: Uses = "logits"

    @property
    def requires(self) -> frozenset[str]:
        """Which of "score", "threshold", "features" it must see beyond logits."""
        return frozenset()

    def fit(self, data: ImageDataset, *, view: nn.Module | None = None, seed: int = 0) -> Self:
        """Learn before the first image is attacked; the default learns nothing.

        What is learned must serve every view that is attacked later, or say in its docstring which.

        Args:
            data: images and labels that the attacker has: of no image that is attacked.
            view: what the attacker can learn against, as `generate` will see it, or a plain module; None = nothing.
            seed: of initialization, order and noise.
        """
        del data, view, seed
        return self.mark_fitted()

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
        view: nn.Module | Callable[[Tensor], Tensor],
        images: Tensor,
        labels: Tensor,
        *,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        streams: Streams | None = None,
    ) -> AttackResult:
        """Checked and audited `generate`; a plain module, or a function, is wrapped as a view.

        What is attacked is read in eval mode, and is afterwards as it was: modes, buffers, gradients. It works inside
        `no_grad` and `inference_mode` too.

        Raises:
            InputError: bad images, labels, mask or targets; a model without logits for all classes, or whose answers
                are not finite.
            NotFittedError: before `fit`, where it is needed.
            MissingRequirementError: the view does not show what the attack requires, or has no gradient for one that
                uses gradients.
            AuditError: the result breaks its budget, leaves [0, 1], or is not finite.
        """
        check_images(images)
        check_labels(labels, len(images))
        self.check_fitted()
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
        check_mask(mask, images)
        if any(parameter.is_inference() for parameter in threat.parameters()):
            raise MissingRequirementError(
                "the classifier was made inside torch.inference_mode, which bars it from gradients for good: build or "
                "load it outside"
            )
        with as_they_answer(threat), torch.inference_mode(False), torch.enable_grad():
            images = _ordinary(images.detach(), images)
            labels = _ordinary(labels, images)
            targets, mask = (None if given is None else _ordinary(given, images) for given in (targets, mask))
            watch = Watch(self.uses, highest_class(labels, targets), threat.name)
            source = streams or Streams.for_batch(0, len(images))
            watched = threat.watched(watch)
            made = images
            if len(images):
                how: dict[str, Any] = {"mask": mask, "targets": targets, "streams": source}
                made = made_within_memory(
                    self, lambda attack: attack.generate(watched, images, labels, **how), len(images), watch.say
                )
            if not isinstance(made, Tensor):
                raise AuditError(f"{self.describe()} returned no tensor of images but {type(made).__name__}")
            adversarial = made.detach()
            distance = audit(images, adversarial, self.budget(), mask=mask, who=self.describe())
            read = partial(_read, watched, adversarial)
            success = fooled(halved_once(read, min(64, len(images)), watch.say), labels, targets)
            told = "; ".join((self.describe(), *watch.notes()))
            return AttackResult(adversarial, success, distance, told, source.ids, threat.name)


def audit(
    images: Tensor, adversarial: Tensor, budget: Budget | None, *, mask: Tensor | None = None, who: str = "the attack"
) -> Tensor:
    """Distances `(N,)` of adversarial images, after making sure that they may count.

    Raises:
        AuditError: another shape, not finite, outside [0, 1], beyond eps, or changed outside the mask; what pixels of
            that dtype round to is no overspending.
    """
    check_image_layout(adversarial)
    if adversarial.shape != images.shape:
        raise AuditError(f"{who} returned shape {tuple(adversarial.shape)} for {tuple(images.shape)}")
    if not bool(adversarial.isfinite().all()):
        raise AuditError(f"{who} returned images that are not finite")
    if images.numel() and (float(adversarial.min()) < -1e-6 or float(adversarial.max()) > 1 + 1e-6):
        raise AuditError(f"{who} left [0, 1]: {float(adversarial.min()):.4g} to {float(adversarial.max()):.4g}")
    change = adversarial - images
    norm: Norm = "linf" if budget is None else budget.norm
    distance = length(change, norm)
    rounding = max(1e-6, torch.finfo(images.dtype).eps / 4)
    if budget is not None and len(images) and float(distance.max()) > budget.eps * (1 + 1e-5) + rounding:
        raise AuditError(f"{who} spent {float(distance.max()):.6g} of a {norm} budget of {budget.eps:.6g}")
    if mask is not None and bool((change * ~mask).any()):
        raise AuditError(f"{who} changed pixels outside its mask")
    return distance


def _read(view: ThreatView, images: Tensor, rows: int) -> Tensor:
    return verdicts_of(view, images, batch_size=rows)


def _ordinary(tensor: Tensor, images: Tensor) -> Tensor:
    """On the images' device, and such that a gradient may pass, wherever it was made."""
    return tensor.to(images.device).clone() if tensor.is_inference() else tensor.to(images.device)


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
