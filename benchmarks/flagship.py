"""The flagship on one grouped fold: `python -m benchmarks.flagship --data FOLDER UNIT...`

Every unit takes about an hour or less on one core. It keeps what it trained under --out, its figures as one JSON file
under --results, and is not done twice. Without a unit the list is printed, with what is done.

The images are those of the folder at --size px, and eps is in these pixels. Split `fold_0`: five folds by
near-duplicate group, fold 0 is tested, the rest are groups to train, to choose on and to calibrate. Split `leaking`:
the paper's random 80/20 split, whose test images have near-duplicates in the training part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.folds import progress
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Prediction
from medfedpure.core.settings import AdversarialTraining, Augmentation, GroupPositives, TrainingConfig
from medfedpure.core.storage import write_json
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.data.synthetic import augment_with_samples
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.versions import versions
from medfedpure.evaluation.views import is_stochastic
from medfedpure.figures.balanced import balanced, balanced_interval
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.group_positives import with_group_positives
from medfedpure.training.loop import train

EPS = 0.015
PAPER = {"norm": "linf", "eps": EPS, "step": 0.003, "steps": 7, "random_starts": 0}
"""The paper's attack, on the bare classifier."""
DRAWS = 5
"""Of the noise of a defence that draws any: its figures are means over them."""
SHARES = {"train": 0.75, "validation": 0.08, "calibrate": 0.17}
"""Of the images outside the test part."""
AUGMENTATION = Augmentation(quarter_turns=True, shift=8, rotation=20, stretch=0.18, intensity=0.3)
TRAINING = TrainingConfig(
    steps=500, batch_size=48, learning_rate=5e-4, weight_decay=0.02, ema=0.99, sampling="balanced", checks=10
)
DENOISER: dict[str, Any] = {
    "t_max": 150,
    "model": {"widths": [64, 128], "unshuffle": 4},
    "training": {"steps": 1500, "batch_size": 32, "learning_rate": 1e-3, "ema": 0.995},
}
DISTILLATION = {"eps": EPS, "training": {"steps": 600, "batch_size": 16, "learning_rate": 5e-4, "ema": 0.99}}
HARDENING = TrainingConfig(steps=200, batch_size=16, learning_rate=2e-4, ema=0.98, sampling="balanced")
"""Of the distilled purifier together with the classifier, which stays as it is; attacked as PGD3 says. *Long*: as many
steps and half as many again, without the teacher."""
GENERATOR: dict[str, Any] = {
    "generation": {"classes": 2},
    "model": DENOISER["model"],
    "training": {"steps": 1500, "batch_size": 16, "learning_rate": 1e-3, "ema": 0.995},
}
PGD3 = AdversarialTraining(share=1.0, eps=EPS, step=0.0075, steps=3)
PGD5 = AdversarialTraining(share=1.0, eps=EPS, step=0.0075, steps=5)


@dataclass(frozen=True)
class Recipe:
    """How one classifier is trained.

    Attributes:
        start: the recipe whose weights it starts from; "" = ImageNet.
        adversarial: with a share of 0 it is trained plainly.
        steps: of 48 images.
        positives: group positives; off while their weight is 0.
        samples: images that a diffusion model drew, as a share of the training images.
    """

    start: str = ""
    adversarial: AdversarialTraining = field(default_factory=AdversarialTraining)
    steps: int = 500
    positives: GroupPositives = field(default_factory=GroupPositives)
    samples: float = 0.0


RECIPES: Mapping[str, Recipe] = {
    "plain": Recipe(),
    "robust": Recipe("plain", PGD5, 450),
    "robust_long": Recipe("robust", PGD5, 700),
    "fast": Recipe("plain", AdversarialTraining(share=1.0, eps=EPS, method="fast"), 450),
    "schedule": Recipe("plain", PGD5.model_copy(update={"eps_zero": 0.25, "eps_full": 0.75}), 450),
    "more_pgd": Recipe("robust", PGD5, 150),
    "more_fast": Recipe("robust", AdversarialTraining(share=1.0, eps=EPS, method="fast"), 150),
    "more_trades": Recipe("robust", PGD5.model_copy(update={"method": "trades"}), 150),
    "more_awp": Recipe("robust", PGD5.model_copy(update={"awp": 0.005}), 150),
    "more_group_positives": Recipe("robust", PGD5, 150, GroupPositives(weight=0.5)),
    "more_samples": Recipe("robust", PGD5, 150, samples=0.3),
}
"""What is named more_ goes on from `robust` by 150 steps, so that methods are compared on a network that is robust."""
ARMS: Mapping[str, tuple[str, str]] = {
    **{name: (name, "none") for name in RECIPES},
    "chain": ("plain", "purify_flagged"),
    "purify_all": ("plain", "purify_all"),
    "robust_chain": ("robust_long", "purify_flagged"),
    "robust_purify_all": ("robust_long", "purify_all"),
    "one_step": ("plain", "one_step"),
    "robust_one_step": ("robust_long", "one_step"),
    "hardened_one_step": ("plain", "hardened_one_step"),
    "hardened_one_step_long": ("plain", "hardened_one_step_long"),
    "joint_one_step": ("robust_long", "joint_one_step"),
}
"""By name: whose classifier, and the policy around it; one_step purifies all by the distilled purifier, the hardened
ones by that one after more training against attackers of both, and in joint_one_step the classifier learns too."""


