"""Every error this package raises on purpose, so that callers can catch one base class.

Messages say what came, what was wanted and what to do next.
"""

from __future__ import annotations

import difflib


def did_you_mean(name: str, names: list[str] | tuple[str, ...]) -> str:
    """A sentence of an error, a space before it: which of the known names comes nearest; "" where none is near."""
    near = difflib.get_close_matches(name.lower(), names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class MedFedPureError(Exception):
    """Base class of all errors raised by medfedpure."""


class InputError(MedFedPureError, ValueError):
    """Images, labels, ids or scores that do not obey the conventions (shape, dtype, range)."""


class ConfigError(MedFedPureError, ValueError):
    """A configuration with an unknown key, a wrong type or a value out of range."""


class DataError(MedFedPureError, ValueError):
    """A data set that cannot be read, split or partitioned as asked."""


class NotFittedError(MedFedPureError, RuntimeError):
    """A part that needs `fit` (or `load`) was used before it."""


class NotCalibratedError(MedFedPureError, RuntimeError):
    """A decision was asked of a defence that has no calibration."""


class CalibrationError(MedFedPureError, ValueError):
    """Calibration scores from which the asked false-positive rate cannot be reached."""


class MissingRequirementError(MedFedPureError, RuntimeError):
    """A part requires something (a classifier, a denoiser, ...) that its surroundings lack."""


class ArtifactError(MedFedPureError, RuntimeError):
    """A saved folder that is truncated, edited, foreign, or does not fit what it is loaded into."""


class MissingWeightsError(ArtifactError):
    """Published weights that were asked for, and are neither installed nor within reach."""


class AuditError(MedFedPureError, RuntimeError):
    """An attack's result that broke its own budget: it must not count."""


class TrainingError(MedFedPureError, RuntimeError):
    """Training that cannot succeed, such as a loss that is not finite."""


class FederationError(MedFedPureError, RuntimeError):
    """A federated run that cannot continue."""


class PluginError(MedFedPureError):
    """Base class of errors about plugins."""


class UnknownPluginError(PluginError, LookupError):
    """No plugin of that kind has that name."""


class PluginConflictError(PluginError):
    """Two distributions register the same kind and name."""


class PluginLoadError(PluginError, ImportError):
    """A plugin is registered but its target cannot be imported or is of the wrong type."""


class MissingExtraError(PluginLoadError):
    """A plugin needs an optional dependency that is not installed."""


class ClassesWarning(UserWarning):
    """The classes of a data set and the logits of a classifier do not seem to mean the same."""


class ProbabilitiesWarning(UserWarning):
    """A classifier's rows are probabilities where logits are wanted: what compares or differentiates them suffers."""


class UntrainedWarning(UserWarning):
    """A network, or a part of it, starts from nothing: published weights are not at hand, or do not fit there."""


class OneStepWarning(UserWarning):
    """Training against one-step attacks that left a classifier which several steps fool."""


class CompilationWarning(UserWarning):
    """What was to be compiled is computed uncompiled: slower, with the same answers."""


class WeakDefenceWarning(UserWarning):
    """A fresh defence that flagged or restored little of what its own check attacked."""


class ReasonsWarning(UserWarning):
    """A detector that cannot say why it flags an image."""


class PartnersWarning(UserWarning):
    """Images that were to be pulled together by group, and not two of which share one."""
