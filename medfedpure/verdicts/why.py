"""Of flagged images: which part of the detector raised the score, and where they look suspicious.

A detector of one score has one answer, which costs nothing; one of several parts is asked again, about these alone.
"""

from __future__ import annotations

import secrets
import warnings
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.errors import ReasonsWarning
from medfedpure.core.results import Prediction
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import as_they_answer
from medfedpure.defence.chain import DefendedClassifier


def predicted(
    chain: DefendedClassifier,
    images: Tensor,
    ids: Tensor,
    seed: int | None,
    *,
    target_fpr: float | None = None,
    maps: Literal["none", "flagged", "all"] = "none",
) -> tuple[Prediction, list[str | None]]:
    """What a defence says of images, computed together, and of each that is flagged why; all of one draw of the noise.

    Args:
        chain: that is asked.
        images: `(N, C, H, W)` in [0, 1].
        ids: `(N,)` int64, whose noise each one has.
        seed: of the noise; None draws one, which is not told.
        target_fpr: another false-positive rate than the calibrated one.
        maps: of which images the suspicion map is wanted; of "flagged" those of the others are 0.
    """
    drawn = secrets.randbits(128) if seed is None else seed
    options: dict[str, Any] = {"target_fpr": target_fpr, "batch_size": len(images), "explain": maps == "all"}
    found = chain.predict(images, ids, seed=drawn, **options)
    why, seen = reasons(chain, images, found, Streams(drawn, ids, chain.acceleration.noise), maps == "flagged")
    return (replace(found, suspicion_map=seen) if maps == "flagged" else found), why


@torch.no_grad()
def reasons(
    chain: DefendedClassifier, images: Tensor, found: Prediction, streams: Streams, maps: bool
) -> tuple[list[str | None], Tensor | None]:
    """Of each image the part that raised its score, None of one that is not flagged; and the maps.

    Args:
        chain: that said it.
        images: `(N, C, H, W)` in [0, 1], that it was asked about.
        found: what it said of them.
        streams: of the noise that it drew then.
        maps: whether maps are wanted.

    Returns:
        N names; and `(N, 1, H, W)` where the flagged images look suspicious, 0 of the others, or None where no map was
        wanted, none was flagged, or the detector has none.
    """
    names: list[str | None] = [None] * len(found)
    places = found.flagged.nonzero().squeeze(1)
    if chain.detector is None or not len(places):
        return names, None
    given = images.to(found.logits.device)[places]
    context, own = replace(chain.context(), logits=found.bare_logits[places]), streams.select(places)
    with as_they_answer(chain), chain.computing(given.device):
        said = _said(chain.detector, given, context, own)
        drawn = chain.detector.suspicion_map(given, context=context, streams=own) if maps else None
    for place, name in zip(places.tolist(), said, strict=True):
        names[place] = name
    if drawn is None:
        return names, None
    blank = drawn.new_zeros(len(found), *drawn.shape[1:])
    return names, blank.index_copy(0, places, drawn)


def _said(detector: Detector, images: Tensor, context: ScoreContext, streams: Streams) -> list[str]:
    """What a detector says of images `(N, C, H, W)`, N names; its own name where it fails at that.

    A verdict stands without its reason: a plugin that cannot tell takes no verdict with it.

    Warns:
        ReasonsWarning: it fails.
    """
    try:
        said = detector.reasons(images, context=context, streams=streams)
        if len(said) == len(images) and all(isinstance(text, str) for text in said):
            return said
        wrong = "its reasons are no list of one text for each image"
    except Exception as error:
        wrong = f"its reasons raise {type(error).__name__}"
    warnings.warn(
        f"the detector {detector.name!r} cannot say why it flags images ({wrong}): verdicts name the detector alone. "
        "Run its contract test, or tell its author",
        ReasonsWarning,
        stacklevel=2,
    )
    return [detector.name] * len(images)
