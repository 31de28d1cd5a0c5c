"""medfedpure: detect, purify, classify. A whole defence for medical image classifiers.

The public names are loaded on first use (PEP 562): importing the package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Acceleration": "medfedpure.defence.acceleration",
    "Attack": "medfedpure.core.attack",
    "AttackResult": "medfedpure.core.results",
    "Batch": "medfedpure.core.dataset",
    "Calibration": "medfedpure.defence.calibration",
    "Certificate": "medfedpure.defence.certify",
    "Classifier": "medfedpure.core.classifier",
    "Component": "medfedpure.core.component",
    "Config": "medfedpure.core.config",
    "Dataset": "medfedpure.core.dataset",
    "DefendedClassifier": "medfedpure.defence.chain",
    "Detector": "medfedpure.core.detector",
    "Eps": "medfedpure.core.config",
    "FitContext": "medfedpure.core.detector",
    "ImageDataset": "medfedpure.core.dataset",
    "Monitor": "medfedpure.defence.monitor",
    "PersonalizationStrategy": "medfedpure.core.personalization",
    "Plugin": "medfedpure.core.registry",
    "Prediction": "medfedpure.core.results",
    "Purification": "medfedpure.core.results",
    "Purifier": "medfedpure.core.purifier",
    "ScoreContext": "medfedpure.core.detector",
    "State": "medfedpure.core.results",
    "Streams": "medfedpure.core.streams",
    "ThreatView": "medfedpure.evaluation.views",
    "Vote": "medfedpure.defence.voting",
    "certify": "medfedpure.defence.certify",
    "create": "medfedpure.core.registry",
    "defend": "medfedpure.defence.defend",
    "evaluate": "medfedpure.evaluation.evaluate",
    "hookimpl": "medfedpure.core.registry",
    "registry": "medfedpure.core.registry",
    "to_art": "medfedpure.plugins.attacks.art",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'medfedpure' has no attribute {name!r}")
    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


if TYPE_CHECKING:
    from medfedpure.core.attack import Attack as Attack
    from medfedpure.core.attack import ThreatView as ThreatView
    from medfedpure.core.classifier import Classifier as Classifier
    from medfedpure.core.component import Component as Component
    from medfedpure.core.config import Config as Config
    from medfedpure.core.config import Eps as Eps
    from medfedpure.core.dataset import Batch as Batch
    from medfedpure.core.dataset import Dataset as Dataset
    from medfedpure.core.dataset import ImageDataset as ImageDataset
    from medfedpure.core.detector import Detector as Detector
    from medfedpure.core.detector import FitContext as FitContext
    from medfedpure.core.detector import ScoreContext as ScoreContext
    from medfedpure.core.personalization import PersonalizationStrategy as PersonalizationStrategy
    from medfedpure.core.purifier import Purifier as Purifier
    from medfedpure.core.registry import Plugin as Plugin
    from medfedpure.core.registry import create as create
    from medfedpure.core.registry import hookimpl as hookimpl
    from medfedpure.core.registry import registry as registry
    from medfedpure.core.results import AttackResult as AttackResult
    from medfedpure.core.results import Prediction as Prediction
    from medfedpure.core.results import Purification as Purification
    from medfedpure.core.results import State as State
    from medfedpure.core.streams import Streams as Streams
    from medfedpure.defence.acceleration import Acceleration as Acceleration
    from medfedpure.defence.calibration import Calibration as Calibration
    from medfedpure.defence.certify import Certificate as Certificate
    from medfedpure.defence.certify import certify as certify
    from medfedpure.defence.chain import DefendedClassifier as DefendedClassifier
    from medfedpure.defence.defend import defend as defend
    from medfedpure.defence.monitor import Monitor as Monitor
    from medfedpure.defence.voting import Vote as Vote
    from medfedpure.evaluation.evaluate import evaluate as evaluate
    from medfedpure.plugins.attacks.art import to_art as to_art
