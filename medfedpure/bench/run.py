"""A plugin beside the built-ins of its kind, on drawn images: seconds to a minute, one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from medfedpure.bench.stage import SMALL, STEPS, Bench, Row, Stage, build, fit, right_and_wrong, timed
from medfedpure.core.attack import Attack, ThreatView
from medfedpure.core.classifier import Classifier
from medfedpure.core.dataset import Dataset
from medfedpure.core.detector import Detector
from medfedpure.core.errors import MedFedPureError
from medfedpure.core.personalization import PersonalizationStrategy
from medfedpure.core.purifier import Purifier
from medfedpure.core.registry import BUILTIN, Plugin, create, registry
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import fooled, verdicts_of
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.views import detector_view
from medfedpure.figures.metrics import auroc, true_positive_rate
from medfedpure.training.classification import ClassificationTask

Figures = dict[str, float | int | str]
Say = Callable[[str], None]


def run_bench(
    record: Plugin,
    options: Mapping[str, Any],
    *,
    seed: int = 0,
    images: int = 480,
    beside: Sequence[str] = (),
    say: Say | None = None,
) -> Bench:
    """Measure a plugin and the built-ins of its kind.

    Args:
        record: the plugin.
        options: its configuration; the built-ins take small ones.
        seed: of everything random.
        images: how many phantoms are drawn.
        beside: names of its kind to compare with; by default the built-ins.
        say: told what is being measured.
    """
    measure, columns, conditions = _KINDS[record.kind]
    stage, rows = Stage(seed, images), []
    names = beside or [other.name for other in registry().plugins(record.kind) if other.distribution == BUILTIN]
    for name in names:
        registry().get(record.kind, name)
    for name in [record.name, *(other for other in names if other != record.name)]:
        if say is not None:
            say(f"measuring {name}")
        row = Row(name)
        try:
            row.figures = measure(build(record.kind, name, record.name, options), stage)
        except (MedFedPureError, ValueError, RuntimeError) as error:
            row.problem = " ".join(f"{type(error).__name__}: {error}".split())
        rows.append(row)
    facts = [] if record.kind == "dataset" else stage.facts()
    return Bench(record.kind, columns, rows, [*facts, *conditions(stage)])


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


def _attack(part: Attack, stage: Stage) -> Figures:
    test = stage.parts["test"]
    read = test.select(~fooled(verdicts_of(stage.model, test.images), test.labels))
    some = read.select(torch.arange(len(read)) < 24)
    view = _seeing(stage) if part.requires & {"score", "threshold"} else ThreatView(stage.model)
    if "features" in part.requires:
        view.features = stage.model.features
    streams = stage.streams("attack", some)
    if not part.fitted:
        part.fit(stage.parts["train"], view=view, seed=stage.seed)
    result, spent = timed(lambda: _with_gradients(lambda: part(view, some.images, some.labels, streams=streams)))
    change = (result.images - some.images).flatten(1)
    budget = part.budget()
    return {
        "fooled": float(result.success.double().mean()),
        "mean linf": float(change.abs().amax(1).mean()),
        "mean l2": float(change.norm(dim=1).mean()),
        "budget": "none" if budget is None else f"{budget.norm} {budget.eps:.3g}",
        "ms an image": 1000 * spent / len(some),
    }


def _seeing(stage: Stage) -> ThreatView:
    """The bare classifier beside the score of a detector that is differentiable and quickly fitted."""
    detector = create("detector", "mahalanobis")
    fit(detector, stage)
    chain = DefendedClassifier(stage.model, detector=detector, policy="none")
    return detector_view(chain.calibrate(stage.parts["calibrate"], 0.05, seed=stage.seed))


def _with_gradients(call: Callable[[], Any]) -> Any:
    with torch.enable_grad():
        return call()


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
    for place, client in enumerate(stage.data.partition(3, by="site", seed=stage.seed)):
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
        lambda: _with_gradients(
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


def _of_detectors(stage: Stage) -> list[str]:
    test, fooled = stage.parts["test"], int(stage.attacked_test.success.sum())
    right = right_and_wrong(test.labels, verdicts_of(stage.model, test.images), test.num_classes)
    return [
        stage.threat(),
        f"{len(test)} benign test images and the {fooled} of their attacked ones that fool small_cnn, whose clean "
        f"balanced accuracy is {right:.3f}; flagged: at a threshold calibrated to 5 % on "
        f"{len(stage.parts['calibrate'])} others",
    ]


def _of_attacks(_: Stage) -> list[str]:
    return [
        "fooled: share of at most 24 test images, all read correctly by the bare small_cnn, on which the attack "
        "succeeds; static view, no defence; beside it an attack that needs a score sees that of mahalanobis",
        "linf and l2: mean size of all changes in [0, 1] units; every result was audited against its budget; "
        "compare rows of one budget only",
    ]


_KINDS: dict[str, tuple[Callable[[Any, Stage], Figures], tuple[str, ...], Callable[[Stage], Sequence[str]]]] = {
    "detector": (
        _detector,
        ("AUROC", "TPR at 5% FPR", "flagged benign", "flagged attacked", "ms an image", "fit s"),
        _of_detectors,
    ),
    "purifier": (
        _purifier,
        ("clean", "robust", "evaluations", "ms an image", "fit s"),
        lambda stage: [
            *_robust(stage),
            "every image purified at strength 1; evaluations: of a network, for each image",
        ],
    ),
    "attack": (_attack, ("fooled", "mean linf", "mean l2", "budget", "ms an image"), _of_attacks),
    "classifier": (
        _classifier,
        ("clean", "robust", "weights", "ms an image", "fit s"),
        lambda stage: [*_robust(stage), f"each trained for {STEPS} steps of 16 images, and attacked itself"],
    ),
    "personalization": (
        _strategy,
        ("clean, mean", "clean, worst", "KiB up a round", "s"),
        lambda _: [
            f"three clients, one scanner each; small_cnn, 3 rounds, {STEPS // 2} steps of 16 images at each; clean: "
            "balanced accuracy of the personal models on held-out images of their client, benign ones"
        ],
    ),
    "dataset": (
        _dataset,
        ("images", "groups", "classes", "sites", "px", "small_cnn", "read s"),
        lambda _: [
            f"small_cnn: its balanced accuracy after {STEPS} steps of 16 of at most about 400 images, split by group"
        ],
    ),
}
