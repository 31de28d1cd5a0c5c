"""A plugin beside the built-ins of its kind, on drawn images: seconds to a minute, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from medfedpure.bench import attacks
from medfedpure.bench.attacks import budgeted, with_gradients
from medfedpure.bench.stage import BUDGET, SMALL, STEPS, Bench, Row, Stage, build, fit, right_and_wrong, timed
from medfedpure.core.attack import Budget
from medfedpure.core.classifier import Classifier
from medfedpure.core.dataset import Dataset, ImageDataset
from medfedpure.core.detector import Detector
from medfedpure.core.errors import ConfigError, MedFedPureError
from medfedpure.core.personalization import PersonalizationStrategy
from medfedpure.core.purifier import Purifier
from medfedpure.core.registry import BUILTIN, Plugin, create, registry
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import verdicts_of
from medfedpure.defence.calibration import Calibration
from medfedpure.figures.metrics import auroc, true_positive_rate
from medfedpure.training.classification import ClassificationTask

Figures = dict[str, float | int | str]
Conditions = Callable[[Stage, Sequence[Row]], Sequence[str]]
Say = Callable[[str], None]


def run_bench(
    record: Plugin,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    images: int = 480,
    data: ImageDataset | None = None,
    budget: Budget = BUDGET,
    beside: Sequence[str] = (),
    say: Say | None = None,
) -> Bench:
    """Measure a plugin and the built-ins of its kind.

    Args:
        record: the plugin.
        options: its configuration; the built-ins take small ones.
        seed: of everything random.
        images: how many phantoms are drawn.
        data: images to measure on in place of phantoms: see `images_of`.
        budget: norm and eps of every attack.
        beside: names of its kind to compare with; by default the built-ins.
        say: told what is being measured.

    Raises:
        ConfigError: `data` for a data set, which brings its own.
        UnknownPluginError: nothing of its kind has a name of `beside`.
    """
    if record.kind == "dataset" and data is not None:
        raise ConfigError(f"{record.name} is a data set, and is measured on its own images: leave out --data")
    measure, columns, conditions = _KINDS[record.kind]
    stage, rows = Stage(seed, images, data, budget), list[Row]()
    names = beside or [other.name for other in registry().plugins(record.kind) if other.distribution == BUILTIN]
    for name in names:
        registry().get(record.kind, name)
    for name in [record.name, *(other for other in names if other != record.name)]:
        if say is not None:
            say(f"measuring {name}")
        row = Row(name)
        try:
            own = options if name == record.name else {}
            part = budgeted(name, own, budget) if record.kind == "attack" else build(record.kind, name, own)
            row.figures = measure(part, stage)
        except (MedFedPureError, ValueError, RuntimeError) as error:
            row.problem = " ".join(f"{type(error).__name__}: {error}".split())
        rows.append(row)
    facts = [] if record.kind == "dataset" else stage.facts()
    return Bench(record.kind, columns, together(rows), [*facts, *conditions(stage, rows)])


def together(rows: Sequence[Row]) -> list[Row]:
    """Rows of one threat side by side, in the order in which threats first come."""
    threats = list(dict.fromkeys(row.figures.get("threat") for row in rows))
    return sorted(rows, key=lambda row: threats.index(row.figures.get("threat")))


def _detector(part: Detector, stage: Stage) -> Figures:
    seconds, test, context = fit(part, stage), stage.parts["test"], stage.context(part)
    attacked = stage.attacked_test
    held = stage.parts["calibrate"]

    def scores(data: torch.Tensor, streams: Streams) -> torch.Tensor:
        found: torch.Tensor = part(data, context=context, streams=streams)
        return found

    calibration = Calibration.fit(timed(lambda: scores(held.images, stage.streams("scores", held)))[0], 0.05)
    benign, spent = timed(lambda: scores(test.images, stage.streams("scores", test)))
    with torch.no_grad():
        suspicious = scores(attacked.images, stage.streams("scores", test))[attacked.success]
    return {
        "AUROC": auroc(benign, suspicious),
        "TPR at 5% FPR": true_positive_rate(benign, suspicious, 0.05),
        "flagged benign": float(calibration.flagged(benign).double().mean()),
        "flagged attacked": float(calibration.flagged(suspicious).double().mean()),
        "ms an image": 1000 * spent / len(test),
        "fit s": seconds,
    }


def _purifier(part: Purifier, stage: Stage) -> Figures:
    seconds, test = fit(part, stage), stage.parts["test"]
    streams, strength, attacked_images = (
        stage.streams("purify", test),
        torch.ones(len(test)),
        stage.attacked_test.images,
    )
    (clean, attacked), spent = timed(
        lambda: [part(images, strength, streams=streams) for images in (test.images, attacked_images)]
    )
    with torch.no_grad():
        answers = [verdicts_of(stage.model, result.images) for result in (clean, attacked)]
    return {
        "clean": right_and_wrong(test.labels, answers[0], test.num_classes),
        "robust": right_and_wrong(test.labels, answers[1], test.num_classes),
        "evaluations": float(clean.nfe.double().mean()),
        "ms an image": 1000 * spent / (2 * len(test)),
        "fit s": seconds,
    }


def _classifier(part: Classifier, stage: Stage) -> Figures:
    train_component, test = stage.parts["train"], stage.parts["test"]
    model, seconds = timed(lambda: stage.trained(part, train_component))
    answers, spent = timed(lambda: verdicts_of(model, test.images))
    attacked = stage.attacked(model, test).images
    return {
        "clean": right_and_wrong(test.labels, answers, test.num_classes),
        "robust": right_and_wrong(test.labels, verdicts_of(model, attacked), test.num_classes),
        "weights": sum(weight.numel() for weight in model.parameters()),
        "ms an image": 1000 * spent / len(test),
        "fit s": seconds,
    }


def _strategy(part: PersonalizationStrategy, stage: Stage) -> Figures:
    from medfedpure.federation import Site, federate

    architecture: Classifier = create("classifier", "small_cnn", SMALL["classifier", "small_cnn"])
    sites, tests = [], {}
    for place, client in enumerate(stage.clients()):
        halves = client.split({"train": 0.6, "test": 0.4}, seed=stage.seed)
        sites.append(Site(f"client_{place}", halves["train"]))
        tests[f"client_{place}"] = halves["test"]
    data = stage.data

    def make_model() -> torch.nn.Module:
        return architecture.create_model(
            in_channels=data.image_shape[0], num_classes=data.num_classes, image_size=data.image_shape[1]
        )

    budget = TrainingConfig(steps=STEPS // 2, batch_size=16, learning_rate=5e-3)
    result, seconds = timed(
        lambda: with_gradients(
            lambda: federate(
                sites,
                make_model=make_model,
                task=ClassificationTask(),
                strategy=part,
                training=budget,
                rounds=3,
                seed=stage.seed,
            )
        )
    )
    with torch.no_grad():
        found = [
            right_and_wrong(tests[name].labels, verdicts_of(model, tests[name].images), data.num_classes)
            for name, model in result.models.items()
        ]
    sent = sum(record.bytes_up for record in result.history) / max(len(result.history) * len(sites), 1)
    return {
        "clean, mean": sum(found) / len(found),
        "clean, worst": min(found),
        "KiB up a round": sent / 1024,
        "s": seconds,
    }


def _dataset(part: Dataset, stage: Stage) -> Figures:
    data, seconds = timed(part.read)
    some = data.select(torch.arange(len(data)) % max(1, len(data) // 400) == 0)
    halves = some.split({"train": 0.6, "test": 0.4}, seed=stage.seed)
    test = halves["test"]
    architecture: Classifier = create("classifier", "small_cnn", SMALL["classifier", "small_cnn"])
    model = stage.trained(architecture, halves["train"])
    with torch.no_grad():
        found = right_and_wrong(test.labels, verdicts_of(model, test.images), data.num_classes)
    return {
        "images": len(data),
        "groups": data.num_groups,
        "classes": data.num_classes,
        "sites": int(data.sites.unique().numel()),
        "px": data.image_shape[1],
        "small_cnn": found,
        "read s": seconds,
    }


def _robust(stage: Stage) -> list[str]:
    return [stage.threat(), "clean, robust: balanced accuracy on benign and on attacked test images"]


def _shares(stage: Stage) -> str:
    if stage.given is None:
        return "three clients, one scanner each"
    if stage.has_sites:
        return "three clients of whole sites"
    return "three clients, shares of each class drawn from Dirichlet(1), as fewer than three sites are known"


def _of_detectors(stage: Stage, _: Sequence[Row]) -> list[str]:
    test, fooled = stage.parts["test"], int(stage.attacked_test.success.sum())
    right = right_and_wrong(test.labels, verdicts_of(stage.model, test.images), test.num_classes)
    return [
        stage.threat(),
        f"{len(test)} benign test images and the {fooled} of their attacked ones that fool small_cnn, whose clean "
        f"balanced accuracy is {right:.3f}; flagged: at a threshold calibrated to 5 % on "
        f"{len(stage.parts['calibrate'])} others",
    ]


_KINDS: dict[
    str, tuple[Callable[[Any, Stage], Figures], tuple[str, ...], Callable[[Stage, Sequence[Row]], Sequence[str]]]
] = {
    "detector": (
        _detector,
        ("AUROC", "TPR at 5% FPR", "flagged benign", "flagged attacked", "ms an image", "fit s"),
        _of_detectors,
    ),
    "purifier": (
        _purifier,
        ("clean", "robust", "evaluations", "ms an image", "fit s"),
        lambda stage, _: [
            *_robust(stage),
            "every image purified at strength 1; evaluations: of a network, for each image",
        ],
    ),
    "attack": (attacks.measure, attacks.COLUMNS, attacks.conditions),
    "classifier": (
        _classifier,
        ("clean", "robust", "weights", "ms an image", "fit s"),
        lambda stage, _: [*_robust(stage), f"each trained for {STEPS} steps of 16 images, and attacked itself"],
    ),
    "personalization": (
        _strategy,
        ("clean, mean", "clean, worst", "KiB up a round", "s"),
        lambda stage, _: [
            f"{_shares(stage)}; small_cnn, 3 rounds, {STEPS // 2} steps of 16 images at each; clean: "
            "balanced accuracy of the personal models on held-out images of their client, benign ones"
        ],
    ),
    "dataset": (
        _dataset,
        ("images", "groups", "classes", "sites", "px", "small_cnn", "read s"),
        lambda *_: [
            f"small_cnn: its balanced accuracy after {STEPS} steps of 16 of at most about 400 images, split by group"
        ],
    ),
}
