"""Detectors side by side: `python -m benchmarks.detection --data FOLDER --out DIR`.

The images are divided into grouped folds, and every image is tested once. For each fold, on the other
folds: a classifier, a diffusion model and a masked autoencoder are trained, and every detector is
calibrated at 5 % false positives. Then static attacks on the bare classifier are scored, those that
succeeded against an image that was classified correctly. What DIR already holds is not computed again,
so a long run can be continued; the table is drawn from all folds in DIR. `--part tune` measures on
images that are neither trained nor tested on: there, defaults are chosen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import medfedpure
from benchmarks.detection_table import markdown
from benchmarks.folds import ATTACKS, CONTROL, Fold, add_arguments, mixed_order, open_data, prepare, progress
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.storage import write_json
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.core.task import FinishesLocally
from medfedpure.defence.calibration import Calibration

DETECTORS: dict[str, tuple[str, dict[str, Any]]] = {
    "denoising_disagreement t20 x1": ("denoising_disagreement", {"timestep": 20, "steps": 1}),
    "denoising_disagreement t40 x3": ("denoising_disagreement", {"timestep": 40, "steps": 3}),
    "mae reconstruction (paper)": (
        "mae",
        {"score": {"kind": "reconstruction", "mask_ratio": 0.75, "noise": 0.0, "masks": 4}},
    ),
    "mae reconstruction": ("mae", {"score": {"kind": "reconstruction"}}),
    "mae prediction_shift": ("mae", {"score": {"kind": "prediction_shift"}}),
    "mae prediction_shift, no noise": ("mae", {"score": {"kind": "prediction_shift", "noise": 0.0}}),
    "mae combined": ("mae", {"score": {"kind": "combined"}}),
    "feature_squeezing": ("feature_squeezing", {}),
    "mahalanobis": ("mahalanobis", {}),
    "art subset scanning": ("art", {}),
    "score_norm": ("score_norm", {}),
    "compose (default)": ("compose", {}),
    "compose with mahalanobis": (
        "compose",
        {"parts": [{"plugin": "denoising_disagreement"}, {"plugin": "mahalanobis"}]},
    ),
}
SHOWN = ("denoising_disagreement t20 x1", "mae reconstruction (paper)")
STATIC = ("pgd", "fgsm", "apgd", "carlini l2")
NOISE_SEEDS = 3
REPEATED = 32
CONTROLLED = 64


@dataclass(frozen=True)
class Inputs:
    """What is scored, by name: images `(N, C, H, W)`, their places `(N,)` in the part, and the bare logits."""

    part: ImageDataset
    images: dict[str, tuple[Tensor, Tensor]]
    logits: dict[str, Tensor]


def measure(fold: Fold, part: str, attacks: list[str], names: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that the table needs of one fold, as plain values; kept in the fold's folder."""
    path = fold.folder / f"detectors_{part}.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"attacks": {}, "detectors": {}}
    data = fold.parts[part]
    inputs = {"benign": (data.images, torch.arange(len(data))), CONTROL: fold.noised(part, CONTROLLED)}
    record: dict[str, Any] = {"fold": fold.number, "attacks": {}, "success": {}, "detectors": stored["detectors"]}
    for name in attacks:
        say(f"attack {name}")
        found = fold.attacked(part, name)
        record["attacks"][name] = found.text
        record["success"][name] = float(found.success.sum() / found.right.sum())
        inputs[name] = (found.images[found.success], found.place[found.success])
    record["clean_balanced_accuracy"] = fold.clean_balanced_accuracy(part)
    record["groups"] = {name: data.groups[place].tolist() for name, (_, place) in inputs.items()}
    keys = {name: hashlib.sha256(images.numpy().tobytes()).hexdigest() for name, (images, _) in inputs.items()}
    logits: dict[str, Tensor] = {}
    detectors: dict[str, Detector] = {}
    for name in names:
        plugin, options = DETECTORS[name]
        detector: Detector = medfedpure.create("detector", plugin, **options)
        config = {**detector.config.model_dump(mode="json"), "part": data.fingerprint()}
        row = stored["detectors"].get(name, {})
        if row.get("config") != config:
            row = {"config": config, "scores": {}, "keys": {}}
        missing = [kind for kind in inputs if row["keys"].get(kind) != keys[kind]]
        if missing:
            say(f"detector {name}: {', '.join(missing)}")
            logits = logits or {kind: _logits(fold, images) for kind, (images, _) in inputs.items()}
            detectors[name] = _fitted(detector, fold)
            _score(detectors[name], fold, Inputs(data, inputs, logits), missing, row)
            row["keys"] |= {kind: keys[kind] for kind in missing}
            record["detectors"][name] = row
            write_json(path, record)
    if fold.number == 0:  # a cost is the same in every fold
        for name, share in _throughput(detectors, fold.context(), data.images[:32]).items():
            record["detectors"][name]["throughput"] = share
    write_json(path, record)
    return record


