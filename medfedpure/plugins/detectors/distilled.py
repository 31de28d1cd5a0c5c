"""What an expensive detector would say of an image, guessed by a small network.

    score(x) = h(x, phi(x)),   min_h  E_x  huber( h(x, phi(x)) - asinh( (s(x) - mean) / std ) )

s is the teacher, its mean and deviation those of benign images, and phi what the classifier has computed of the image:
the features that its head receives, or its log-probabilities. x is a benign image; or the same after projected gradient
descent against the verdict that the classifier gives it (Madry et al. 2018, arXiv 1706.06083), once at every eps; or
with uniform noise. So no labels are needed. To learn from another model's answers is Hinton et al. 2015's (arXiv
1503.02531); a small network beside a classifier, trained on attacks, is the detector of Metzen et al. 2017 (arXiv
1702.04267). Such detectors fall to who knows them (Carlini and Wagner 2017, arXiv 1705.07263).

The teacher is asked while it is fitted, and never again: the fitted detector needs no diffusion model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.config import Config, Eps
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import Detector, FitContext, ScoreContext, check_requirements
from medfedpure.core.errors import DataError, InputError, MissingRequirementError
from medfedpure.core.progress import track
from medfedpure.core.results import State
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.core.task import Task
from medfedpure.core.verdict import verdicts_of
from medfedpure.plugins.detectors.parts import PartConfig, made, spelled, upgraded
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.crafting import perturb
from medfedpure.training.loop import train

_TOGETHER = 32
"""Images that are attacked at a time."""
_VERDICT = ClassificationTask(Augmentation(flip=False, shift=0))
"""What attacks raise the loss of."""


class DistilledConfig(Config):
    """Who teaches, what the small network looks at, and what it is shown."""

    teacher: PartConfig = Field(PartConfig(plugin="compose"), description="whose score is learned")
    sees: tuple[Literal["pixels", "features", "logits"], ...] = Field(
        ("pixels", "logits"),
        min_length=1,
        description="the image; the classifier's features, which cost a pass; its log-probabilities, which a chain has",
    )
    width: int = Field(32, ge=4, le=1024, description="channels of its layers, and hidden units of its head")
    eps: tuple[Eps, ...] = Field(
        (0.008, 0.015, 8 / 255), min_length=1, description="linf budgets of the attacks that it is shown, each once"
    )
    steps: int = Field(5, ge=1, description="steps of these attacks, each 2.5 eps / steps long")
    images: int = Field(800, ge=2, description="so many at most are attacked and shown, of as many groups as can be")
    training: TrainingConfig = Field(
        TrainingConfig(steps=1500, batch_size=64, learning_rate=2e-3, ema=0.99),
        description="of the small network",
    )


class Distilled(Detector):
    """Fitted on benign images, attacked ones and noisy ones; a score costs the small network, and what it `sees`."""

    Config = DistilledConfig
    deterministic = True
    differentiable = True
    needs_fit = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        teacher = made(self.config.teacher)
        self.config = self.config.model_copy(update={"teacher": spelled(self.config.teacher, teacher)})
        self._teaching = teacher.requires | {"classifier"}
        self.student: Student | None = None

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """The teacher's configuration is brought up to date by its own plugin."""
        return {**config, "teacher": upgraded(config["teacher"], format)} if "teacher" in config else config

    @property
    def requires(self) -> frozenset[str]:
        """Before `fit` also what the teacher requires, and the classifier, which is attacked."""
        seen = {"features": "features", "logits": "classifier"}
        own = frozenset(seen[name] for name in self.config.sees if name in seen)
        return own if self._fitted else own | self._teaching

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Fit the teacher, ask it about images as they are, attacked and noisy, and train the small network on that.

        Raises:
            DataError: the teacher's scores of benign images do not vary.
        """
        context, teacher = context or FitContext(), made(self.config.teacher)
        for part in (self, teacher):
            check_requirements(part, context)
        if context.classifier is None:
            raise MissingRequirementError("distilled attacks the classifier while it is fitted, and here is none")
        folder, teacher = context.checkpoint, teacher.to(context.device)
        lesson = None if folder is None else folder / "teacher"
        teacher.fit(data, context=replace(context, checkpoint=lesson), seed=derive_seed(seed, "teacher"))
        data = _some(data, self.config.images, seed)
        shown = self._shown(teacher, data, context, seed)
        student = self._student(data.image_shape[0], shown.rows.shape[2], seed).to(context.device)
        student.fit_scale(shown.rows[:, 0])
        train(
            student,
            _Imitation(shown, self.config.model_dump(mode="json", exclude={"training"})),
            data,
            self.config.training,
            seed=derive_seed(seed, "student"),
            description="distillation",
            checkpoint=None if folder is None else folder / "student",
        )
        return self._adopt(student)

    def _adopt(self, student: Student) -> Self:
        self.student = student.eval().requires_grad_(False)
        return self.mark_fitted()

    @torch.no_grad()
    def _shown(self, teacher: Detector, data: ImageDataset, context: FitContext, seed: int) -> _Shown:
        """Every image as it is, attacked at every eps, and noisy, with what the teacher says of it."""
        images, rows, scores = [], [], []
        for batch in track(data.batches(_TOGETHER), "images to imitate on", -(-len(data) // _TOGETHER)):
            batch = batch.to(context.device)
            variants = torch.stack([batch.images, *self._varied(batch, context, seed)], 1)
            for place, found in enumerate(variants.unbind(1)):
                streams = Streams(derive_seed(seed, "lesson", place), batch.ids)
                scores.append(teacher.score(found, context=context, streams=streams).double())
                rows.append(self._row(found, context))
            images.append(variants if "pixels" in self.config.sees else variants[..., :0, :0])
        count = len(self.config.eps) + 2
        said, seen = _by_image(scores, count), _by_image(rows, count)
        centre, spread = said[:, 0].mean(), said[:, 0].std()
        if not float(spread) > 0:
            raise DataError(
                f"the scores of {self.config.teacher.plugin} do not vary over {len(data)} images: bring more of them"
            )
        return _Shown(torch.cat(images), seen, torch.asinh((said - centre) / spread).float())

    def _varied(self, batch: Batch, context: FitContext, seed: int) -> list[Tensor]:
        """Images `(N, C, H, W)` attacked at every eps, and with noise of up to the largest."""
        classifier, found = context.classifier, []
        assert classifier is not None
        said = replace(batch, labels=verdicts_of(classifier, batch.images))
        for place, eps in enumerate(self.config.eps):
            attack = AdversarialTraining(share=1, eps=eps, step=None, steps=self.config.steps)
            streams = Streams(derive_seed(seed, "attack", place), batch.ids)
            found.append(perturb(classifier, said, streams, attack, _VERDICT))
        streams = Streams(derive_seed(seed, "noise"), batch.ids)
        size = max(self.config.eps) * streams.uniform((1, 1, 1), stage="size", like=batch.images)
        noise = 2 * streams.uniform(batch.images.shape[1:], stage="noise", like=batch.images) - 1
        return [*found, (batch.images + size * noise).clamp(0, 1)]

    def _student(self, channels: int, row: int, seed: int) -> Student:
        with isolated_rng(derive_seed(seed, "weights")):
            return Student(channels if "pixels" in self.config.sees else 0, row, self.config.width)

    def _row(self, images: Tensor, context: ScoreContext) -> Tensor:
        """What the classifier has computed `(N, F)`, of which nothing may be looked at."""
        found = [images.flatten(1)[:, :0]]  # counted in no Python number, so that it can be exported
        if "features" in self.config.sees:
            if context.features is None:
                raise MissingRequirementError("a distilled detector that sees features requires them of its classifier")
            found.append(context.features(images).to(images.dtype))
        if "logits" in self.config.sees:
            found.append(context.predict_logits(images).to(images.dtype).log_softmax(1))
        return torch.cat(found, 1)

    def fitted_state(self) -> State:
        """The small network's tensors and sizes; nothing of the teacher."""
        assert self.student is not None
        return State.of(self.student, channels=self.student.channels, row=self.student.row)

    def restore(self, state: State) -> None:
        """Rebuild the small network and load it strictly."""
        student = Student(int(state.values["channels"]), int(state.values["row"]), self.config.width)
        load_strictly(student, state.tensors, "the small network of 'distilled'")
        self._adopt(student)

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`: about asinh of the teacher's score in standard deviations of benign ones."""
        del streams
        student = self.student
        assert student is not None
        if student.channels not in (0, images.shape[1]):
            raise InputError(f"this detector was fitted on {student.channels} channels; got {tuple(images.shape)}")
        row = self._row(images, context)
        if row.shape[1] != student.row:
            raise InputError(
                f"this detector was fitted on {student.row} features and logits; the classifier gives {row.shape[1]}: "
                "fit it again beside this classifier"
            )
        weights = student.scale
        found: Tensor = student(images.to(weights.dtype), row.to(weights.dtype))
        return found.to(images.dtype)


class Student(nn.Module):
    """Log-energies of learned filters over blocks of what neighbours do not explain, two convolutions, and a head.

        e = log( mean over 4 x 4 pixels of (w * 32 (x - mean of the 3 x 3 around it))^2 + 1e-3 )

    An image's own low frequencies are a hundred times as large as a perturbation, and a network that is shown them
    learns them. Mean and maximum over space go into the head, beside the row.

    Args:
        channels: of the images that it looks at; 0 = at none.
        row: F, numbers beside the image.
        width: filters, channels of its layers, and hidden units.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, channels: int, row: int, width: int) -> None:
        super().__init__()
        self.channels, self.row = channels, row
        self.register_buffer("centre", torch.zeros(row))
        self.register_buffer("scale", torch.ones(row))
        self.filters: nn.Module | None = None
        if channels:
            self.filters = nn.Conv2d(channels, width, 5, padding=2, bias=False)
            self.body = nn.Sequential(
                nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()
            )
        self.head = nn.Sequential(
            nn.Linear(row + (2 * width if channels else 0), width), nn.SiLU(), nn.Linear(width, 1)
        )

    def fit_scale(self, rows: Tensor) -> None:
        """Standardize rows from now on as these `(N, F)` would be."""
        if self.row:
            self.centre.copy_(rows.mean(0))
            self.scale.copy_(rows.std(0).clamp_min(1e-6))

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """`(N,)` from images `(N, C, H, W)` in [0, 1] and rows `(N, F)`."""
        found = [(rows - self.centre) / self.scale]
        if self.filters is not None:
            around = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
            energy = self.filters(32 * (images - around)).square()
            blocks = functional.avg_pool2d(energy, min(4, *images.shape[2:]), ceil_mode=True, count_include_pad=False)
            maps = self.body((blocks + 1e-3).log() / 2 + 1)
            found += [maps.mean((2, 3)), maps.amax((2, 3))]
        scores: Tensor = self.head(torch.cat(found, 1)).squeeze(1)
        return scores


@dataclass(frozen=True)
class _Shown:
    """Variants of every image, the first as it is: `(N, V, C, H, W)`, rows `(N, V, F)`, and what is wanted `(N, V)`."""

    images: Tensor
    rows: Tensor
    wanted: Tensor


def _some(data: ImageDataset, most: int, seed: int) -> ImageDataset:
    """At most so many images, under the ids 0, 1, ... by which the task finds their rows."""
    if len(data) > most:
        data = data.cap_groups(max(most // data.num_groups, 1), seed)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(seed, "shown")))
        data = data.select(order[:most].sort().values)
    return replace(data, ids=torch.arange(len(data)))


def _by_image(parts: list[Tensor], variants: int) -> Tensor:
    """`(N, V, ...)` from batches that came variant by variant."""
    batches = [torch.stack(parts[start : start + variants], 1) for start in range(0, len(parts), variants)]
    return torch.cat(batches)


class _Imitation(Task):
    """Huber's loss on one variant of each image: as it is in a third of the draws, else any other."""

    def __init__(self, shown: _Shown, settings: Mapping[str, Any]) -> None:
        self.shown, self.settings = shown, settings

    def recipe(self) -> dict[str, Any]:
        """Who teaches, and what is shown."""
        return {**super().recipe(), **self.settings}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        shown, place = self.shown, batch.ids
        share = streams.uniform((), stage="variant")
        others = shown.wanted.shape[1] - 1
        variant = torch.where(share < 1 / 3, 0, 1 + ((share - 1 / 3) * 1.5 * others).long().clamp(0, others - 1))
        place, variant = place.to(shown.wanted.device), variant.to(shown.wanted.device)
        images = shown.images[place, variant]
        found = model(images, shown.rows[place, variant])
        return functional.huber_loss(found, shown.wanted[place, variant])
