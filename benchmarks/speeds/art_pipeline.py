"""ART's own defences around one classifier beside our chain: what each keeps of the throughput, and of the accuracy.

Classifier and diffusion model are trained here for about a minute each, on phantoms. The attack is static: PGD on the
bare classifier, which knows of no defence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from art.defences.detector.evasion import BinaryInputDetector
from art.defences.preprocessor import JpegCompression, SpatialSmoothing
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

import medfedpure
from benchmarks.speeds.made import SHARE, bare, gated, phantoms, trained
from benchmarks.speeds.timing import Setting, paired
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.verdict import ABSTAINED, verdicts
from medfedpure.defence.calibration import Calibration
from medfedpure.figures.balanced import balanced, balanced_interval

ATTACK = {"norm": "linf", "eps": 0.015, "step": 0.003, "steps": 7}
TRAFFIC = 40
EPOCHS = 6
"""Of ART's detector, on as many attacked images as benign ones."""
Reader = Callable[[Tensor], Tensor]


def pipelines(setting: Setting) -> dict[str, Any]:
    """A row each: undefended, two of ART's, our chain; throughput kept, balanced accuracy, refused."""
    size = setting.sizes[0]
    parts = phantoms(120 if setting.quick else 600, size, seed=0).split({"fit": 0.7, "calibrate": 0.15, "test": 0.15})
    steps = 2 if setting.quick else 60
    model = trained("resnet18", parts["fit"], steps, setting.device, stem="medium")
    attack = medfedpure.create("attack", "pgd_eot", **ATTACK, early_stop=False)
    test = parts["test"].one_per_group()
    images, labels = test.images.to(setting.device), test.labels
    made = attack(model, images, labels.to(setting.device)).images
    readers = _readers(model, parts, attack, steps, setting)
    traffic = images[: setting.of(TRAFFIC, TRAFFIC, 8)]
    alone = bare(model, traffic, 64, "off")
    rows = []
    for name, read in readers.items():
        kept = paired(alone, lambda read=read: read(traffic), setting, 3)  # type: ignore[misc]
        rows.append({"defence": name, "kept": kept, **_judged(read, images, made, labels, test)})
    return {
        "size": size,
        "classifier": "ResNet-18",
        "steps": steps,
        "attack": ATTACK,
        "tested": len(test),
        "rows": rows,
    }


def _judged(read: Reader, images: Tensor, made: Tensor, labels: Tensor, test: ImageDataset) -> dict[str, Any]:
    """Balanced accuracy and what is refused, benign and attacked; a refusal counts as an error."""
    row: dict[str, Any] = {}
    for kind, given in (("benign", images), ("attacked", made)):
        answers = read(given).cpu()
        right = answers == labels
        interval = balanced_interval(right, labels, test.groups)
        row[kind] = {
            "balanced": round(balanced(right, labels), 4),
            "low": None if interval is None else round(interval[0], 4),
            "high": None if interval is None else round(interval[1], 4),
            "refused": round(float((answers == ABSTAINED).double().mean()), 4),
        }
    return row


def _readers(
    model: Any, parts: dict[str, ImageDataset], attack: Any, steps: int, setting: Setting
) -> dict[str, Reader]:
    """What answers a class, or that it abstains, for every image."""
    fit, device = parts["fit"], setting.device
    shape = fit.image_shape

    def undefended(given: Tensor) -> Tensor:
        with torch.no_grad():
            return verdicts(torch.cat([model(batch) for batch in given.split(64)]))

    # ART's estimator takes one of these; a second is "not supported".
    cleaned = {
        "SpatialSmoothing, 3 x 3": SpatialSmoothing(window_size=3, channels_first=True, clip_values=(0, 1)),
        "JpegCompression, quality 50": JpegCompression(clip_values=(0, 1), quality=50, channels_first=True),
    }
    estimators = {name: _estimator(model, shape, device, [defence]) for name, defence in cleaned.items()}
    plain = _estimator(model, shape, device)
    watcher = BinaryInputDetector(_learned(fit, model, attack, setting))

    def refusing(given: Tensor) -> Tensor:
        pixels = given.cpu().numpy()
        _, suspicious = watcher.detect(pixels, batch_size=64)
        return _by_art(plain, given).masked_fill(torch.from_numpy(suspicious), ABSTAINED)

    own = {"steps": steps if setting.quick else 150, "batch_size": 16, "learning_rate": 2e-3, "ema": 0.99}
    cleaner = medfedpure.create("purifier", "ddpm", training=own).to(device)
    cleaner.fit(fit, seed=0)
    chain = gated(model, cleaner, "compose", {}, fit.select(torch.arange(min(len(fit), 100))), "off")
    chain.calibration = Calibration.fit(chain.score_benign(parts["calibrate"]), SHARE, allow_never_flagging=True)
    return {
        "undefended": undefended,
        **{f"ART: {name}": partial(_by_art, estimator) for name, estimator in estimators.items()},
        "ART: BinaryInputDetector, what it flags is refused": refusing,
        "medfedpure: `compose` and `ddpm`, what is flagged is purified": lambda given: (
            chain.predict(given, seed=0).labels
        ),
    }


def _by_art(estimator: PyTorchClassifier, given: Tensor) -> Tensor:
    return torch.from_numpy(estimator.predict(given.cpu().numpy(), batch_size=64).argmax(1))


def _estimator(
    model: nn.Module, shape: tuple[int, ...], device: str, defences: list[Any] | None = None, lr: float | None = None
) -> PyTorchClassifier:
    return PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        shape,
        nb_classes=2,
        clip_values=(0, 1),
        preprocessing_defences=defences,
        optimizer=None if lr is None else torch.optim.Adam(model.parameters(), lr=lr),
        device_type="gpu" if device == "cuda" else "cpu",
    )


def _learned(fit: ImageDataset, model: nn.Module, attack: Any, setting: Setting) -> PyTorchClassifier:
    """A small network that learned to tell attacked images from benign ones, as ART's detector wants it."""
    some = fit.select(torch.arange(min(len(fit), 8 if setting.quick else 100)))
    benign = some.images.to(setting.device)
    both = torch.cat((benign, attack(model, benign, some.labels.to(setting.device)).images)).cpu().numpy()
    truth = np.repeat(np.arange(2), len(some))
    network = medfedpure.create("classifier", "small_cnn").create_model(
        in_channels=1, num_classes=2, image_size=fit.image_shape[-1], seed=0
    )
    learned = _estimator(network.to(setting.device), fit.image_shape, setting.device, lr=2e-3)
    learned.fit(both, truth, batch_size=32, nb_epochs=1 if setting.quick else EPOCHS)
    network.eval()
    return learned