@dataclass(frozen=True)
class Bench:
    """The data of one split, and where things are kept."""

    parts: Mapping[str, ImageDataset]
    out: Path
    seed: int
    say: Callable[[str], None]

    def classifier(self, name: str) -> ClassifierModel:
        """Trained once."""
        if not (self.out / name).exists():
            self._train(name)
        return ClassifierModel.load(self.out / name)

    def purifier(self) -> Purifier:
        """Trained once."""
        folder = self.out / "denoiser"
        if not folder.exists():
            made: Any = medfedpure.create("purifier", "ddpm", **DENOISER)
            context = ScoreContext(checkpoint=self.out / "denoiser_checkpoint")
            made.fit(self.parts["train"], context=context, seed=self.seed).save(folder)
        return Purifier.load(folder)

    def one_step(self) -> Purifier:
        """The purifier, distilled once."""
        folder = self.out / "one_step"
        if not folder.exists():
            made: Any = medfedpure.create("purifier", "one_step", **DENOISER, distillation=DISTILLATION)
            teacher: Any = self.purifier()
            made.adopt(teacher.network, self.parts["train"].image_shape)
            context = ScoreContext(checkpoint=self.out / "one_step_checkpoint")
            made.finish_fit(self.parts["train"], context=context, seed=self.seed).save(folder)
        return Purifier.load(folder)

    def hardened(self, classifier: ClassifierModel, *, long: bool) -> Purifier:
        """The distilled purifier, trained on once against attackers of it and the classifier; or once more, longer."""
        folder = self.out / ("hardened_one_step_long" if long else "hardened_one_step")
        if not folder.exists():
            made: Any = self.hardened(classifier, long=False) if long else self.one_step()
            steps = HARDENING.steps * 3 // 2 if long else HARDENING.steps
            made.harden(
                self.parts["train"],
                classifier,
                PGD3,
                HARDENING.model_copy(update={"steps": steps}),
                keep=0.0 if long else 1.0,
                augmentation=AUGMENTATION,
                seed=derive_seed(self.seed, "long") if long else self.seed,
            )
            made.save(folder)
        return Purifier.load(folder)

    def joint(self, classifier: ClassifierModel) -> DefendedClassifier:
        """The distilled purifier and this classifier, trained on once together against attackers of both."""
        folder = self.out / "joint_one_step"
        if not folder.exists():
            made: Any = self.one_step()
            made.harden(
                self.parts["train"],
                classifier,
                PGD3,
                HARDENING,
                with_classifier=True,
                augmentation=AUGMENTATION,
                seed=derive_seed(self.seed, "joint"),
            )
            DefendedClassifier(classifier.eval(), purifier=made, policy="purify_all").save(folder)
        return DefendedClassifier.load(folder)

    def with_samples(self, share: float) -> ImageDataset:
        """The training images and, after them, those that a class-conditional diffusion model of them draws."""
        folder, held_out = self.out / "generator", {k: v for k, v in self.parts.items() if k != "train"}
        if not folder.exists():
            made: Any = medfedpure.create("purifier", "class_ddpm", **GENERATOR)
            context = ScoreContext(checkpoint=self.out / "generator_checkpoint")
            made.fit(self.parts["train"], context=context, seed=self.seed).save(folder)
        sampler: Any = Purifier.load(folder)
        data, report = augment_with_samples(self.parts["train"], sampler, share=share, against=held_out, seed=self.seed)
        self.say(report.describe())
        return data

    def arm(self, name: str) -> DefendedClassifier:
        """A defence, its threshold set at 5 % on groups that nothing was trained on."""
        reader, policy = ARMS[name]
        classifier = self.classifier(reader)
        if policy == "none":
            return DefendedClassifier(classifier, policy="none")
        if policy == "joint_one_step":
            return self.joint(classifier)
        if policy.startswith("hardened"):
            purifier = self.hardened(classifier, long=policy.endswith("long"))
            return DefendedClassifier(classifier, purifier=purifier, policy="purify_all")
        purifier = self.one_step() if policy == "one_step" else self.purifier()
        if policy in ("purify_all", "one_step"):
            return DefendedClassifier(classifier, purifier=purifier, policy="purify_all")
        detector = medfedpure.create("detector", "compose")
        detector.fit(self.parts["train"], context=ScoreContext(classifier, classifier.features, purifier))
        chain = DefendedClassifier(classifier, detector=detector, purifier=purifier, policy="purify_flagged")
        chain.calibration = Calibration.fit(chain.score_benign(self.parts["calibrate"], seed=self.seed), 0.05)
        return chain

    def clean(self, chain: DefendedClassifier) -> dict[str, Any]:
        """Balanced accuracy of all test images; the interval is that of their groups."""
        test = self.parts["test"]
        return counted([answer.labels for answer in self.answers(chain, test, test.images)], test)

    def answers(self, chain: DefendedClassifier, data: ImageDataset, images: torch.Tensor) -> list[Prediction]:
        """Verdicts on images, attacked or not, with the ids of a data set: one for each draw of the noise."""
        draws = DRAWS if is_stochastic(chain) else 1
        return [chain.predict(images, ids=data.ids, seed=self.seed + draw) for draw in range(draws)]

    def paper(self, chain: DefendedClassifier) -> dict[str, Any]:
        """The paper's attack on the bare classifier, replayed on the defence, one image of each group."""
        few = choose(self.parts["test"], 100, self.seed)
        attack = medfedpure.create("attack", "pgd", **PAPER)
        found = attack(chain.classifier, few.images, few.labels, streams=Streams(self.seed, few.ids))
        attacked, benign = self.answers(chain, few, found.images), self.answers(chain, few, few.images)
        draws = "one draw" if len(benign) == 1 else f"mean of {len(benign)} draws of the defence's noise"
        return {
            "attack": found.description,
            "gradient": f"of the bare classifier (static), {draws}, EoT 1",
            "robust": counted([answer.labels for answer in attacked], few),
            "clean": counted([answer.labels for answer in benign], few),
            "flagged_attacked": flagged(attacked),
            "flagged_benign": flagged(benign),
        }

    def worst(self, name: str, chain: DefendedClassifier, preset: str) -> dict[str, Any]:
        """The ladder at eps .015: its worst case, and every attack."""
        test = self.parts["test"]
        found = evaluate(
            {name: chain},
            test,
            preset=preset,
            eps=EPS,
            out=self.out / "evaluations" / name,
            seed=self.seed,
            say=self.say,
        )
        summary = summarize(found)
        keep = {"lines", "rungs", "images", "groups", "note", "unreliable", "gradients", "seconds", "versions"}
        return summary.model_dump(mode="json", include=keep)

    def _train(self, name: str) -> None:
        recipe = RECIPES[name]
        data = self.with_samples(recipe.samples) if recipe.samples else self.parts["train"]
        model = built(data, self.seed, None if recipe.start else "imagenet")
        if recipe.start:
            start = self.classifier(recipe.start)
            model.load_state_dict(start.state_dict())
            model.origin = start.origin
        plain = ClassificationTask(AUGMENTATION, label_smoothing=0.1)
        learned = (
            with_group_positives(plain, recipe.positives, data, balanced=True) if recipe.positives.weight else plain
        )
        task = AdversarialTask(learned, recipe.adversarial, plain) if recipe.adversarial.share else learned
        config = TRAINING.model_copy(update={"steps": recipe.steps})

        def told(kept: torch.nn.Module) -> None:
            figures = plain.metrics(kept, self.parts["validation"])
            self.say(f"{name}: validation loss {figures['loss']:.3f}, balanced {figures['balanced_accuracy']:.3f}")

        began = time.perf_counter()
        train(
            model,
            task,
            data,
            config,
            seed=derive_seed(self.seed, "flagship", name),
            description=name,
            checkpoint=self.out / f"{name}_checkpoint",
            on_check=told,
        )
        self.say(f"{name}: trained, {time.perf_counter() - began:.0f} s since it was last begun")
        model.eval().save(self.out / name)


