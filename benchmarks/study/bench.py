"""What is trained of one place, and the defences that are made of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.study.how import CPU, EPS, How, Recipe
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.settings import Augmentation
from medfedpure.core.streams import derive_seed
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.policy import Policy
from medfedpure.defence.voting import Vote
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.group_positives import with_group_positives
from medfedpure.training.loop import train
from medfedpure.training.purified import FINE_TUNING

ARMS: Mapping[str, tuple[str, str]] = {
    "undefended": ("plain", "none"),
    "robust": ("robust_long", "none"),
    "robust_short": ("robust", "none"),
    "mixed": ("mixed", "none"),
    "median": ("plain", "median"),
    "paper": ("plain", "purify_flagged"),
    "fixed_depth": ("plain", "fixed_depth"),
    "voted": ("plain", "voted"),
    "purify_all": ("plain", "purify_all"),
    "detector_only": ("plain", "abstain"),
    "robust_chain": ("robust_long", "purify_flagged"),
    "robust_purify_all": ("robust_long", "purify_all"),
    "tuned": ("tuned", "none"),
    "tuned_chain": ("tuned", "purify_often"),
    "tuned_purify_all": ("tuned", "purify_all"),
}
"""By name: whose classifier, and what is around it; voted: purify_flagged, and the mean of `VOTES` purifications;
purify_often: purify_flagged, its threshold set for a fifth of benign images."""
VOTES = 5
FLAGGED, OFTEN = 0.05, 0.2
DETERMINISTIC = tuple(name for name, (_, around) in ARMS.items() if around in ("none", "median"))


_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Bench:
    """The data of one place, and where things are kept.

    Attributes:
        parts: train, validation, calibrate and test.
        out: keeps what was trained.
        seed: of everything.
        say: is told what happens.
        how: the size of the study.
        turns: whether the images have no upright.
        device: where models are, and compute.
    """

    parts: Mapping[str, ImageDataset]
    out: Path
    seed: int
    say: Callable[[str], None]
    how: How = CPU
    turns: bool = True
    device: torch.device = _CPU

    @property
    def augmentation(self) -> Augmentation:
        """Of the training images."""
        return self.how.augmentation(self.parts["train"].image_shape[1], turns=self.turns)

    def classifier(self, name: str) -> ClassifierModel:
        """Trained once, or mixed once."""
        if not (self.out / name).exists():
            {"mixed": self._mix, "tuned": self._tune}.get(name, self._train)(name)
        return ClassifierModel.load(self.out / name).to(self.device)

    def purifier(self) -> Purifier:
        """Trained once."""
        folder = self.out / "denoiser"
        if not folder.exists():
            made: Any = medfedpure.create("purifier", "ddpm", **self.how.denoiser)
            context = ScoreContext(self.classifier("plain"), checkpoint=self.out / "denoiser_checkpoint")
            made.fit(self.parts["train"], context=context, seed=self.seed).save(folder)
        return Purifier.load(folder).to(self.device)

    def arm(self, name: str, arms: Mapping[str, tuple[str, str]] = ARMS) -> DefendedClassifier:
        """A defence, its threshold set on groups that nothing was trained on."""
        reader, around = arms[name]
        classifier = self.classifier(reader)
        if around == "none":
            return uniform(classifier, policy="none")
        if around == "median":
            median = medfedpure.create("purifier", "median")
            return uniform(classifier, purifier=median, policy="purify_all")
        purifier: Any = self.purifier()
        if around == "purify_all":
            return uniform(classifier, purifier=purifier, policy="purify_all")
        detector = medfedpure.create("detector", "compose")
        detector.fit(self.parts["train"], context=ScoreContext(classifier, classifier.features, purifier))
        policy: Policy = "abstain" if around == "abstain" else "purify_flagged"
        chain = uniform(classifier, detector=detector, purifier=purifier, policy=policy)
        target = OFTEN if around == "purify_often" else FLAGGED
        chain.calibration = Calibration.fit(chain.score_benign(self.parts["calibrate"], seed=self.seed), target)
        if around == "voted":
            chain.vote = Vote(VOTES)
        if around == "fixed_depth":
            deepest = {**self.how.denoiser, "t_min": self.how.denoiser["t_max"]}
            fixed: Any = medfedpure.create("purifier", "ddpm", **deepest)
            fixed.adopt(purifier.network, self.parts["train"].image_shape)
            own = chain.calibration
            chain = uniform(classifier, detector=detector, purifier=fixed, policy=policy, calibration=own)
        return chain

    def seen(self, recipe: Recipe) -> ImageDataset:
        """What a classifier is trained on."""
        del recipe
        return self.parts["train"]

    def _train(self, name: str) -> None:
        recipe = self.how.recipes[name]
        data = self.seen(recipe)
        model = built(data, self.seed, self.how, self.how.weights if not recipe.start else None)
        if recipe.start:
            start = self.classifier(recipe.start)
            model.load_state_dict(start.state_dict())
            model.origin = start.origin
        plain = ClassificationTask(self.augmentation, label_smoothing=0.1)
        learned = (
            with_group_positives(plain, recipe.positives, data, balanced=True) if recipe.positives.weight else plain
        )
        task = AdversarialTask(learned, recipe.adversarial, plain) if recipe.adversarial.share else learned

        def told(kept: torch.nn.Module) -> None:
            figures = plain.metrics(kept, self.parts["validation"])
            self.say(f"{name}: validation loss {figures['loss']:.3f}, balanced {figures['balanced_accuracy']:.3f}")

        began = time.perf_counter()
        train(
            model.to(self.device),
            task,
            data,
            self.how.training.model_copy(update={"steps": recipe.steps}),
            seed=derive_seed(self.seed, "flagship", name),
            description=name,
            checkpoint=self.out / f"{name}_checkpoint",
            on_check=told,
        )
        self.say(f"{name}: trained, {time.perf_counter() - began:.0f} s since it was last begun")
        model.eval().save(self.out / name)

    def _tune(self, name: str) -> None:
        tuned = medfedpure.fine_tune_on_purified(
            self.classifier("plain"),
            self.purifier(),
            self.parts["train"],
            eps=EPS,
            training=self.how.training.model_copy(
                update={"steps": self.how.tuning, "learning_rate": FINE_TUNING.learning_rate}
            ),
            augmentation=self.augmentation,
            seed=derive_seed(self.seed, "study", name),
            checkpoint=self.out / f"{name}_checkpoint",
        )
        tuned.save(self.out / name)

    def _mix(self, name: str) -> None:
        both = medfedpure.mix(
            self.classifier("robust_long"),
            self.classifier("plain"),
            self.parts["validation"],
            eps=EPS,
            seed=self.seed,
        )
        both.save(self.out / name)


def uniform(classifier: ClassifierModel, **parts: Any) -> DefendedClassifier:
    """A defence that answers in float32 and with the CPU's noise: folds from different machines are one study."""
    chain = DefendedClassifier(classifier, **parts)
    chain.accelerate("off")
    return chain


def built(data: ImageDataset, seed: int, how: How, weights: str | None) -> ClassifierModel:
    """A network for these images."""
    channels, size, _ = data.image_shape
    model: ClassifierModel = medfedpure.create("classifier", how.architecture).create_model(
        in_channels=channels,
        num_classes=data.num_classes,
        image_size=size,
        class_names=data.class_names,
        seed=seed,
        weights=weights,
    )
    return model
