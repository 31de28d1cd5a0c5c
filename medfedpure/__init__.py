"""medfedpure: detect, purify, classify. A whole defence for medical image classifiers.

The public names are loaded on first use (PEP 562): importing the package imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0.dev0"

_PUBLIC = {
    "Acceleration": "medfedpure.defence.acceleration",
    "AdversarialTraining": "medfedpure.core.settings",
    "ArtifactError": "medfedpure.core.errors",
    "Attack": "medfedpure.core.attack",
    "AttackResult": "medfedpure.core.results",
    "AuditError": "medfedpure.core.errors",
    "Augmentation": "medfedpure.core.settings",
    "Batch": "medfedpure.core.dataset",
    "BatchSampler": "medfedpure.core.task",
    "Budget": "medfedpure.core.attack",
    "Calibration": "medfedpure.defence.calibration",
    "CalibrationError": "medfedpure.core.errors",
    "Certificate": "medfedpure.defence.certify",
    "ClassesWarning": "medfedpure.core.errors",
    "ClassificationTask": "medfedpure.training.classification",
    "Classifier": "medfedpure.core.classifier",
    "ClassifierModel": "medfedpure.core.classifier",
    "ClientRound": "medfedpure.core.personalization",
    "CompilationWarning": "medfedpure.core.errors",
    "Component": "medfedpure.core.component",
    "Config": "medfedpure.core.config",
    "ConfigError": "medfedpure.core.errors",
    "DataError": "medfedpure.core.errors",
    "Dataset": "medfedpure.core.dataset",
    "DefendedClassifier": "medfedpure.defence.chain",
    "Denoiser": "medfedpure.core.detector",
    "Detector": "medfedpure.core.detector",
    "Eps": "medfedpure.core.config",
    "FederationError": "medfedpure.core.errors",
    "FinishesLocally": "medfedpure.core.task",
    "FitContext": "medfedpure.core.detector",
    "GroupPositives": "medfedpure.core.settings",
    "ImageDataset": "medfedpure.core.dataset",
    "InputError": "medfedpure.core.errors",
    "LocalResult": "medfedpure.core.personalization",
    "MedFedPureError": "medfedpure.core.errors",
    "MissingExtraError": "medfedpure.core.errors",
    "MissingRequirementError": "medfedpure.core.errors",
    "MissingWeightsError": "medfedpure.core.errors",
    "Monitor": "medfedpure.defence.monitor",
    "NoisePredictor": "medfedpure.core.detector",
    "NotCalibratedError": "medfedpure.core.errors",
    "NotFittedError": "medfedpure.core.errors",
    "Observation": "medfedpure.core.progress",
    "Observer": "medfedpure.core.progress",
    "OneStepDenoiser": "medfedpure.core.detector",
    "OneStepWarning": "medfedpure.core.errors",
    "PartnersWarning": "medfedpure.core.errors",
    "PersonalizationStrategy": "medfedpure.core.personalization",
    "Plugin": "medfedpure.core.registry",
    "PluginConflictError": "medfedpure.core.errors",
    "PluginError": "medfedpure.core.errors",
    "PluginLoadError": "medfedpure.core.errors",
    "Prediction": "medfedpure.core.results",
    "ProbabilitiesWarning": "medfedpure.core.errors",
    "Purification": "medfedpure.core.results",
    "Purifier": "medfedpure.core.purifier",
    "Radius": "medfedpure.core.config",
    "ReasonsWarning": "medfedpure.core.errors",
    "ScoreContext": "medfedpure.core.detector",
    "State": "medfedpure.core.results",
    "Step": "medfedpure.core.task",
    "StrategyConfig": "medfedpure.core.personalization",
    "Streams": "medfedpure.core.streams",
    "Task": "medfedpure.core.task",
    "ThreatView": "medfedpure.core.attack",
    "Trace": "medfedpure.core.results",
    "Trainable": "medfedpure.core.task",
    "TrainingConfig": "medfedpure.core.settings",
    "TrainingError": "medfedpure.core.errors",
    "TrainingLog": "medfedpure.core.task",
    "UnknownPluginError": "medfedpure.core.errors",
    "UntrainedWarning": "medfedpure.core.errors",
    "Update": "medfedpure.core.personalization",
    "Vote": "medfedpure.defence.voting",
    "WeakDefenceWarning": "medfedpure.core.errors",
    "WrappedTask": "medfedpure.core.task",
    "auroc": "medfedpure.figures.metrics",
    "bpda_view": "medfedpure.evaluation.views",
    "certify": "medfedpure.defence.certify",
    "classification_figures": "medfedpure.figures.metrics",
    "create": "medfedpure.core.registry",
    "defend": "medfedpure.defence.defend",
    "detector_view": "medfedpure.evaluation.views",
    "evaluate": "medfedpure.evaluation.evaluate",
    "exact_view": "medfedpure.evaluation.views",
    "export_model": "medfedpure.export.write",
    "fine_tune_on_purified": "medfedpure.training.purified",
    "hookimpl": "medfedpure.core.registry",
    "keep_freed_memory": "medfedpure.training.allocator",
    "mix": "medfedpure.defence.mix",
    "predict_on": "medfedpure.parallel.predict",
    "registry": "medfedpure.core.registry",
    "static_view": "medfedpure.evaluation.views",
    "surrogate_view": "medfedpure.evaluation.views",
    "to_art": "medfedpure.plugins.attacks.art",
    "train": "medfedpure.training.loop",
    "transfer_view": "medfedpure.evaluation.views",
    "true_positive_rate": "medfedpure.figures.metrics",
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
    from medfedpure.core.attack import Budget as Budget
    from medfedpure.core.attack import ThreatView as ThreatView
    from medfedpure.core.classifier import Classifier as Classifier
    from medfedpure.core.classifier import ClassifierModel as ClassifierModel
    from medfedpure.core.component import Component as Component
    from medfedpure.core.config import Config as Config
    from medfedpure.core.config import Eps as Eps
    from medfedpure.core.config import Radius as Radius
    from medfedpure.core.dataset import Batch as Batch
    from medfedpure.core.dataset import Dataset as Dataset
    from medfedpure.core.dataset import ImageDataset as ImageDataset
    from medfedpure.core.detector import Denoiser as Denoiser
    from medfedpure.core.detector import Detector as Detector
    from medfedpure.core.detector import FitContext as FitContext
    from medfedpure.core.detector import NoisePredictor as NoisePredictor
    from medfedpure.core.detector import OneStepDenoiser as OneStepDenoiser
    from medfedpure.core.detector import ScoreContext as ScoreContext
    from medfedpure.core.errors import ArtifactError as ArtifactError
    from medfedpure.core.errors import AuditError as AuditError
    from medfedpure.core.errors import CalibrationError as CalibrationError
    from medfedpure.core.errors import CompilationWarning as CompilationWarning
    from medfedpure.core.errors import ConfigError as ConfigError
    from medfedpure.core.errors import DataError as DataError
    from medfedpure.core.errors import FederationError as FederationError
    from medfedpure.core.errors import InputError as InputError
    from medfedpure.core.errors import MedFedPureError as MedFedPureError
    from medfedpure.core.errors import MissingExtraError as MissingExtraError
    from medfedpure.core.errors import MissingRequirementError as MissingRequirementError
    from medfedpure.core.errors import MissingWeightsError as MissingWeightsError
    from medfedpure.core.errors import NotCalibratedError as NotCalibratedError
    from medfedpure.core.errors import NotFittedError as NotFittedError
    from medfedpure.core.errors import OneStepWarning as OneStepWarning
    from medfedpure.core.errors import PartnersWarning as PartnersWarning
    from medfedpure.core.errors import PluginConflictError as PluginConflictError
    from medfedpure.core.errors import PluginError as PluginError
    from medfedpure.core.errors import PluginLoadError as PluginLoadError
    from medfedpure.core.errors import ProbabilitiesWarning as ProbabilitiesWarning
    from medfedpure.core.errors import ReasonsWarning as ReasonsWarning
    from medfedpure.core.errors import TrainingError as TrainingError
    from medfedpure.core.errors import UnknownPluginError as UnknownPluginError
    from medfedpure.core.errors import UntrainedWarning as UntrainedWarning
    from medfedpure.core.errors import WeakDefenceWarning as WeakDefenceWarning
    from medfedpure.core.personalization import ClientRound as ClientRound
    from medfedpure.core.personalization import LocalResult as LocalResult
    from medfedpure.core.personalization import PersonalizationStrategy as PersonalizationStrategy
    from medfedpure.core.personalization import StrategyConfig as StrategyConfig
    from medfedpure.core.personalization import Update as Update
    from medfedpure.core.progress import Observation as Observation
    from medfedpure.core.progress import Observer as Observer
    from medfedpure.core.purifier import Purifier as Purifier
    from medfedpure.core.registry import Plugin as Plugin
    from medfedpure.core.registry import create as create
    from medfedpure.core.registry import hookimpl as hookimpl
    from medfedpure.core.registry import registry as registry
    from medfedpure.core.results import AttackResult as AttackResult
    from medfedpure.core.results import Prediction as Prediction
    from medfedpure.core.results import Purification as Purification
    from medfedpure.core.results import State as State
    from medfedpure.core.results import Trace as Trace
    from medfedpure.core.settings import AdversarialTraining as AdversarialTraining
    from medfedpure.core.settings import Augmentation as Augmentation
    from medfedpure.core.settings import GroupPositives as GroupPositives
    from medfedpure.core.settings import TrainingConfig as TrainingConfig
    from medfedpure.core.streams import Streams as Streams
    from medfedpure.core.task import BatchSampler as BatchSampler
    from medfedpure.core.task import FinishesLocally as FinishesLocally
    from medfedpure.core.task import Step as Step
    from medfedpure.core.task import Task as Task
    from medfedpure.core.task import Trainable as Trainable
    from medfedpure.core.task import TrainingLog as TrainingLog
    from medfedpure.core.task import WrappedTask as WrappedTask
    from medfedpure.defence.acceleration import Acceleration as Acceleration
    from medfedpure.defence.calibration import Calibration as Calibration
    from medfedpure.defence.certify import Certificate as Certificate
    from medfedpure.defence.certify import certify as certify
    from medfedpure.defence.chain import DefendedClassifier as DefendedClassifier
    from medfedpure.defence.defend import defend as defend
    from medfedpure.defence.mix import mix as mix
    from medfedpure.defence.monitor import Monitor as Monitor
    from medfedpure.defence.voting import Vote as Vote
    from medfedpure.evaluation.evaluate import evaluate as evaluate
    from medfedpure.evaluation.views import bpda_view as bpda_view
    from medfedpure.evaluation.views import detector_view as detector_view
    from medfedpure.evaluation.views import exact_view as exact_view
    from medfedpure.evaluation.views import static_view as static_view
    from medfedpure.evaluation.views import surrogate_view as surrogate_view
    from medfedpure.evaluation.views import transfer_view as transfer_view
    from medfedpure.export.write import export_model as export_model
    from medfedpure.figures.metrics import auroc as auroc
    from medfedpure.figures.metrics import classification_figures as classification_figures
    from medfedpure.figures.metrics import true_positive_rate as true_positive_rate
    from medfedpure.parallel.predict import predict_on as predict_on
    from medfedpure.plugins.attacks.art import to_art as to_art
    from medfedpure.training.allocator import keep_freed_memory as keep_freed_memory
    from medfedpure.training.classification import ClassificationTask as ClassificationTask
    from medfedpure.training.loop import train as train
    from medfedpure.training.purified import fine_tune_on_purified as fine_tune_on_purified