def built(data: ImageDataset, seed: int, weights: str | None = "imagenet") -> ClassifierModel:
    """A network for these images."""
    channels, size, _ = data.image_shape
    model: ClassifierModel = medfedpure.create("classifier", "efficientnet_lite0").create_model(
        in_channels=channels,
        num_classes=data.num_classes,
        image_size=size,
        class_names=data.class_names,
        seed=seed,
        weights=weights,
    )
    return model


def opened(folder: Path, size: int) -> ImageDataset:
    """The images of a folder."""
    data: ImageDataset = medfedpure.create("dataset", "image_folder", root=folder, image_size=size, channels=1).read()
    return data


def counted(answers: list[torch.Tensor], data: ImageDataset) -> dict[str, Any]:
    """Right ones, balanced accuracy and its 95 % interval over groups; means where there are several draws."""
    rights = torch.stack([answer.cpu() == data.labels for answer in answers])
    share = rights.double().mean(0)
    low, high = balanced_interval(share, data.labels, data.groups)
    return {
        "right": float(share.sum()),
        "images": len(data),
        "groups": data.num_groups,
        "balanced": balanced(share, data.labels),
        "low": low,
        "high": high,
        "draws": [balanced(right, data.labels) for right in rights],
    }


def flagged(answers: list[Prediction]) -> float | None:
    """Share of flagged images, over all draws."""
    found = [answer.flagged.double().mean() for answer in answers if answer.flagged is not None]
    return float(torch.stack(found).mean()) if found else None


