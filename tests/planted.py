"""Small plugins that keep their contract, and variants that each break one promise."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.attack import Attack
from medfedpure.core.classifier import Classifier
from medfedpure.core.config import Config, Eps
from medfedpure.core.dataset import Dataset, ImageDataset
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.personalization import (
    ClientRound,
    LocalResult,
    PersonalizationStrategy,
    Tensors,
    Update,
    train_round,
)
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.models.small_cnn import SmallConvNet
from medfedpure.testing import tiny_dataset


class GoodDetector(Detector):
    """Roughness, with a little noise of its own for each image."""

    differentiable = True

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        noise = streams.normal((), stage="score", like=images)
        return images.diff(dim=3).square().flatten(1).mean(1) * 100 + 0.1 * noise


class LooksAtTheBatch(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        scores = super().score(images, context=context, streams=streams)
        return scores - scores.mean() + images.mean()


class NoiseByPlace(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        generator = torch.Generator().manual_seed(streams.seed)
        return images.flatten(1).mean(1) + torch.randn(len(images), generator=generator).to(images)


class ForgetsWhoDraws(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return super().score(images, context=context, streams=Streams(streams.seed, streams.ids))


class DrawsGlobally(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return images.flatten(1).mean(1) + torch.randn(1).to(images)


class DrawsFromPython(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return images.flatten(1).mean(1) + random.random()


class WritesIntoImages(GoodDetector):
    differentiable = False

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return images.mul_(0.5).flatten(1).mean(1)


class NotDifferentiable(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return super().score(images.detach(), context=context, streams=streams)


class NotDeterministic(GoodDetector):
    deterministic = True


class AlwaysFloat32(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return super().score(images, context=context, streams=streams).float()


class UndeclaredRequirement(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return context.predict_logits(images).logsumexp(1)


class TrainsTheClassifier(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        assert context.classifier is not None
        return context.classifier.train()(images).logsumexp(1)


class NotFinite(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return super().score(images, context=context, streams=streams) / 0.0


class HigherMeansBenign(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return -super().score(images, context=context, streams=streams)


class CancelsDigits(GoodDetector):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        kernel = torch.zeros(1, 1, 3, 3, dtype=images.dtype)
        kernel[..., 1, 1] = 1.0
        copied = nn.functional.conv2d(images, kernel, padding=1)
        return super().score(images, context=context, streams=streams) + 1e4 * (copied - images).abs().mean((1, 2, 3))


class FitForgotten(GoodDetector):
    needs_fit = True

    def fit(self, train: ImageDataset, *, context: ScoreContext) -> Any:
        return self


class GoodPurifier(Purifier):
    """Mixes each image with its own mean, and counts it as one evaluation."""

    differentiable = True

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        share = (0.1 + 0.5 * strength)[:, None, None, None]
        noise = 0.001 * streams.normal(images.shape[1:], stage="purify", like=images)
        mixed = (images * (1 - share) + images.mean((1, 2, 3), keepdim=True) * share + noise).clamp(0, 1)
        return Purification(mixed, torch.ones(len(images), dtype=torch.int64))


class LeavesTheRange(GoodPurifier):
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        return Purification(images * 1.01, torch.ones(len(images), dtype=torch.int64))


class MixesImages(GoodPurifier):
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        return Purification(0.9 * images + 0.1 * images.mean(0), torch.ones(len(images), dtype=torch.int64))


class AddsNoise(GoodPurifier):
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        noise = streams.normal(images.shape[1:], stage="purify", like=images)
        spoilt = images + (0.1 + 0.2 * strength)[:, None, None, None] * noise
        return Purification(spoilt.clamp(0, 1), torch.ones(len(images), dtype=torch.int64))


class OneStrengthForAll(GoodPurifier):
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        return super().purify(images, strength.max().expand_as(strength), streams=streams)


class FloatingCosts(GoodPurifier):
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        return Purification(images, torch.ones(len(images)))


class WrongWayRound(GoodPurifier):
    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        return super().purify(images, 1 - strength, streams=streams)


class AttackConfig(Config):
    """Its budget."""

    eps: Eps = Field(0.03, description="largest change of a pixel")


class GoodAttack(Attack):
    """One signed step."""

    Config = AttackConfig
    deterministic = True

    def generate(self, view: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        moved = images.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(nn.functional.cross_entropy(view(moved), labels, reduction="sum"), moved)
        return (images + self.config.eps * slope.sign()).clamp(0, 1)


class Overspends(GoodAttack):
    def generate(self, view: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return (images + 2 * self.config.eps).clamp(0, 1)


class DoesNothing(GoodAttack):
    def generate(self, view: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return images.clone()


class IsTooTimid(GoodAttack):
    def generate(self, view: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        return images + 1e-3 * (super().generate(view, images, labels, **options) - images)


class LeavesGradients(GoodAttack):
    def generate(self, view: nn.Module, images: Tensor, labels: Tensor, **options: Any) -> Tensor:
        moved = images.clone().requires_grad_(True)
        nn.functional.cross_entropy(view(moved), labels).backward()
        assert moved.grad is not None
        return (images + self.config.eps * moved.grad.sign()).clamp(0, 1)


class IgnoresTheSeedItPromised(GoodAttack):
    def generate(self, view: nn.Module, images: Tensor, labels: Tensor, *, streams: Streams, **options: Any) -> Tensor:
        noise = streams.uniform(images.shape[1:], stage="start", like=images)
        return (images + self.config.eps * (noise - 0.5)).clamp(0, 1)


class GoodStrategy(PersonalizationStrategy):
    """The convolutions travel."""

    def is_shared(self, key: str, model: nn.Module) -> bool:
        return "body" in key


class SharesIntegers(GoodStrategy):
    def split(self, model: nn.Module) -> tuple[Tensors, Tensors]:
        state = {key: value.clone() for key, value in model.state_dict().items()}
        shared = {key: value for key, value in state.items() if self.is_shared(key, model)}
        return shared, {key: value for key, value in state.items() if key not in shared}


class LastClientWins(GoodStrategy):
    def aggregate(self, round: int, previous: Tensors, updates: Sequence[Update]) -> Tensors:
        return dict(super().aggregate(round, previous, updates)) if not updates else dict(updates[-1].shared)


class SharesAViewOfTheModel(GoodStrategy):
    def split(self, model: nn.Module) -> tuple[Tensors, Tensors]:
        shared, private = super().split(model)
        return {key: model.state_dict()[key] for key in shared}, private


class SharesWhatItKeeps(GoodStrategy):
    def split(self, model: nn.Module) -> tuple[Tensors, Tensors]:
        shared, private = super().split(model)
        return {**shared, **{key: value for key, value in private.items() if "head" in key}}, private


class SmugglesTheHead(GoodStrategy):
    def local_update(self, r: ClientRound) -> LocalResult:
        done = super().local_update(r)
        secret = next(value for key, value in done.private.items() if key.endswith("head.weight")).flatten()
        carrier = max(done.shared, key=lambda key: done.shared[key].numel())
        done.shared[carrier].view(-1)[: len(secret)] = secret
        return done


class LosesTheHead(GoodStrategy):
    def split(self, model: nn.Module) -> tuple[Tensors, Tensors]:
        shared, private = super().split(model)
        return shared, {key: value for key, value in private.items() if "head" not in key}


class IgnoresTheAttack(GoodStrategy):
    def local_update(self, r: ClientRound) -> LocalResult:
        model = self.personal_model(r)
        train_round(r, model)
        return LocalResult(*self.split(model), len(r.train))


class ForgetsItsCounters(GoodStrategy):
    def local_update(self, r: ClientRound) -> LocalResult:
        done = super().local_update(r)
        kept = {key: value for key, value in done.private.items() if value.is_floating_point()}
        return replace(done, private=kept)


class SharesNothing(GoodStrategy):
    def is_shared(self, key: str, model: nn.Module) -> bool:
        return False


class GoodClassifier(Classifier):
    """A small network."""

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        return SmallConvNet(in_channels, num_classes, (8, 16))


class _NormalizedOverTheBatch(SmallConvNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean())


class NormalizesOverTheBatch(GoodClassifier):
    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        return _NormalizedOverTheBatch(in_channels, num_classes, (8, 16))


class _Frozen(SmallConvNet):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach() + 0.0 * self.head.bias


class NeverLearns(GoodClassifier):
    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        return _Frozen(in_channels, num_classes, (8, 16))


class HasNoHead(GoodClassifier):
    def head_keys(self, model: nn.Module) -> frozenset[str]:
        return frozenset()


class WrongFeatures(GoodClassifier):
    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        return super().features(model, images) + 1.0


class GoodDataset(Dataset):
    """A few discs."""

    def read(self) -> ImageDataset:
        return tiny_dataset(16)


class ReadsOtherImagesEachTime(GoodDataset):
    _count = itertools.count()

    def read(self) -> ImageDataset:
        return tiny_dataset(16, seed=next(self._count))


class HasOneClassOnly(GoodDataset):
    def read(self) -> ImageDataset:
        data = tiny_dataset(16)
        return data.select(data.labels == 0)


class HasTwins(GoodDataset):
    def read(self) -> ImageDataset:
        data = tiny_dataset(16)
        data.pixels[0] = data.pixels[8]
        return data