def _fitted(detector: Detector, fold: Fold) -> Detector:
    """The detector, fitted on the train part; one masked autoencoder serves all its scores."""
    data, context = fold.parts["train"], fold.context()
    if not isinstance(detector, FinishesLocally):
        return detector.fit(data, context=context, seed=fold.seed)
    adopting: Any = detector
    adopted: Detector = adopting.adopt(fold.autoencoder().network, data.image_shape)
    return adopted.finish_fit(data, context=context, seed=fold.seed)  # type: ignore[attr-defined,no-any-return]


def _logits(fold: Fold, images: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([fold.classifier(batch) for batch in images.split(64)]) if len(images) else images.new_zeros(0)


def _score(detector: Detector, fold: Fold, inputs: Inputs, missing: list[str], row: dict[str, Any]) -> None:
    """Write the scores of what is missing into the row, and, where it is new, its threshold and noise."""

    def score(images: Tensor, ids: Tensor, logits: Tensor, draw: int = 0) -> Tensor:
        streams = Streams(derive_seed(fold.seed, "scores", draw), ids)
        parts = []
        with torch.no_grad():
            for place in torch.arange(len(images)).split(64):
                context = replace(fold.context(), logits=logits[place])
                parts.append(detector(images[place], context=context, streams=streams.select(place)))
        return torch.cat(parts).double()

    ids = inputs.part.ids
    for name in missing:
        images, place = inputs.images[name]
        row["scores"][name] = score(images, ids[place], inputs.logits[name]).tolist() if len(images) else []
    if "threshold" in row:
        return
    kept = fold.parts["calibrate"].one_per_group(fold.seed)
    calibration = Calibration.fit(score(kept.images, kept.ids, _logits(fold, kept.images)), 0.05)
    some = mixed_order(inputs.part, fold.seed)[:REPEATED]
    given = (inputs.part.images[some], ids[some], inputs.logits["benign"][some])
    repeated = torch.stack([score(*given, draw) for draw in range(NOISE_SEEDS)])
    total = float(repeated.mean(0).var())
    row |= {
        "threshold": calibration.threshold(),
        "rank": calibration.rank(),
        "calibration": len(calibration),
        "noise_share": float(repeated.var(0).mean()) / total if total else 0.0,
    }


def _throughput(
    detectors: dict[str, Detector], context: ScoreContext, images: Tensor, pairs: int = 7
) -> dict[str, float]:
    """Share of the bare classifier's images per second that remain with a detector before it.

    The median over interleaved pairs: bare, guarded, bare, guarded ...
    """
    model = context.classifier
    assert isinstance(model, nn.Module)

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
    """Compute what is missing, print the table of all folds that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--attacks", nargs="*", choices=tuple(ATTACKS), default=[*STATIC])
    parser.add_argument("--detectors", nargs="*", choices=tuple(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--pictures", type=Path, help="folder for ROC curves and histograms")
    given = parser.parse_args()
    say = progress()
    data, setting = open_data(given)
    found = []
    for number in given.only if given.only is not None else range(given.folds):
        fold = prepare(setting, data, number, given.out, say)
        found.append(measure(fold, given.part, given.attacks, given.detectors, say))
    if given.detectors:
        print(markdown(setting, given.part, found))
    if given.pictures is not None:
        from benchmarks.detection_pictures import draw

        draw(found, given.pictures, SHOWN)


if __name__ == "__main__":
    main()
