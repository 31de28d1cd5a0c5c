"""Detectors side by side on a folder of images: `python -m benchmarks.detection --data FOLDER --out DIR`.

The images are divided into grouped folds, and every image is tested once. For each fold, on the other
folds: a classifier, a diffusion model and a masked autoencoder are trained, and every detector is
calibrated at 5 % false positives. Then static attacks on the bare classifier are scored, those that
succeeded against an image that was classified correctly. A fold that DIR already holds is not computed
again, so a long run can be continued; the table is drawn from all folds in DIR.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import medfedpure
from benchmarks.detection_table import markdown
from medfedpure.core.calibration import Calibration
from medfedpure.core.classifier import ClassificationTask, ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.metrics import classification_figures
from medfedpure.core.storage import write_json
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.training import TrainingConfig, train

EPS = 0.015
APGD = {"eps_step": 0.003, "max_iter": 20, "nb_random_init": 1, "batch_size": 64}
CARLINI = {"max_iter": 10, "binary_search_steps": 3, "batch_size": 64}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {"norm": "linf", "eps": EPS, "step": 0.003, "steps": 7}),
    "fgsm": ("fgsm", {"norm": "linf", "eps": EPS}),
    "apgd": ("art", {"attack": "AutoProjectedGradientDescent", "eps": EPS, "options": APGD}),
    "carlini l2": ("art", {"attack": "CarliniL2Method", "norm": "l2", "eps": None, "options": CARLINI}),
}
AT_MOST = {"apgd": 128, "carlini l2": 64}
CONTROL = "uniform noise"
MAE_KINDS = ("reconstruction", "prediction_shift")
UNFITTED: dict[str, tuple[str, dict[str, Any]]] = {
    "denoising_disagreement t20 x1": ("denoising_disagreement", {"timestep": 20, "steps": 1}),
    "denoising_disagreement t40 x3": ("denoising_disagreement", {"timestep": 40, "steps": 3}),
    "feature_squeezing": ("feature_squeezing", {}),
    "mahalanobis": ("mahalanobis", {}),
}
NOISE_SEEDS = 3


@dataclass(frozen=True)
class Budget:
    """Training steps; of 32 images for the classifier, 16 for the diffusion model, 64 for the autoencoder."""

    classifier: int
    denoiser: int
    autoencoder: int


@dataclass(frozen=True)
class Setting:
    """What is measured, stored with every fold: folds of different settings are not mixed."""

    data: str
    size: int
    classifier: str
    folds: int
    max_per_group: int
    seed: int
    budget: Budget
    attacks: str


def run_fold(setting: Setting, data: ImageDataset, number: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the table needs of one fold, as plain values."""
    folds = data.split({f"fold{place}": 1 / setting.folds for place in range(setting.folds)}, seed=setting.seed)
    test = folds.pop(f"fold{number}")
    rest = ImageDataset.concatenate(list(folds.values()))
    parts = rest.split({"train": 0.75, "calibrate": 0.25}, seed=derive_seed(setting.seed, "parts", number))
    seed = derive_seed(setting.seed, "fold", number)
    say(f"fold {number}: {len(parts['train'])} to train, {len(parts['calibrate'])} to calibrate, {len(test)} to test")
    model = _classifier(setting, parts["train"], seed)
    say("diffusion model")
    denoiser = _denoiser(setting, parts["train"], seed)
    context = ScoreContext(model, model.features, denoiser)
    say("detectors")
    detectors = _detectors(setting, parts["train"], context, seed)

    say("attacks")
    images, labels = test.images, test.labels
    with torch.no_grad():
        verdicts = torch.cat([model(batch.images).argmax(1) for batch in test.batches(64)])
    right = torch.nonzero(verdicts == labels).squeeze(1)
    inputs = {"benign": (images, torch.arange(len(test)))}
    tried: dict[str, str] = {}
    success: dict[str, float] = {}
    for name, (plugin, options) in ATTACKS.items():
        attack = medfedpure.create("attack", plugin, **options)
        tested = right[: AT_MOST.get(name)]
        result = attack(model, images[tested], labels[tested], streams=Streams(seed, test.ids[tested]))
        success[name] = float(result.success.double().mean())
        inputs[name] = (result.images[result.success], tested[result.success])
        tried[name] = attack.describe()
    noise = EPS * (2 * Streams(seed, test.ids).uniform(images.shape[1:], stage="control") - 1)
    inputs[CONTROL] = ((images + noise).clamp(0, 1), torch.arange(len(test)))

    say("scores")
    rows = {
        name: _scores(detector, context, parts["calibrate"], test, inputs, seed) for name, detector in detectors.items()
    }
    for name, share in _throughput(detectors, model, context, images[:32]).items():
        rows[name]["throughput"] = share
    return {
        "setting": asdict(setting),
        "fold": number,
        "attacks": tried,
        "clean_balanced_accuracy": classification_figures(verdicts, labels, data.num_classes).balanced_accuracy,
        "success": success,
        "groups": {name: test.groups[place].tolist() for name, (_, place) in inputs.items()},
        "detectors": rows,
    }