def divided(data: ImageDataset, seed: int) -> dict[str, ImageDataset]:
    """Fold 0 of five by group as the test part, and the parts of the rest."""
    folds = data.split({f"fold{place}": 0.2 for place in range(5)}, seed=seed)
    test = folds.pop("fold0")
    rest = ImageDataset.concatenate(list(folds.values()))
    return {**rest.split(SHARES, seed=derive_seed(seed, "parts", 0)), "test": test}


def leaking(data: ImageDataset, seed: int) -> dict[str, ImageDataset]:
    """The paper's random split: test images have near-duplicates in the training part."""
    alone = replace(data, groups=torch.arange(len(data)))
    return alone.split({"train": 0.72, "validation": 0.03, "calibrate": 0.05, "test": 0.2}, seed=seed)


SPLITS: Mapping[str, Callable[[ImageDataset, int], dict[str, ImageDataset]]] = {"fold_0": divided, "leaking": leaking}


def main() -> None:
    """Do the units that are named and are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", metavar="UNIT", help=", ".join(ARMS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--split", choices=sorted(SPLITS), default="fold_0")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--preset", default="", help="of the ladder; without one, clean and the paper's attack only")
    parser.add_argument("--out", type=Path, default=Path("runs", "flagship"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "flagship"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    medfedpure.keep_freed_memory()
    unknown = sorted(set(given.units) - set(ARMS))
    if unknown:
        raise SystemExit(f"no unit is named {', '.join(unknown)}; the units are {', '.join(ARMS)}")
    where = f"{given.split}_{given.size}"
    if not given.units:
        for name in ARMS:
            done = [path.stem for path in sorted((given.results / where).glob(f"{name}.*json"))]
            print(f"{name}: {', '.join(done) or 'not measured'}")
        return
    say = progress()
    data = opened(given.data, given.size)
    bench = Bench(SPLITS[given.split](data, given.seed), given.out / where, given.seed, say)
    dealt = {name: [len(part), part.num_groups] for name, part in bench.parts.items()}
    say(", ".join(f"{images} images of {groups} groups to {name}" for name, (images, groups) in dealt.items()))
    for name in given.units:
        path = given.results / where / f"{name}.{given.preset or 'static'}.json"
        if path.exists():
            say(f"{path} is there")
            continue
        chain = bench.arm(name)
        document: dict[str, Any] = {
            "unit": name,
            "split": given.split,
            "size": given.size,
            "parts": dealt,
            "classifier": str(ARMS[name][0]),
            "policy": ARMS[name][1],
            "clean": bench.clean(chain),
            "paper": bench.paper(chain),
            "versions": versions(),
        }
        say(f"{name}: clean {document['clean']['balanced']:.3f}, paper {document['paper']['robust']['balanced']:.3f}")
        if given.preset:
            document["ladder"] = bench.worst(name, chain, given.preset)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)


if __name__ == "__main__":
    main()
