"""The flagship on one grouped fold: `python -m benchmarks.flagship --data FOLDER UNIT...`

Every unit takes about an hour or less on one core. It keeps what it trained under --out, its figures as one JSON file
under --results, and is not done twice. Without a unit the list is printed, with what is done.

The images are those of the folder at --size px, and eps is in these pixels. Split `fold_0`: five folds by
near-duplicate group, fold 0 is tested, the rest are groups to train, to choose on and to calibrate. Split `leaking`:
the paper's random 80/20 split, whose test images have near-duplicates in the training part.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.folds import progress
from benchmarks.study import bench as study
from benchmarks.study.how import CPU, DENOISER, EPS, PAPER, PGD5, How, Recipe
from benchmarks.study.how import RECIPES as LEARNED
from benchmarks.study.places import Parts, fold, leaking, opened
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Prediction
from medfedpure.core.settings import AdversarialTraining, GroupPositives, TrainingConfig
from medfedpure.core.storage import write_json
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.data.synthetic import augment_with_samples
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.versions import versions
from medfedpure.evaluation.views import is_stochastic
from medfedpure.figures.balanced import balanced, balanced_interval
from medfedpure.reporting.evaluation.summary import summarize

DRAWS = 5
"""Of the noise of a defence that draws any: its figures are means over them."""
AUGMENTATION = CPU.augmentation(128, turns=True)
DISTILLATION = {"eps": EPS, "training": {"steps": 600, "batch_size": 16, "learning_rate": 5e-4, "ema": 0.99}}
PGD3 = AdversarialTraining(share=1.0, eps=EPS, step=0.0075, steps=3)
HARDENING = TrainingConfig(steps=200, batch_size=16, learning_rate=2e-4, ema=0.98, sampling="balanced")
"""Of the distilled purifier together with the classifier, which stays as it is; attacked as PGD3 says. *Long*: as many
steps and half as many again, without the teacher."""
GUIDED, GUIDANCE = PGD3.model_copy(update={"share": 0.75}), HARDENING.model_copy(update={"steps": 300})
"""Of the distilled purifier and what the plain classifier reads; the attacker ignores the purifier."""
GENERATOR: dict[str, Any] = {
    "generation": {"classes": 2},
    "model": DENOISER["model"],
    "training": {"steps": 1500, "batch_size": 16, "learning_rate": 1e-3, "ema": 0.995},
}
RECIPES: Mapping[str, Recipe] = {
    **LEARNED,
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
    "voted_chain": ("plain", "voted"),
    "one_step": ("plain", "one_step"),
    "robust_one_step": ("robust_long", "one_step"),
    "hardened_one_step": ("plain", "hardened_one_step"),
    "hardened_one_step_long": ("plain", "hardened_one_step_long"),
    "joint_one_step": ("robust_long", "joint_one_step"),
    "guided_one_step": ("plain", "guided_one_step"),
}
"""By name: whose classifier, and the policy around it. voted: the mean of five purifications; one_step: all by the
distilled purifier; hardened: by that one after more training against attackers of both; guided: against those of the
bare classifier; joint_one_step: hardened, and the classifier learns too."""


HOW = replace(CPU, recipes=RECIPES)


@dataclass(frozen=True)
class Bench(study.Bench):
    """The same with more defences than the study has."""

    how: How = HOW

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

    def guided(self, classifier: ClassifierModel) -> Purifier:
        """The distilled purifier, taught by what the classifier reads of images attacked without it."""
        folder = self.out / "guided_one_step"
        if not folder.exists():
            made: Any = self.one_step()
            made.guide(self.parts["train"], classifier, GUIDED, GUIDANCE, augmentation=AUGMENTATION, seed=self.seed)
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

    def seen(self, recipe: Recipe) -> ImageDataset:
        """The training images, and drawn ones where the recipe has some."""
        return self.with_samples(recipe.samples) if recipe.samples else self.parts["train"]

    def arm(self, name: str, arms: Mapping[str, tuple[str, str]] = ARMS) -> DefendedClassifier:
        """A defence, its threshold set at 5 % on groups that nothing was trained on."""
        reader, policy = arms[name]
        if "one_step" not in policy:
            return super().arm(name, arms)
        classifier = self.classifier(reader)
        if policy == "joint_one_step":
            return self.joint(classifier)
        if policy.startswith("hardened"):
            purifier = self.hardened(classifier, long=policy.endswith("long"))
        else:
            purifier = self.guided(classifier) if policy.startswith("guided") else self.one_step()
        return DefendedClassifier(classifier, purifier=purifier, policy="purify_all")

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


def counted(answers: list[torch.Tensor], data: ImageDataset) -> dict[str, Any]:
    """Right ones, balanced accuracy and its 95 % interval over groups; means where there are several draws."""
    rights = torch.stack([answer.cpu() == data.labels for answer in answers])
    share = rights.double().mean(0)
    low, high = balanced_interval(share, data.labels, data.groups) or (None, None)
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


SPLITS: Mapping[str, Callable[[ImageDataset, int], Parts]] = {"fold_0": fold(0), "leaking": leaking}


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
