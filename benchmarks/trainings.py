"""What group positives and synthetic images are worth on phantoms: `python -m benchmarks.trainings --out FILE.json`.

Two questions, each by plain and by adversarial training, with equal steps in all arms, and accuracy on other patients,
clean and attacked:

- groups: patients of several views each. Shuffled batches; batches in which views of a patient stand together
  (`Partnered`), which is what the loss needs and may matter by itself; and the loss (`GroupPositives`).
- samples: patients of one view each. As they are, and with as many images again that a class-conditional diffusion
  model drew, which was trained on the same images and checked against the test part.

Drawn images, small networks and few patients: they show what the functions do, not what they gain in a hospital.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medfedpure import ImageDataset, Streams, TrainingConfig, create, train
from medfedpure.core.attack import Attack
from medfedpure.core.settings import AdversarialTraining, Augmentation, GroupPositives
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import BatchSampler, Task
from medfedpure.data.augmentation import augment
from medfedpure.data.synthetic import augment_with_samples
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.group_positives import with_group_positives
from medfedpure.training.group_sampling import Partnered

PHANTOM = {"image_size": 32, "lesion_contrast": 1.6, "lesion_size": 1.3, "scanner_shift": 0.3}
VIEWS, VARIED = 4, Augmentation(shift=2, rotation=12, stretch=0.1, intensity=0.2, rician=0.02)
PATIENTS = {"groups": 48, "samples": 96}
TESTED = 240
FIRST_SEED = 10
"""The difficulty of the images and the length of the training were chosen on the seeds 0 to 2."""
CLASSIFIER = {"widths": (8, 16, 32)}
TRAINING = TrainingConfig(steps=200, batch_size=32, learning_rate=5e-3)
HARDENED = AdversarialTraining(share=0.5, eps=0.02, step=0.008, steps=4)
ATTACK = {"norm": "linf", "eps": 0.02, "step": 0.004, "steps": 20}
POSITIVES = GroupPositives(weight=0.5)
DIFFUSION = {
    "model": {"widths": (32, 64)},
    "training": {"steps": 500, "batch_size": 16, "learning_rate": 2e-3, "ema": 0.99},
    "generation": {"steps": 25},
}

Row = dict[str, float]


def data_of(question: str, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """Training and test images of different patients; the training images in several views for `groups`."""
    patients = PATIENTS[question]
    drawn = create("dataset", "phantom", images=patients + TESTED, seed=seed, **PHANTOM).read()
    drawn = replace(drawn, masks=None)
    train_part, test = drawn.select(torch.arange(patients)), drawn.select(torch.arange(patients, len(drawn)))
    if question == "samples":
        return train_part, test
    views = []
    for number in range(VIEWS):
        own = replace(train_part, ids=train_part.ids + 10_000 * (number + 1))
        images = augment(own.images, VARIED, Streams(derive_seed(seed, "view"), own.ids))
        views.append(replace(own, pixels=images.mul(255).round().to(torch.uint8)))
    return ImageDataset.concatenate(views), test


def measured(task: Task, data: ImageDataset, test: ImageDataset, seed: int, sampler: BatchSampler | None) -> Row:
    """Accuracies of a classifier that was trained so, in percent."""
    model = create("classifier", "small_cnn", CLASSIFIER).create_model(
        in_channels=1, num_classes=2, image_size=PHANTOM["image_size"], class_names=data.class_names, seed=seed
    )
    train(model, task, data, TRAINING, seed=seed, sampler=sampler)
    attack: Attack = create("attack", "pgd_eot", ATTACK)
    images, labels = test.images, test.labels
    attacked = attack(model, images, labels, streams=Streams(seed, test.ids)).images
    with torch.no_grad():
        clean, robust = ((model(given).argmax(1) == labels).float().mean() for given in (images, attacked))
    return {"clean": 100 * float(clean), "attacked": 100 * float(robust)}


def groups(seed: int) -> dict[str, Row]:
    """By arm."""
    data, test = data_of("groups", seed)
    plain = ClassificationTask()
    pulled = with_group_positives(plain, POSITIVES, data)
    arms: Mapping[str, tuple[Task, BatchSampler | None]] = {
        "plain": (plain, None),
        "plain, partnered batches": (plain, Partnered()),
        "plain, group positives": (pulled, None),
        "adversarial": (AdversarialTask(plain, HARDENED, plain), None),
        "adversarial, partnered batches": (AdversarialTask(plain, HARDENED, plain), Partnered()),
        "adversarial, group positives": (AdversarialTask(pulled, HARDENED, plain), None),
    }
    return {name: measured(task, data, test, seed, sampler) for name, (task, sampler) in arms.items()}


def samples(seed: int) -> dict[str, Row]:
    """By arm, and what became of the samples."""
    data, test = data_of("samples", seed)
    model = create("purifier", "class_ddpm", DIFFUSION).fit(data, seed=seed)
    more, report = augment_with_samples(data, model, share=1.0, against={"test": test}, seed=seed)
    plain = ClassificationTask()
    hardened = AdversarialTask(plain, HARDENED, plain)
    found = {
        "plain": measured(plain, data, test, seed, None),
        "plain, samples": measured(plain, more, test, seed, None),
        "adversarial": measured(hardened, data, test, seed, None),
        "adversarial, samples": measured(hardened, more, test, seed, None),
    }
    counts = {"added": report.added, "drawn": report.drawn, "near_training": report.near_training}
    return {**found, "drawn images": {**counts, "refused": sum(report.refused.values())}}


def table(runs: list[dict[str, Row]]) -> list[str]:
    """Means over seeds, with every seed."""
    lines = []
    for arm, columns in runs[0].items():
        each = {column: [run[arm][column] for run in runs] for column in columns}
        words = (
            f"{column} {statistics.mean(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"
            for column, values in each.items()
        )
        lines.append(f"  {arm:<32} {'; '.join(words)}")
    return lines


def main(arguments: list[str]) -> int:
    """Measure, print, and write everything down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    parser.add_argument("--seeds", type=int, default=3, help="how many, of data and weights alike")
    parser.add_argument("--only", choices=("groups", "samples"), help="one of the two questions")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    questions: Mapping[str, Callable[[int], dict[str, Row]]] = {"groups": groups, "samples": samples}
    document: dict[str, Any] = {
        "phantom": PHANTOM,
        "patients": PATIENTS,
        "views": VIEWS,
        "tested": TESTED,
        "classifier": CLASSIFIER,
        "training": TRAINING.model_dump(mode="json"),
        "adversarial_training": HARDENED.model_dump(mode="json"),
        "attack": create("attack", "pgd_eot", ATTACK).describe() + ", gradient exact, on the classifier itself, EoT 1",
        "group_positives": POSITIVES.model_dump(mode="json"),
        "diffusion": DIFFUSION,
    }
    for question, measure in questions.items():
        if chosen.only in (None, question):
            start = time.perf_counter()
            runs = [measure(seed) for seed in range(FIRST_SEED, FIRST_SEED + chosen.seeds)]
            document[question] = {"runs": runs, "seconds": round(time.perf_counter() - start, 1)}
            print(f"{question}, percent, mean over seeds (each), {document[question]['seconds']} s:")
            print("\n".join(table(runs)), flush=True)
            chosen.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(f"attacked: {document['attack']}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
