"""What a cascade saves, and that it changes no count: `python -m benchmarks.cascade [--eps EPS ...]`.

Drawn images, and networks trained here for a few steps. Every defence is evaluated by itself, once by the whole ladder
and once by the cascade, with equal seeds. A gradient evaluation is one image that passes the classifier with a
gradient; of a defence that purifies some images these are up to two. Those of the self-checks are equal in both and
are counted apart.

An image that nothing fells meets every step of every attack, with a cascade and without: what such survivors take is
the least that any order of attacks can cost. How much that is for one image is counted at an eps too small to fell any.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import medfedpure
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.settings import AdversarialTraining, TrainingConfig
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.records import Evaluation
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

EPS = (0.03, 0.06)
PRESET = Preset("short", 30, 8, 2, 1, 3, 20, 6, "a benchmark, no claim", True)
NOTHING = 1e-4
CHECKS = ("static, ", "exact, ")


@dataclass
class Counted:
    """Gradient evaluations of a classifier, by the attack that took them."""

    rows: Counter[str] = field(default_factory=Counter)
    now: str = ""

    def say(self, text: str) -> None:
        """What begins."""
        self.now = text.partition(": ")[2]

    def passed(self, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """A hook of the classifier."""
        del model
        if torch.is_grad_enabled() and inputs[0].requires_grad:
            self.rows["checks" if self.now.startswith(CHECKS) else "attacks"] += len(inputs[0])


def trained(data: ImageDataset, *, robust: bool) -> ClassifierModel:
    """A small classifier, adversarially trained where asked."""
    model = medfedpure.create("classifier", "small_cnn").create_model(in_channels=1, num_classes=2, image_size=32)
    plain = ClassificationTask()
    task = AdversarialTask(plain, AdversarialTraining(share=1.0, eps=0.015, step=0.0075, steps=3), plain)
    train(model, task if robust else plain, data, TrainingConfig(steps=300, batch_size=32), seed=0)
    return model.eval().requires_grad_(False)


def defences(parts: dict[str, ImageDataset]) -> dict[str, DefendedClassifier]:
    """Undefended, adversarially trained, and the chain of the paper."""
    model = trained(parts["train"], robust=False)
    sampling, short = {"num_inference_steps": 2}, {"steps": 300, "batch_size": 16}
    purifier = medfedpure.create("purifier", "ddpm", sampling=sampling, model={"widths": [8, 16]}, training=short)
    purifier.fit(parts["train"], seed=0)
    detector = medfedpure.create("detector", "denoising_disagreement")
    chain = DefendedClassifier(model, detector=detector, purifier=purifier).calibrate(parts["benign"], 0.05)
    return {
        "undefended": DefendedClassifier(model, policy="none"),
        "adversarially trained": DefendedClassifier(trained(parts["train"], robust=True), policy="none"),
        "full chain": chain,
    }


def counted(
    name: str, chain: DefendedClassifier, data: ImageDataset, eps: Sequence[float], *, cascade: bool
) -> tuple[Evaluation, Counted]:
    """One evaluation of one defence."""
    found = Counted()
    handle = chain.classifier.register_forward_pre_hook(found.passed)
    try:
        made = evaluate({name: chain}, data, preset=PRESET, eps=eps, cascade=cascade, say=found.say)
    finally:
        handle.remove()
    return made, found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eps", type=float, action="append", help="linf; again for more")
    eps = parser.parse_args().eps or EPS
    torch.set_num_threads(1)
    options = {"images": 720, "image_size": 32, "lesion_contrast": 2.0}
    data = medfedpure.create("dataset", "phantom", options).read()
    parts = data.split({"train": 0.6, "benign": 0.2, "test": 0.2})
    print(f"{PRESET.describe()}; {PRESET.images} images, {PRESET.checked} of them meet every attack; linf, eps {eps}")
    print(
        "| defence | right: ladder | right: cascade | gradients: ladder | cascade | survivors alone | cascade / ladder "
        "| survivors / ladder | of the checks, in both |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, chain in defences(parts).items():
        whole, part = (counted(name, chain, parts["test"], eps, cascade=cascade) for cascade in (False, True))
        unfelled, full = counted(name, chain, parts["test"], [NOTHING * size for size in eps], cascade=False)
        each = full.rows["attacks"] / sum(line.right for line in summarize(unfelled).lines[1:])
        right = [[line.right for line in summarize(found).lines] for found, _ in (whole, part)]
        one, two, least = whole[1].rows["attacks"], part[1].rows["attacks"], each * sum(right[0][1:])
        cells = [name, *(" / ".join(str(count) for count in row) for row in right)]
        cells += [f"{count:,.0f}" for count in (one, two, least)] + [f"{two / one:.2f}", f"{least / one:.2f}"]
        print("| " + " | ".join([*cells, f"{part[1].rows['checks']:,}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