def _classifier(setting: Setting, data: ImageDataset, seed: int) -> ClassifierModel:
    channels, size, _ = data.image_shape
    architecture = medfedpure.create("classifier", setting.classifier)
    model: ClassifierModel = architecture.create_model(
        in_channels=channels, num_classes=data.num_classes, image_size=size, seed=seed
    )
    task = ClassificationTask(shift=4, intensity=0.3, noise=0.01)
    budget = TrainingConfig(steps=setting.budget.classifier, batch_size=32, learning_rate=1e-3)
    train(model, task, data, budget, seed=seed, description="classifier")
    return model.eval()


def _denoiser(setting: Setting, data: ImageDataset, seed: int) -> Any:
    budget = {"steps": setting.budget.denoiser, "batch_size": 16, "learning_rate": 2e-3, "ema": 0.99}
    options = {"t_min": 20, "t_max": 60, "model": {"widths": [32, 64]}, "training": budget}
    return medfedpure.create("purifier", "ddpm", **options).fit(data, seed=seed)


def _detectors(setting: Setting, data: ImageDataset, context: ScoreContext, seed: int) -> dict[str, Detector]:
    budget = {"steps": setting.budget.autoencoder, "batch_size": 64, "learning_rate": 1e-3, "ema": 0.99}
    found: dict[str, Detector] = {}
    network: nn.Module | None = None
    for kind in MAE_KINDS:
        detector = medfedpure.create("detector", "mae", score={"kind": kind}, training=budget)
        if network is None:
            network = detector.fit(data, context=context, seed=seed).network
        found[f"mae {kind}"] = detector.adopt(network, data.image_shape)
    for name, (plugin, options) in UNFITTED.items():
        found[name] = medfedpure.create("detector", plugin, **options).fit(data, context=context, seed=seed)
    return found


def _scores(
    detector: Detector,
    context: ScoreContext,
    calibrate: ImageDataset,
    test: ImageDataset,
    inputs: dict[str, tuple[Tensor, Tensor]],
    seed: int,
) -> dict[str, Any]:
    def score(images: Tensor, ids: Tensor, draw: int = 0) -> Tensor:
        streams = Streams(derive_seed(seed, "scores", draw), ids)
        with torch.no_grad():
            return torch.cat(
                [
                    detector(images[start : start + 64], context=context, streams=streams.select(_range(start, images)))
                    for start in range(0, len(images), 64)
                ]
            ).double()

    kept = calibrate.one_per_group(seed)
    calibration = Calibration.fit(score(kept.images, kept.ids), 0.05)
    scores = {name: score(images, test.ids[place]) for name, (images, place) in inputs.items() if len(images)}
    repeated = torch.stack([score(*_first(inputs["benign"], test, 64), draw) for draw in range(NOISE_SEEDS)])
    total = float(repeated.mean(0).var())
    return {
        "scores": {name: values.tolist() for name, values in scores.items()},
        "threshold": calibration.threshold(),
        "rank": calibration.rank(),
        "calibration": len(calibration),
        "noise_share": float(repeated.var(0).mean()) / total if total else 0.0,
    }


def _range(start: int, images: Tensor) -> Tensor:
    return torch.arange(start, min(start + 64, len(images)))


def _first(benign: tuple[Tensor, Tensor], test: ImageDataset, count: int) -> tuple[Tensor, Tensor]:
    return benign[0][:count], test.ids[benign[1][:count]]


def _throughput(
    detectors: dict[str, Detector], model: nn.Module, context: ScoreContext, images: Tensor, pairs: int = 7
) -> dict[str, float]:
    """Share of the bare classifier's images per second that remain with a detector before it.

    The median over interleaved pairs: bare, guarded, bare, guarded ...
    """

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    shares = {}
    streams = Streams.for_batch(0, len(images))
    with torch.no_grad():
        for name, detector in detectors.items():

            def guarded(detector: Detector = detector) -> Tensor:
                given = ScoreContext(context.classifier, context.features, context.denoiser, model(images))
                return detector.score(images, context=given, streams=streams)

            guarded()
            shares[name] = statistics.median(seconds(lambda: model(images)) / seconds(guarded) for _ in range(pairs))
    return shares


def main() -> None:
    """Compute the folds that are missing, print the table of all that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="one sub-folder per class")
    parser.add_argument("--out", type=Path, required=True, help="folder for one JSON file per fold")
    parser.add_argument("--only", type=int, nargs="*", help="these folds only")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--classifier", default="resnet18")
    parser.add_argument("--max-per-group", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs=3, default=[300, 2000, 1000], metavar=("CLF", "DDPM", "MAE"))
    given = parser.parse_args()
    setting = Setting(
        given.data.name,
        given.size,
        given.classifier,
        given.folds,
        given.max_per_group,
        given.seed,
        Budget(*given.steps),
        " ".join(ATTACKS),
    )
    given.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)

    options = {"root": given.data, "image_size": given.size, "channels": 1}
    data = medfedpure.create("dataset", "image_folder", **options).read().cap_groups(given.max_per_group, given.seed)
    for number in given.only if given.only is not None else range(given.folds):
        path = given.out / f"fold_{number}.json"
        if not path.exists():
            write_json(path, run_fold(setting, data, number, say))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(given.out.glob("fold_*.json"))]
    print(markdown([fold for fold in found if fold["setting"] == asdict(setting)]))


if __name__ == "__main__":
    main()
