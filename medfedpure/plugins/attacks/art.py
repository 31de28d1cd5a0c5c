"""The bridge to the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv 1807.01069).

ART works on numpy arrays and draws from global random generators: the bridge converts, seeds them
under a lock, and restores them.
"""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from art.attacks import EvasionAttack, evasion
from art.estimators.classification import PyTorchClassifier
from art.estimators.classification.classifier import ClassGradientsMixin
from art.estimators.estimator import LossGradientsMixin
from torch import Tensor, nn

from medfedpure.core.attack import Attack, Budget, ThreatView, length, project, without_parameter_gradients
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import Uses, Watch, verdicts
from medfedpure.plugins.attacks.gradient import surviving
from medfedpure.plugins.foreign import seeded_globals

MASKED = frozenset(
    {
        "BasicIterativeMethod",
        "FastGradientMethod",
        "HopSkipJump",
        "MomentumIterativeMethod",
        "ProjectedGradientDescent",
    }
)
"""ART's classes that keep to a mask for each image; others take one and start outside it, or read it otherwise."""
MISAIMED: Mapping[str, str] = {
    "AutoAttack": "reads the labels as those to leave, also where it aims",
    "CarliniLInfMethod": "accepts whatever is not the target",
}
"""ART's classes that take `targeted` and do not reach the target."""
BY_VERDICTS = frozenset({"BoundaryAttack", "GeoDA", "HopSkipJump", "SignOPTAttack"})
"""ART's classes that ask for the largest logit alone."""
ROUNDING = 1e-3
"""The share of a budget that may be float error; what oversteps by more is left for the audit to refuse."""
PIXEL_ROUNDING = 1e-6


def to_art(module: nn.Module, *, input_shape: tuple[int, int, int], num_classes: int) -> PyTorchClassifier:
    """Any module from images in [0, 1] to logits, a whole defence too, as ART's own classifier.

    Args:
        module: from `(N, C, H, W)` to `(N, K)`; it is lent, not copied.
        input_shape: `(C, H, W)`.
        num_classes: K.
    """
    weights = next((part for part in module.parameters() if part.is_floating_point()), torch.empty(0))
    return _estimator(PyTorchClassifier, module, input_shape, num_classes, SurvivingCrossEntropy(), like=weights)


def _estimator(
    kind: type[PyTorchClassifier],
    module: nn.Module,
    input_shape: tuple[int, ...],
    classes: int,
    loss: nn.CrossEntropyLoss,
    *,
    like: Tensor,
) -> PyTorchClassifier:
    return kind(
        _InOnePrecision(module, like.dtype),
        loss=loss,
        input_shape=tuple(input_shape),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if like.is_cuda else "cpu",
    )


