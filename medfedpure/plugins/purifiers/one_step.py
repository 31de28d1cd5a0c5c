"""A diffusion purifier distilled into one evaluation that adds no noise.

The teacher T is `ddpm`'s purification: noise to depth t*, and a few steps back. The student is a copy of its network,

    S(x, t) = x - sqrt(1 - a_t) / sqrt(a_t) eps_S( sqrt(a_t) x, t ),   clipped to [-1, 1]

the estimate of x0 (formula (15) of Ho et al. 2020, arXiv 2006.11239) as if the image held the noise of depth t, and
none is added. It learns what the teacher answers on the mean over its noise, also where the image was moved against it:

    min_S  E_x,t  || S(x + d, t) - T(x, t) ||^2,    d = argmax over |d| <= eps of  || S(x + d, t) - T(x, t) ||^2

Regression on a teacher's end points is the plainest of distillations (Luhman and Luhman 2021, "Knowledge distillation
in iterative generative models for improved sampling speed", arXiv 2101.02388); the search for d makes it a purifier
that was trained against attackers, as those of AToP (Lin et al. 2024, arXiv 2401.16352) and ADDT (Liu et al. 2024,
arXiv 2404.14309) are. It needs neither labels nor a classifier. `harden` goes on with both, after AToP:

    min  E  CE( f(S(x + d)), y ) + keep || S(x + d) - T(x + d) ||^2,    d from PGD on CE( f(S(x + d)), y )

and `guide` by what the classifier reads of images that were attacked without the purifier (`guidance`).

**What it is worth.** It is deterministic and has a plain gradient, so an attacker who knows it needs no EoT, and a
judge can believe what he finds. It also has nothing that such an attacker could not differentiate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.acceleration.compiled import prepared
from medfedpure.core.attack import project, step_along
from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import InputError
from medfedpure.core.results import Purification, State, device_of
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.task import Task, TrainingLog, WrappedTask
from medfedpure.core.verdict import as_they_answer, without_parameter_gradients
from medfedpure.models.diffusion import predicted_noise
from medfedpure.plugins.purifiers.ddpm import DDPM, DDPMConfig
from medfedpure.plugins.purifiers.diffusion_base import DiffusionPurifier
from medfedpure.plugins.purifiers.guidance import GuidedTask
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train


class DistillationConfig(Config):
    """How the student learns from the teacher."""

    eps: float = Field(8 / 255, ge=0, le=1, description="largest perturbation, in linf, that is searched for; 0 = none")
    search: int = Field(2, ge=1, description="steps of the search for it")
    training: TrainingConfig = Field(
        TrainingConfig(steps=1000, batch_size=32, learning_rate=5e-4, ema=0.99),
        description="its training, after the teacher's",
    )


class OneStepConfig(DDPMConfig):
    """The teacher, as `ddpm` has it, and how it is distilled."""

    distillation: DistillationConfig = Field(
        default_factory=DistillationConfig, description="how the student learns from the teacher"
    )


class OneStep(DiffusionPurifier):
    """One network evaluation, no noise, t* = t_min + strength (t_max - t_min); detectors may borrow the teacher."""

    Config = OneStepConfig
    deterministic = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.student: nn.Module | None = None

    # -- training ------------------------------------------------------------------------------

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained teacher; `finish_fit` distils it."""
        self._hold(network, image_shape)
        self.student = None
        return self

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train the teacher on benign images, then distil it; both go on from `context.checkpoint`."""
        super().fit(data, context=context, seed=seed)
        return self.finish_fit(data, context=context, seed=seed)

    def finish_fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Distil the teacher on benign images; labels are not looked at."""
        assert self.network is not None
        checkpoint = None if context is None else context.checkpoint
        student = self.make_network((self.channels, 1, 1), seed).to(device_of(self.network))
        student.load_state_dict(self.network.state_dict())
        train(
            student,
            DistillationTask(self),
            data,
            self.config.distillation.training,
            seed=derive_seed(seed, "distillation"),
            description="distillation",
            checkpoint=None if checkpoint is None else checkpoint.with_name(f"{checkpoint.name}_student"),
        )
        self.student = student.eval()
        return self.mark_fitted()

    def teacher(self) -> DDPM:
        """The purifier that it was distilled from, sharing its network."""
        assert self.network is not None
        settings = self.config.model_dump(exclude={"distillation"})
        return DDPM(DDPMConfig.parse(settings)).adopt(self.network, (self.channels, 1, 1))

    def harden(
        self,
        data: ImageDataset,
        classifier: nn.Module,
        settings: AdversarialTraining,
        training: TrainingConfig,
        *,
        keep: float = 1.0,
        with_classifier: bool = False,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> TrainingLog:
        """Train the student on, through the classifier and against an attacker who knows both, at strength 1.

        Calibrate, and judge, after it.

        Args:
            data: labelled benign images, of no part that is tested.
            classifier: images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; stays as it is, unless
                `with_classifier` is set.
            settings: share and attack; the attacker differentiates purifier and classifier.
            training: the budget.
            keep: weight of the distance from what the teacher makes of the same images, in units of [-1, 1] squared.
            with_classifier: whether the classifier learns too; it is then changed in place.
            augmentation: of the training images; none by default.
            seed: of the order and of all noise.

        Raises:
            InputError: `settings` attack no image, or `keep` is below 0.
            NotFittedError: it was not distilled.
        """
        self.check_fitted()
        if not settings.share or not keep >= 0:
            raise InputError(
                f"harden wants attacked images and keep from 0; got a share of {settings.share} and keep {keep}"
            )
        assert self.student is not None
        whole = _Whole(self.fully, self.student, classifier, learns=with_classifier)
        plain = ClassificationTask(augmentation or Augmentation(flip=False, shift=0))
        task = AdversarialTask(_Kept(plain, whole, self.teacher(), keep), settings, plain)
        learning = [*self.student.parameters(), *(classifier.parameters() if with_classifier else ())]
        seed = derive_seed(seed, "harden")
        with nullcontext() if with_classifier else _unchanged(classifier):
            log = train(whole, task, data, training, seed=seed, description="hardening", parameters=learning)
        self.student.eval()
        return log

    def guide(
        self,
        data: ImageDataset,
        classifier: nn.Module,
        settings: AdversarialTraining,
        training: TrainingConfig,
        *,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> TrainingLog:
        """Train the student on to let a classifier read attacked images as it reads benign ones, at strength 1.

        Against an attacker who ignores the purifier, and nobody else: see `guidance`. Calibrate, and judge, after it.

        Args:
            data: labelled benign images, of no part that is tested.
            classifier: images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; answers in eval mode, and stays as it is.
            settings: share of attacked images, and the attack on the bare classifier.
            training: the budget.
            augmentation: of the training images; none by default.
            seed: of the order and of all noise.

        Raises:
            InputError: `settings` attack no image.
            NotFittedError: it was not distilled.
        """
        self.check_fitted()
        if not settings.share:
            raise InputError(f"guide wants attacked images: a share above 0; got {settings.share}")
        assert self.student is not None
        plain = ClassificationTask(augmentation or Augmentation(flip=False, shift=0))
        task = GuidedTask(plain, classifier, self.fully, settings)
        seed = derive_seed(seed, "guide")
        with _unchanged(classifier):
            log = train(self.student, task, data, training, seed=seed, description="guidance")
        self.student.eval()
        return log

    # -- state ---------------------------------------------------------------------------------

    def fitted_state(self) -> State:
        """The tensors of teacher and student."""
        assert self.network is not None
        assert self.student is not None
        parts = {"teacher": self.network, "student": self.student}
        tensors = {f"{who}.{key}": value for who, net in parts.items() for key, value in State.of(net).tensors.items()}
        return State({"channels": self.channels}, tensors)

    def restore(self, state: State) -> None:
        """Rebuild both networks and load them strictly."""
        shape = (int(state.values["channels"]), 1, 1)
        networks = []
        for who in ("teacher", "student"):
            head = f"{who}."
            own = {key.removeprefix(head): value for key, value in state.tensors.items() if key.startswith(head)}
            network = self.make_network(shape, seed=0)
            load_strictly(network, own, f"the {who} of {self.name!r}")
            networks.append(network.eval())
        self.adopt(networks[0], shape).student = networks[1]
        self.mark_fitted()

    # -- purification --------------------------------------------------------------------------

    def depth_of(self, strength: Tensor) -> Tensor:
        """t* `(N,)` of strengths `(N,)`."""
        depth: Tensor = self.config.t_min + strength * (self.config.t_max - self.config.t_min)
        return depth

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)` cleaned in one evaluation each; nothing is drawn."""
        assert self.student is not None
        timestep = self.depth_of(strength)
        return Purification(self.once(self.student, images, timestep), (timestep > 0).long(), timestep)

    def fully(self, student: nn.Module, images: Tensor) -> Tensor:
        """S of images `(N, C, H, W)` in [0, 1] at strength 1, in [0, 1]."""
        return self.once(student, images, images.new_full((len(images),), self.config.t_max))

    def once(self, student: nn.Module, images: Tensor, timestep: Tensor) -> Tensor:
        """S of images `(N, C, H, W)` in [0, 1] at depths `(N,)`, in [0, 1]; t <= 0 stays."""
        scaled = self._scaled_for(student, images)
        signal, _ = self.diffusion.coefficients(timestep)
        given = scaled * signal.to(scaled.dtype)[:, None, None, None]
        predict = prepared(predicted_noise, student, what="the noise predictor")
        clean = self.diffusion.predict_clean(given, predict(given, timestep.to(scaled.dtype)), timestep)
        cleaned = ((clean + 1) / 2).clamp(0, 1).to(images.dtype)
        return torch.where((timestep > 0)[:, None, None, None], cleaned, images)


class DistillationTask(Task):
    """The loss of the module's first formula; the teacher answers once for every batch."""

    def __init__(self, purifier: OneStep) -> None:
        self.purifier, self.teacher = purifier, purifier.teacher()

    def recipe(self) -> dict[str, Any]:
        """Teacher, its depths and its way back, and the search."""
        config = self.purifier.config.model_dump(mode="json", include={"schedule", "sampling", "t_min", "t_max"})
        search = self.purifier.config.distillation
        return {**super().recipe(), **config, "eps": search.eps, "search": search.search}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """Mean squared error in units of [-1, 1], at depths drawn between t_min and t_max."""
        settings, images = self.purifier.config.distillation, batch.images
        strength = streams.uniform((1,), stage="strength", like=images).squeeze(1)
        timestep = self.purifier.depth_of(strength)
        with torch.no_grad():
            wanted = self.teacher.purify(images, strength, streams=streams.child("teacher")).images

        def error(given: Tensor) -> Tensor:
            return (2 * (self.purifier.once(model, given, timestep) - wanted)).square().flatten(1).mean(1)

        moved = images
        if settings.eps:
            start = 2 * streams.uniform(images.shape[1:], stage="search", like=images) - 1
            moved = project(images + settings.eps * start, images, "linf", settings.eps)
            with torch.enable_grad():
                for _ in range(settings.search):
                    moved = moved.detach().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(error(moved).sum(), moved)
                    along = moved.detach() + step_along(gradient, "linf", 2 * settings.eps / settings.search)
                    moved = project(along, images, "linf", settings.eps)
        return error(moved.detach()).mean()


@contextmanager
def _unchanged(classifier: nn.Module) -> Iterator[None]:
    """Inside the block it answers in eval mode, and no gradient of its weights is computed."""
    with as_they_answer(classifier), without_parameter_gradients(classifier):
        yield


class _Whole(nn.Module):
    """Classifier after purifier, at strength 1; the classifier stays in eval mode unless it learns.

    Attributes:
        made: what the purifier made of the last images.
    """

    def __init__(
        self,
        purified: Callable[[nn.Module, Tensor], Tensor],
        student: nn.Module,
        classifier: nn.Module,
        *,
        learns: bool,
    ) -> None:
        super().__init__()
        self.purified, self.student, self.classifier, self.learns = purified, student, classifier, learns
        self.made = torch.empty(0)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.classifier.train(mode and self.learns)
        return self

    def forward(self, images: Tensor) -> Tensor:
        self.made = self.purified(self.student, images)
        logits: Tensor = self.classifier(self.made)
        return logits


class _Kept(WrappedTask):
    """The classifier's loss, and the distance of what is purified from what the teacher makes of it."""

    def __init__(self, inner: ClassificationTask, whole: _Whole, teacher: DDPM, weight: float) -> None:
        super().__init__(inner)
        self.whole, self.teacher, self.weight = whole, teacher, weight

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        found = self.inner.loss(model, batch, streams)
        if not self.weight:
            return found
        made = self.whole.made[: len(batch.images)]  # TRADES lets others pass with them, after them
        with torch.no_grad():
            strength = torch.ones(len(batch.images), device=batch.images.device)
            wanted = self.teacher.purify(batch.images, strength, streams=streams.child("teacher")).images
        return found + self.weight * functional.mse_loss(2 * made, 2 * wanted)
