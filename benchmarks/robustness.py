"""The whole ladder against seven defences: `python -m benchmarks.robustness --data FOLDER`.

The folds, classifiers and diffusion models are those of `benchmarks.purification`, in the same folder, and nothing is
trained twice. Beside each classifier stands one that was trained further on adversarial examples. As many folds as the
preset needs, or those that are named, share its images, one for each near-duplicate group of their test parts; all
defences of a fold are attacked on the same ones. What all attacks take is printed before the first of them. Every
finished rung is kept, so a run that was stopped goes on; the table is drawn from these folds, and from those in the
results.json of an earlier run, which may be another machine's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.folds import ADAPTED, Fold, add_arguments, open_data, prepare, progress
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.detector import ScoreContext
from medfedpure.core.settings import AdversarialTraining, TrainingConfig
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cost import foresee
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.ladder import PRESETS, preset_of
from medfedpure.evaluation.merge import merge
from medfedpure.evaluation.records import Evaluation
from medfedpure.reporting.evaluation.files import write_report
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import markdown
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

ARMS = (
    "undefended",
    "median filter, all",
    "purify all",
    "detector only",
    "full chain",
    "adversarially trained",
    "adversarially trained + chain",
)
FROM_A_FOLD = 34
"""Images that a fold is asked for, where none is named: few folds are taken, since each costs a training."""
ADVERSARIAL = AdversarialTraining(share=1.0, eps=0.015, step=0.0075, steps=3)
"""With 8/255 a classifier of so few images unlearns to read the benign ones."""


def adversarially_trained(fold: Fold, steps: int) -> ClassifierModel:
    """The fold's classifier after further steps on adversarial examples only; trained once."""
    folder = fold.folder / f"adversarial_{steps}"
    if not folder.exists():
        model = ClassifierModel.load(fold.folder / "classifier").requires_grad_(True)
        plain = ClassificationTask(fold.augmentation)
        task = AdversarialTask(plain, ADVERSARIAL, plain)
        budget = TrainingConfig(steps=steps, batch_size=32, learning_rate=5e-4, ema=0.98, precision="bfloat16")
        checkpoint = fold.folder / f"adversarial_{steps}_checkpoint"
        train(model, task, fold.parts["train"], budget, seed=fold.seed, description="robust", checkpoint=checkpoint)
        model.eval().save(folder)
    return ClassifierModel.load(folder).to(memory_format=torch.channels_last)


def defences(
    fold: Fold, robust: Callable[[], ClassifierModel], speed: Acceleration
) -> dict[str, Callable[[], DefendedClassifier]]:
    """The arms of the table, each made when it is wanted and calibrated on the fold's own part."""
    plain = fold.classifier

    def guarded(classifier: ClassifierModel, policy: Any) -> DefendedClassifier:
        detector, purifier = medfedpure.create("detector", "compose"), _purifier(fold)
        context = ScoreContext(classifier, classifier.features, purifier)
        detector.fit(fold.parts["train"], context=context, seed=fold.seed)
        chain = DefendedClassifier(classifier, detector=detector, purifier=purifier, policy=policy).accelerate(speed)
        chain.calibration = Calibration.fit(chain.score_benign(fold.parts["calibrate"], seed=fold.seed), 0.05)
        return chain

    def purified() -> DefendedClassifier:
        return DefendedClassifier(plain, purifier=_purifier(fold), policy="purify_all").accelerate(speed)

    median = medfedpure.create("purifier", "median")
    return {
        "undefended": lambda: DefendedClassifier(plain, policy="none"),
        "median filter, all": lambda: DefendedClassifier(plain, purifier=median, policy="purify_all"),
        "purify all": purified,
        "detector only": lambda: guarded(plain, "abstain"),
        "full chain": lambda: guarded(plain, "purify_flagged"),
        "adversarially trained": lambda: DefendedClassifier(robust(), policy="none"),
        "adversarially trained + chain": lambda: guarded(robust(), "purify_flagged"),
    }


def beside(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of all defences that were attacked each for itself, on the same images."""
    digests = {name: digest for part in parts for name, digest in part.setting["arms"].items()}
    peaks = [part.peak_memory_mb for part in parts if part.peak_memory_mb is not None]
    update = {
        "arms": [arm for part in parts for arm in part.arms],
        "setting": {**parts[0].setting, "arms": digests},
        "gradients": sum(part.gradients for part in parts),
        "seconds": sum(part.seconds for part in parts),
        "peak_memory_mb": max(peaks, default=None),
    }
    return parts[0].model_copy(update=update)


def _purifier(fold: Fold) -> Any:
    purifier: Any = medfedpure.create("purifier", "ddpm", save_memory=False)
    return purifier.adopt(fold.denoiser.network, fold.parts["train"].image_shape)


def main() -> None:
    """Evaluate what is missing, print the table of all folds that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(**ADAPTED)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="standard")
    parser.add_argument("--eps", nargs="+", type=float, default=[0.015, 8 / 255])
    parser.add_argument("--images", type=int, help="over all folds; the preset's otherwise")
    parser.add_argument("--robust-steps", type=int, default=300, help="adversarial training steps")
    precisions = ("bfloat16", "float32")
    parser.add_argument("--precision", choices=precisions, default=precisions[0], help="of arms with a diffusion model")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--report", type=Path, help="folder for the page, the tables and every number")
    parser.add_argument("--merge", nargs="+", type=Path, default=[], help="results.json of other folds")
    given = parser.parse_args()
    say = progress()
    data, setting = open_data(given)
    speed = Acceleration(autocast=given.precision == "bfloat16")
    preset = preset_of(given.preset)
    wanted = given.images or preset.images
    folds = given.only or range(min(given.folds, -(-wanted // FROM_A_FOLD)))
    share = -(-wanted // len(folds))
    preset = replace(preset, images=share, checked=-(-preset.checked * share // preset.images))
    found = [Evaluation.model_validate_json(path.read_text(encoding="utf-8")) for path in given.merge]
    for number in folds:
        fold = prepare(setting, data, number, given.out, say)
        makers = defences(fold, lambda fold=fold: adversarially_trained(fold, given.robust_steps), speed)
        arms, test = {name: makers[name]() for name in given.arms}, fold.parts["test"]
        if number == folds[0]:
            images = choose(test, share, fold.seed).images
            cost = foresee(arms.values(), images, preset, "linf", given.eps, {}, seed=fold.seed)
            say(f"attacks on {len(arms)} defences, {len(folds)} fold(s): {cost * len(folds)}")
        parts = []
        for name, chain in arms.items():
            out = fold.folder / f"ladder_{preset.name}_{share}_{given.precision}" / name.replace(" ", "_")
            parts.append(evaluate({name: chain}, test, preset=preset, eps=given.eps, out=out, seed=fold.seed, say=say))
        found.append(beside(parts))
    merged = merge(found)
    if given.report is not None:
        write_report(merged, given.report, headline="full chain" if "full chain" in given.arms else None)
    print(markdown(summarize(merged)))


if __name__ == "__main__":
    main()
