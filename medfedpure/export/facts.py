"""What an exported file says of itself: images, classes, weights, threshold, and what is not in it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from medfedpure import __version__
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.disk.weights import Origin
from medfedpure.core.purifier import Purifier
from medfedpure.defence.chain import DefendedClassifier

KEY = "medfedpure"
"""Of the facts in ONNX's metadata; in a file of torch.export they are `medfedpure.json`."""
NOTICE = (
    "research software, not a medical device: not approved for diagnosis or treatment, and no clinical study stands "
    "behind it"
)
_LOGITS = "(N, K): the largest is the verdict, of equal ones the first; their softmax over K are the probabilities"
_CHECKS = "checks of the input: images outside [0, 1] or NaN are answered, and the answer means nothing"


def facts_of_classifier(model: ClassifierModel, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Of a classifier alone, on images of (C, H, W)."""
    return {
        **_common("classifier", shape),
        "inputs": {"images": _images(0)},
        "outputs": {"logits": _LOGITS},
        "not_in_the_file": ["verdicts and probabilities", _CHECKS],
        "class_names": list(model.class_names),
        "weights": _weights(model),
    }


def facts_of_defence(chain: DefendedClassifier, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Of a defence that leaves images as they are, on images of (C, H, W)."""
    known, calibration, detector = chain.image_facts, chain.calibration, chain.detector
    names = known.class_names if known is not None else ()
    if not names and isinstance(chain.classifier, ClassifierModel):
        names = chain.classifier.class_names
    top = 0 if known is None else known.top
    refuses = chain.policy == "abstain"
    outputs = {"logits": _LOGITS}
    if detector is not None:
        outputs["score"] = "(N,): how suspicious the image is, higher = more suspicious"
    if detector is not None and calibration is not None:
        outputs["flagged"] = "(N,) truth values: the score lies above the threshold, more than rounding explains; " + (
            "such an image is refused, and its logits are no verdict" if refuses else "such an image keeps its verdict"
        )
    threshold = math.inf if calibration is None else calibration.threshold()
    return {
        **_common("defence", shape),
        "inputs": {"images": _images(top)},
        "outputs": outputs,
        "not_in_the_file": ["verdicts and probabilities", "p-values, maps and purified images", _CHECKS],
        "class_names": list(names),
        "top": top or None,
        "weights": _weights(chain.classifier),
        "policy": chain.policy,
        "detector": None if detector is None else {"plugin": detector.name, "config": _config(detector)},
        "calibration": None
        if calibration is None or detector is None
        else {
            "threshold": None if math.isinf(threshold) else threshold,
            "target_fpr": calibration.target_fpr,
            "scope": calibration.scope,
            "images": len(calibration),
            "promise": calibration.describe(),
        },
    }


def facts_of_noise(purifier: Purifier, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Of the noise predictor of a purifier, on images of (C, H, W)."""
    deepest = getattr(purifier, "deepest", None)
    return {
        **_common("noise predictor", shape),
        "inputs": {
            "noisy": "(N, C, H, W): (x_t + 1) / 2, where the diffusion model's x_t has its clean images in [-1, 1]; "
            "noise may lead out of [0, 1]",
            "timestep": "(N,): above 0, and may be fractional",
        },
        "outputs": {"noise": "(N, C, H, W): the noise of unit variance in x_t"},
        "not_in_the_file": ["the steps of the reverse process, which draw noise", _CHECKS],
        "purifier": {"plugin": purifier.name, "config": _config(purifier)},
        "deepest_timestep": float(deepest()) if callable(deepest) else None,
    }


def as_text(facts: Mapping[str, Any]) -> str:
    """The facts as JSON."""
    return json.dumps(facts, indent=1, allow_nan=False)


def in_a_sentence(facts: Mapping[str, Any]) -> str:
    """What must not be overlooked: a restriction of the weights' use, and that this is no medical device."""
    weights = facts.get("weights")
    said = "" if weights is None else f"{Origin.model_validate(weights).describe()}. "
    return f"{facts['holds']} exported by medfedpure {facts['medfedpure']}. {said}{NOTICE}"


def _common(holds: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    return {
        "medfedpure": __version__,
        "holds": holds,
        "notice": NOTICE,
        "image_shape": list(shape),
        "pixel_range": [0.0, 1.0],
    }


def _images(top: int) -> str:
    told = f"; the pixel {top} of the files stands for 1.0" if top else ""
    return f"(N, C, H, W): pixels in [0, 1], before normalization, which is in the file{told}"


def _weights(classifier: nn.Module) -> dict[str, Any] | None:
    """Published weights that a classifier started from; None where it knows of none."""
    origin = classifier.origin if isinstance(classifier, ClassifierModel) else None
    return None if origin is None else origin.model_dump(mode="json")


def _config(part: Any) -> dict[str, Any]:
    found: dict[str, Any] = part.config.model_dump(mode="json")
    return found
