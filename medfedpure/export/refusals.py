"""What cannot become one fixed computation, why, and what can be done."""

from __future__ import annotations

from medfedpure.core.detector import Detector
from medfedpure.core.errors import ConfigError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.policy import PURIFYING

_INSTEAD = (
    "Export the classifier alone (defended.classifier; on the command line --part classifier), or fit a defence by "
    "defend(..., recipe='fast')"
)


def check_fixed(chain: DefendedClassifier) -> None:
    """Raise ConfigError where a defence purifies, draws noise, or computes otherwise than it was saved."""
    if chain.policy in PURIFYING:
        assert chain.purifier is not None  # the chain's constructor made sure
        what = "the images that are flagged" if chain.policy == "purify_flagged" else "every image"
        noise = "" if chain.purifier.deterministic else ", with noise from streams that are keyed by the images' ids"
        raise ConfigError(
            f"a defence under the policy {chain.policy!r} cannot be exported: its purifier {chain.purifier.name!r} "
            f"cleans {what}, as strongly as each one's score asks{noise}, and a file holds one fixed computation for "
            f"all images. {_INSTEAD}; or, to see scores and flags alone, set policy='none'"
        )
    if chain.acceleration.autocast or chain.acceleration.compile:
        raise ConfigError(
            f"a defence under {chain.acceleration} cannot be exported: its scores and its threshold are of another "
            "arithmetic than the file's. Export it as it is loaded from its folder"
        )
    if chain.detector is not None:
        _check_detector(chain.detector)


def _check_detector(detector: Detector) -> None:
    parts = [part for part in detector.modules() if isinstance(part, Detector)]
    named = f"the detector {detector.name!r} cannot be exported: "
    for part in reversed(parts):  # the innermost first: a composed one has the flags of its parts
        who = "it" if part is detector else f"its part {part.name!r}"
        if not part.per_image_streams:
            raise ConfigError(
                f"{named}{who} reads another library, which draws from random generators of its own. {_instead(part)}"
            )
        if not part.deterministic:
            raise ConfigError(
                f"{named}{who} draws noise from streams that are keyed by the images' ids, and a file holds no such "
                f"streams. {_instead(part)}"
            )


def _instead(detector: Detector) -> str:
    del detector
    return f"{_INSTEAD}, or with a detector that draws nothing, such as 'feature_squeezing' or 'mahalanobis'"


def untraceable(what: str, error: BaseException) -> ConfigError:
    """What to say of a part that torch.export cannot follow."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    remedy = _INSTEAD if what.startswith("the detector") else "Say in torch operations alone what it does"
    return ConfigError(
        f"{what} cannot be exported, as torch.export cannot follow it: it computes outside torch, or what it computes "
        f"depends on the images' values or on how many they are ({reason[:300]}). {remedy}"
    )