class SurvivingCrossEntropy(nn.CrossEntropyLoss):
    """Cross-entropy that ART may raise where it saturates too: see `surviving`."""

    def __init__(self, watch: Watch | None = None) -> None:
        super().__init__()
        self.watch = watch

    def forward(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Of logits `(N, K)` and classes `(N,)`, reduced as ART asks; probabilities `(N, K)` have no margin."""
        if wanted.ndim > 1:
            return super().forward(logits, wanted)
        values = surviving(logits, wanted, self.watch)
        return values if self.reduction == "none" else getattr(values, self.reduction)()


class _InOnePrecision(nn.Module):
    """Some of ART's attacks compute in float64 and hand that to the model, which refuses it."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(images.to(self.dtype))
        return logits


class ToldOnce(PyTorchClassifier):  # type: ignore[misc]
    """Answers from memory what was asked in the call before.

    ART's Square asks whether an image still resists, and at once again for its margin. Every square begins with a
    fresh question, so that one lucky answer of a noisy defence does not end the search.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._told: dict[bytes, np.ndarray] = {}

    def predict(self, x: np.ndarray, batch_size: int = 128, training_mode: bool = False, **options: Any) -> np.ndarray:
        """Logits `(N, K)` of `(N, C, H, W)`."""
        keys = [row.tobytes() for row in x]
        if len(keys) and all(key in self._told for key in keys):
            known, self._told = np.stack([self._told[key] for key in keys]), {}
            return known
        answers: np.ndarray = super().predict(x, batch_size=batch_size, training_mode=training_mode, **options)
        self._told = dict(zip(keys, answers, strict=True))
        return answers


class ArtAttack(Attack):
    """Names an ART attack and its options; the bridge does the rest.

    Attributes:
        art_class: the name in art.attacks.evasion.
        asks: the class through which ART asks the model.
        spares_fooled: images that are read wrong already stay as they are, at distance 0. For attacks that
            look for the nearest other reading: of those images, that would be the right one again.
    """

    art_class: str
    asks: type[PyTorchClassifier] = PyTorchClassifier

    per_image_streams = False
    uses: Uses = "gradients"
    supports_targets = True
    spares_fooled = False

    def shown(self, view: ThreatView, logits: Tensor, wanted: Tensor) -> nn.Module:
        """What ART is given to attack; `logits` are those of the benign images, as far as they were asked for."""
        del logits, wanted
        return view

    @abstractmethod
    def art_options(self) -> dict[str, Any]:
        """Keyword arguments of the ART class; `norm` and `targeted` are added here."""
        raise NotImplementedError

    def art_parameters(self) -> frozenset[str]:
        """What the ART class takes beside the estimator.

        Raises:
            ConfigError: ART has no evasion attack of that name.
        """
        # Not ART's own attack_params: subclasses inherit names there that their constructors do not take.
        parameters = frozenset(inspect.signature(_art_type(self.art_class).__init__).parameters)
        return parameters - {"self", "estimator", "classifier"}

    def make(self, estimator: PyTorchClassifier, *, targeted: bool) -> EvasionAttack:
        """The ART attack on that model.

        Raises:
            InputError: it cannot be targeted.
            ConfigError: ART refuses the options.
        """
        takes = self.art_parameters()
        if targeted and (self.art_class in MISAIMED or "targeted" not in takes):
            why = MISAIMED.get(self.art_class, "has no such mode")
            raise InputError(f"ART's {self.art_class} cannot be targeted, it {why}: leave out the targets")
        added = {"norm": self.art_norm(), "targeted": targeted}
        fitting = {key: value for key, value in added.items() if key in takes}
        return build(self.art_class, estimator, **fitting, **self.art_options())

    def art_norm(self) -> float:
        """The configured norm as ART writes it."""
        return np.inf if getattr(self.config, "norm", "linf") == "linf" else 2

    def craft(
        self, estimator: PyTorchClassifier, images: Tensor, wanted: Tensor, mask: Tensor | None, *, targeted: bool
    ) -> Tensor:
        """Adversarial images `(N, C, H, W)` on the CPU; `wanted` is `(N,)`, the labels or the targets."""
        given = {} if mask is None else {"mask": mask.cpu().numpy()}
        one_hot = nn.functional.one_hot(wanted, estimator.nb_classes).float().cpu().numpy()
        attack = self.make(estimator, targeted=targeted)
        array = attack.generate(x=images.detach().float().cpu().numpy(), y=one_hot, **given)
        if not isinstance(array, np.ndarray):
            raise ConfigError(
                f"ART's {self.art_class} returns no images but a {type(array).__name__}: it cannot be used"
            )
        return torch.from_numpy(np.ascontiguousarray(array))

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
        """Adversarial images `(N, C, H, W)`; the true labels (or the targets) are handed to ART."""
        if not len(images):
            return images.clone()
        wanted = labels if targets is None else targets
        adversarial = images.clone()
        seed = derive_seed(streams.seed, "art")
        with seeded_globals(seed), without_parameter_gradients(view), warnings.catch_warnings():
            # ART's PGD with several starts hands tensors to numpy in a way that numpy deprecates.
            warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
            with torch.no_grad():
                logits = view(images if self.spares_fooled else images[:1])
            chosen = torch.ones(len(images), dtype=torch.bool, device=images.device)
            if self.spares_fooled:
                reached = verdicts(logits) == wanted
                chosen = reached if targets is None else ~reached
            if bool(chosen.any()):
                # What is aimed at saturates only when it is reached.
                loss = SurvivingCrossEntropy(view.watch) if targets is None else nn.CrossEntropyLoss()
                shape, classes = tuple(images.shape[1:]), logits.shape[1]
                shown = self.shown(view, logits, wanted)
                estimator = _estimator(self.asks, shown, shape, classes, loss, like=images)
                rows = None if mask is None else mask[chosen]
                found = self.craft(estimator, images[chosen], wanted[chosen], rows, targeted=targets is not None)
                adversarial[chosen] = without_rounding(found.to(images), images[chosen], self.budget(), rows)
        return adversarial


def uses_of(name: str) -> Uses:
    """What ART's class takes from a model's answers, as far as it says."""
    if name in BY_VERDICTS:
        return "verdicts"
    required = getattr(_art_type(name), "_estimator_requirements", ())
    slopes = (LossGradientsMixin, ClassGradientsMixin)
    return "gradients" if name == "AutoAttack" or any(item in slopes for item in required) else "logits"


def build(name: str, estimator: PyTorchClassifier, **options: Any) -> EvasionAttack:
    """An attack of ART by the name of its class.

    Raises:
        ConfigError: no such class, or ART refuses the options.
    """
    try:
        return _art_type(name)(estimator, **options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"ART refuses these options of {name}: {error}") from error


def largest_share(share: float, input_shape: tuple[int, int, int]) -> float:
    """The share of the image that a square may cover for ART's Square, which needs a pixel to spare on each side."""
    _, height, width = input_shape
    return min(share, (min(height, width) - 1) ** 2 / (height * width))


def without_rounding(adversarial: Tensor, images: Tensor, budget: Budget | None, mask: Tensor | None) -> Tensor:
    """What oversteps budget or mask by float error, set back; a real overstep stays for the audit to see."""
    if mask is not None:
        outside = torch.where(mask, 0.0, adversarial - images).abs().amax()
        if float(outside) <= PIXEL_ROUNDING:
            adversarial = torch.where(mask, adversarial, images)
    if budget is None:
        return adversarial
    spent = length(adversarial - images, budget.norm)
    rounded = ((spent > budget.eps) & (spent <= budget.eps * (1 + ROUNDING)))[:, None, None, None]
    return torch.where(rounded, project(adversarial, images, budget.norm, budget.eps), adversarial)


class _HopSkipJump(evasion.HopSkipJump):  # type: ignore[misc]
    """ART's, made to repeat and to end.

    ART draws its first images from a generator that nobody can seed. And it halves a step until the model is
    fooled, which never happens where rounding put the image itself on the wrong side of the boundary.
    """

    _most_halvings = 64

    def generate(self, *args: Any, **options: Any) -> np.ndarray:
        self._failures = 0
        adversarial: np.ndarray = super().generate(*args, **options)
        return adversarial

    def _init_sample(
        self,
        x: np.ndarray,
        y: int,
        y_p: int,
        init_pred: int,  # noqa: ARG002
        adv_init: np.ndarray,  # noqa: ARG002
        mask: np.ndarray | None,
        clip_min: float,
        clip_max: float,
    ) -> tuple[np.ndarray, int] | None:
        goal = y if self.targeted else y_p
        limits = {"clip_min": clip_min, "clip_max": clip_max}
        for _ in range(self.init_size):
            self._failures = 0
            drawn = np.random.uniform(clip_min, clip_max, size=x.shape).astype(x.dtype)
            if mask is not None:
                drawn = drawn * mask + x * (1 - mask)
            if self._adversarial_satisfactory(drawn[None], goal, clip_min, clip_max)[0]:
                return self._binary_search(drawn, x, goal, 2, threshold=0.001, **limits), goal
        return None

    def _adversarial_satisfactory(
        self, samples: np.ndarray, target: int, clip_min: float, clip_max: float
    ) -> np.ndarray:
        found: np.ndarray = super()._adversarial_satisfactory(samples, target, clip_min, clip_max)
        self._failures = 0 if len(found) > 1 or bool(found[0]) else self._failures + 1
        return np.ones_like(found) if self._failures > self._most_halvings else found


class _AdversarialPatch(evasion.AdversarialPatchPyTorch):  # type: ignore[misc]
    """ART's, made to raise the loss of its model, which survives saturation, in place of a cross-entropy of its own."""

    def _loss(self, images: Tensor, target: Any, mask: Tensor | None) -> Tensor:
        if not (isinstance(target, Tensor) and self.use_logits):
            found: Tensor = super()._loss(images, target, mask)
            return found
        predictions, wanted = self._predictions(images, mask, target)
        raised: Tensor = self.estimator.loss(predictions, wanted.argmax(1))
        return raised if self.targeted == (self._optimizer_string != "pgd") else -raised


REPAIRED: Mapping[str, type[EvasionAttack]] = {
    "AdversarialPatchPyTorch": _AdversarialPatch,
    "HopSkipJump": _HopSkipJump,
}
"""ART's classes that must be mended before they can be used, by the names that they have there."""


def _art_type(name: str) -> type[EvasionAttack]:
    found = REPAIRED.get(name, getattr(evasion, name, None))
    if not (isinstance(found, type) and issubclass(found, EvasionAttack)):
        raise ConfigError(f"ART has no evasion attack {name!r}: see the names in art.attacks.evasion")
    return found
