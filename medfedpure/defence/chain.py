"""The chain: detect, purify what is flagged, classify. An nn.Module like any classifier."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from medfedpure.acceleration.known import joined, remember
from medfedpure.core.checks import check_facts, check_image_layout, check_logits, check_scores, facts_about, mismatch
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Denoiser, Detector, ScoreContext, check_requirements
from medfedpure.core.errors import ArtifactError, InputError, MissingRequirementError, NotCalibratedError
from medfedpure.core.progress import Observer, observing, track
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Prediction, Trace
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.verdict import as_they_answer
from medfedpure.data.synthetic import check_recorded
from medfedpure.defence.acceleration import Accelerable
from medfedpure.defence.bundle import Bundle
from medfedpure.defence.calibration import Calibration, Scope
from medfedpure.defence.images import ImageFacts
from medfedpure.defence.inference import (
    Clock,
    FreshSeeds,
    Images,
    Inspection,
    as_batches,
    assemble,
    count_batches,
    told_on_cpu,
)
from medfedpure.defence.own_check import OwnCheck
from medfedpure.defence.policy import Policy, check_parts
from medfedpure.defence.recipe import Choice
from medfedpure.defence.voting import Cleaned, Vote, count, draw


class DefendedClassifier(Accelerable):
    """A classifier guarded by a detector and a purifier.

    Args:
        classifier: any module from images `(N, C, H, W)` in [0, 1] to logits `(N, K)`.
        detector: scores suspicion; needed by "purify_flagged" and "abstain".
        purifier: cleans images; needed by "purify_flagged" and "purify_all".
        policy: "purify_flagged" cleans what the detector flags; "purify_all" cleans everything, at
            full strength; "none" only reports scores; "abstain" refuses what is flagged.
        calibration: from `calibrate` or a saved defence.
        vote: how many purifications of each image are drawn, and how they are counted.
        image_facts: what images it is for, others are refused; `calibrate` on a data set fills it where it is None.
        own_check: what `defend` saw it do on images that it held out.
        choice: why it has this policy, where the recipe "robust" chose it.

    Raises:
        MissingRequirementError: the policy or the detector needs a part that is missing.
        ConfigError: no such policy, or a vote whose draws are none, or all the same.

    Example:
        >>> import torch, medfedpure
        >>> bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> chain = medfedpure.DefendedClassifier(
        ...     bare, purifier=medfedpure.create("purifier", "median"), policy="purify_all")
        >>> chain(torch.rand(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        detector: Detector | None = None,
        purifier: Purifier | None = None,
        policy: Policy = "purify_flagged",
        calibration: Calibration | None = None,
        vote: Vote = Vote(),  # noqa: B008
        image_facts: ImageFacts | None = None,
        own_check: OwnCheck | None = None,
        choice: Choice | None = None,
    ) -> None:
        super().__init__()
        check_parts(classifier, detector, purifier, policy, vote)
        self.classifier = classifier
        self.detector = detector
        self.purifier = purifier
        self.policy: Policy = policy
        self.calibration = calibration
        self.vote = vote
        self.image_facts = image_facts
        self.own_check, self.choice = own_check, choice
        self._noise_seed: int | None = None
        self._fresh = FreshSeeds()
        if detector is not None:
            check_requirements(detector, self.context())
        self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002
        """A defence stays in eval mode."""
        return super().train(False)

    def context(self) -> ScoreContext:
        """What this chain offers its detector."""
        features = getattr(self.classifier, "features", None)
        return ScoreContext(
            classifier=self.answering(),
            features=features if callable(features) and not isinstance(features, nn.Module) else None,
            denoiser=self.purifier if isinstance(self.purifier, Denoiser) else None,
        )

    # -- calibration ---------------------------------------------------------------------------

    def score_benign(self, benign: ImageDataset | Tensor, *, seed: int = 0, batch_size: int = 64) -> Tensor:
        """Scores `(n,)` of benign images, one image for each near-duplicate group."""
        if self.detector is None:
            raise MissingRequirementError("there is no detector to calibrate")
        images = benign.one_per_group(seed) if isinstance(benign, ImageDataset) else benign
        noise_seed, context = derive_seed(seed, "calibrate"), self.context()
        with torch.no_grad(), as_they_answer(self), self.computing(self._device()):
            scores = []
            total = count_batches(images, batch_size) or 0
            for batch, ids in track(as_batches(images, None, batch_size), "calibration", total):
                given = batch.to(self._device(batch.device), non_blocking=True)
                logits = self._classify(given)
                check_logits(logits, len(given), values=True)
                own = replace(context, logits=logits)
                scores.append(self.detector(given, context=own, streams=self._streams(noise_seed, ids)))
        return torch.cat(scores) if scores else torch.empty(0)

    def _device(self, otherwise: torch.device = torch.device("cpu")) -> torch.device:  # noqa: B008
        """That of the chain's parameters."""
        return next((parameter.device for parameter in self.parameters()), otherwise)

    def calibrate(
        self,
        benign: ImageDataset | Tensor,
        target_fpr: float = 0.05,
        *,
        seed: int = 0,
        scope: Scope = "client",
        batch_size: int = 64,
        allow_never_flagging: bool = False,
    ) -> Self:
        """Fix the threshold on held-out benign images, never seen in training.

        Args:
            benign: an ImageDataset (one image for each group is used) or `(n, C, H, W)` in [0, 1].
            target_fpr: the share of benign images that may be flagged.
            seed: of the noise of the scores.
            scope: noted in the calibration.
            batch_size: images at a time.
            allow_never_flagging: see `Calibration.fit`.
        """
        if isinstance(benign, ImageDataset):
            check_recorded(benign, "calibration")
            (self.image_facts or self.facts_of(benign)).check(benign)
        scores = self.score_benign(benign, seed=seed, batch_size=batch_size)
        self.calibration = Calibration.fit(scores, target_fpr, scope=scope, allow_never_flagging=allow_never_flagging)
        self.own_check = self.choice = None  # they were of another threshold
        if self.image_facts is None and isinstance(benign, ImageDataset):
            self.image_facts = self.facts_of(benign)
        return self

    @torch.no_grad()
    def facts_of(self, data: ImageDataset) -> ImageFacts:
        """What images a data set holds, its class names where they are as many as the classifier's logits."""
        with as_they_answer(self):
            return ImageFacts.of(data, self._classify(data.batch(torch.arange(1)).images.to(self._device())).shape[1])

    # -- the nn.Module -------------------------------------------------------------------------

    @contextmanager
    def fixed_noise(self, seed: int) -> Iterator[Self]:
        """Inside the block every `forward` draws the same noise."""
        before, self._noise_seed = self._noise_seed, seed
        try:
            yield self
        finally:
            self._noise_seed = before

    @contextmanager
    def noise_sequence(self, seed: int) -> Iterator[Self]:
        """Inside the block every `forward` draws fresh noise, and the same again in a block of the same seed."""
        before, self._fresh = self._fresh, FreshSeeds(seed)
        try:
            yield self
        finally:
            self._fresh = before

    def next_streams(self, size: int) -> Streams:
        """The noise of the next call on so many images: fresh, or what `fixed_noise` or `noise_sequence` say."""
        if self._noise_seed is not None:
            return self._streams(self._noise_seed, torch.arange(size))
        return self._streams(self._fresh.next(), torch.arange(size))

    def _streams(self, seed: int, ids: Tensor) -> Streams:
        return Streams(seed, ids, self.acceleration.noise)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)` of the whole chain, differentiable where its parts are.

        Fresh noise on each call, or what `fixed_noise` or `noise_sequence` say. Under "abstain" these are the
        bare classifier's logits; abstaining is read from `predict`.
        """
        found = self.inspect(images, self.next_streams(len(images)))
        if found.selected.numel() == 0:
            return found.logits
        return found.logits.index_copy(0, found.places(), self.clean(*found.take_selected()).logits)

    def read(self, images: Tensor) -> Tensor:
        """What the classifier reads `(N, C, H, W)`: purified where the policy purifies; of a vote, the first draw."""
        found = self.inspect(images, self.next_streams(len(images)))
        if found.selected.numel() == 0:
            return images
        assert self.purifier is not None
        with as_they_answer(self), self.computing(images.device):
            chosen, strength, streams = found.take_selected()
            cleaned = self.purifier.purify(chosen, strength, streams=streams).images
        return images.index_copy(0, found.places(), cleaned)

    # -- prediction ----------------------------------------------------------------------------

    @torch.no_grad()
    def predict(
        self,
        images: Images,
        ids: Tensor | None = None,
        *,
        seed: int | None = None,
        target_fpr: float | None = None,
        batch_size: int = 64,
        explain: bool = False,
        observer: Observer | None = None,
    ) -> Prediction:
        """Verdicts for a tensor, a data set, or a loader of batches.

        Args:
            images: `(N, C, H, W)` in [0, 1]; an ImageDataset; or an iterable of `Batch`, of tensors,
                or of tuples whose first item is the images (labels beside them are not looked at).
                Batches are moved to the chain's device, and answers stay there.
            ids: `(N,)` int64 keys of the noise, for tensors; by default the running index.
            seed: of the noise; by default drawn from the operating system and never published.
            target_fpr: another false-positive rate than the calibrated one; no refit is needed.
            batch_size: images at a time; flagged images are collected to full batches before they
                are purified.
            explain: also ask the detector where the images look suspicious, at the cost of another score.
            observer: is told scores, flags, ids and times of every batch as it is found, never an image.

        Raises:
            InputError: images of the wrong rank, dtype or range, or not those that `image_facts` wants; a classifier
                whose answer is not finite.
            CalibrationError: a `target_fpr` at which this calibration could flag nothing.
            NotFittedError, NotCalibratedError: a part is not ready.
        """
        if self.image_facts is not None and isinstance(images, ImageDataset):
            self.image_facts.check(images)
        noise_seed = secrets.randbits(128) if seed is None else seed
        clock = Clock()
        parts: list[Inspection] = []
        cleaned: list[Cleaned] = []
        waiting: list[Inspection] = []
        maps: list[Tensor | None] = []
        with observing(observer, "predict", count_batches(images, batch_size)) as told:
            for batch, batch_ids in as_batches(images, ids, batch_size):
                with clock.measure("detect"):
                    given = batch.to(self._device(batch.device), non_blocking=True)
                    parts.append(self.inspect(given, self._streams(noise_seed, batch_ids), target_fpr))
                for one in told:
                    one.observe(parts[-1].observation(clock.lap()))
                if explain:
                    with clock.measure("explain"):
                        maps.append(self._map(parts[-1]))
                waiting.append(parts[-1])
                if sum(part.selected.numel() for part in waiting) * self.vote.draws >= batch_size:
                    cleaned.append(self._purify_together(waiting, clock))
                    waiting = []
        if any(part.selected.numel() for part in waiting):
            cleaned.append(self._purify_together(waiting, clock))
        if not parts:
            raise InputError("there is no image to predict")
        trace = Trace(self.policy, seed, seconds=clock.seconds, noise=self.acceleration.noise)
        names = () if self.image_facts is None else self.image_facts.class_names
        found = assemble(parts, cleaned, maps, trace, self.calibration, self.vote.min_agreement)
        return replace(found, class_names=names)

    def _map(self, part: Inspection) -> Tensor | None:
        if self.detector is None:
            return None
        context = replace(self.context(), logits=part.logits)
        with self.computing(part.images.device):
            return self.detector.suspicion_map(part.images, context=context, streams=part.streams)

    def inspect(self, images: Tensor, streams: Streams, target_fpr: float | None = None) -> Inspection:
        """Classify, score and decide on `(N, C, H, W)`; differentiable where the parts are.

        It costs one device synchronization.

        Raises:
            InputError: images of the wrong rank, dtype, range or shape; an answer that is no logits, or not finite.
            CalibrationError: a `target_fpr` at which this calibration could flag nothing.
        """
        with as_they_answer(self):
            return self._inspect(images, streams, target_fpr)

    def _inspect(self, images: Tensor, streams: Streams, target_fpr: float | None) -> Inspection:
        check_image_layout(images)
        if self.image_facts is not None:
            self.image_facts.check_shape(images.shape)
        calibration = self._ready_calibration()
        if calibration is not None and target_fpr is not None:
            calibration.check_rate(target_fpr)
        logits = self._classify(images)
        scores = None
        flagged = torch.zeros(len(images), dtype=torch.bool, device=images.device)
        strength = images.new_zeros(len(images))
        if self.detector is not None:
            with self.computing(images.device):
                scores = self.detector.score(images, context=replace(self.context(), logits=logits), streams=streams)
            check_scores(scores, len(images), f"the detector {self.detector.name!r}")
            if calibration is not None:
                flagged = calibration.flagged(scores, target_fpr)
                strength = calibration.strength(scores, target_fpr).to(images.dtype)
        if self.policy == "purify_all":
            strength = torch.ones_like(strength)
        everything = torch.arange(len(images))
        decided, known = told_on_cpu(images, flagged, strength, logits)
        remember(strength, known)
        chosen = {"purify_all": everything, "purify_flagged": everything[decided]}.get(self.policy, everything[:0])
        return Inspection(images, streams, logits, scores, flagged, decided, strength, chosen)

    def _ready_calibration(self) -> Calibration | None:
        """The calibration, after making sure that every part may be used."""
        for part in (self.detector, self.purifier):
            if part is not None:
                part.check_fitted()
        if self.calibration is None and self.policy in ("purify_flagged", "abstain"):
            raise NotCalibratedError(f"the policy {self.policy!r} needs a threshold: call calibrate(benign) first")
        return self.calibration

    def clean(self, images: Tensor, strength: Tensor, streams: Streams, clock: Clock | None = None) -> Cleaned:
        """Purify `(M, C, H, W)` at strengths `(M,)` and classify, in every draw of the vote."""
        assert self.purifier is not None  # the constructor made sure
        clock = clock or Clock()
        with as_they_answer(self):
            with clock.measure("purify"), self.computing(images.device):
                drawn = draw(self.purifier, images, strength, streams, self.vote)
            with clock.measure("classify"):
                return count(drawn, self._classify(drawn.images), self.vote)

    def _purify_together(self, parts: list[Inspection], clock: Clock) -> Cleaned:
        """Purify and classify the selected images of several batches as one dense batch."""
        images, strengths, streams = zip(*(part.take_selected() for part in parts), strict=True)
        together = replace(streams[0], ids=torch.cat([s.ids for s in streams]))
        cleaned = self.clean(torch.cat(images), joined(strengths), together, clock)
        bad, probable = facts_about(cleaned.logits).cpu().double().tolist()
        check_facts(bad, probable, len(cleaned.logits))
        return cleaned

    def _classify(self, images: Tensor) -> Tensor:
        try:
            with self.computing(images.device):
                logits: Tensor = self.answering()(images)
        except RuntimeError as error:
            other = mismatch(self.classifier, images, error)
            if other is not None and not self.acceleration.autocast:
                raise other from error
            raise
        check_logits(logits, len(images))
        return logits.to(images.dtype)

    def save(self, folder: str | Path) -> None:
        """Write the whole defence as one folder of JSON and safetensors; see defence/bundle.py."""
        Bundle(**{item.name: getattr(self, item.name) for item in fields(Bundle)}).write(folder)

    @classmethod
    def load(cls, folder: str | Path, *, classifier: nn.Module | None = None) -> Self:
        """Read what `save` wrote, by plugin names only.

        Args:
            folder: what was saved.
            classifier: your own module where the saved one is not a plugin's; checked, and given the saved weights.

        Raises:
            ArtifactError: truncated, edited, foreign, of a later version, or a module that does not fit.
            UnknownPluginError: a plugin is not installed here.
        """
        found = Bundle.read(folder, classifier=classifier)
        try:
            return cls(**{item.name: getattr(found, item.name) for item in fields(found)})
        except (AttributeError, TypeError) as error:
            raise ArtifactError(f"{folder} is not a defence as this version saves it: {error!r}") from error
