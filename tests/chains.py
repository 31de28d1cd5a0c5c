"""A small chain that counts what enters its purifier, and what it is compared by."""

from __future__ import annotations

from typing import Any

import torch
from planted import GoodDetector, GoodPurifier
from torch import Tensor

from medfedpure.core.registry import create
from medfedpure.core.results import Prediction, Purification
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.voting import Vote
from medfedpure.testing import tiny_classifier, tiny_dataset

FIELDS = ("labels", "logits", "bare_logits", "scores", "p_values", "flagged", "strength", "purified", "images")
BENIGN = tiny_dataset(120, seed=3)
DATA = tiny_dataset(30, seed=9)


class CountingPurifier(GoodPurifier):
    """Remembers the ids and strengths of every batch that it cleaned."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen: list[list[int]] = []
        self.strengths: list[Tensor] = []

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        self.seen.append(streams.ids.tolist())
        self.strengths.append(strength)
        result = super().purify(images, strength, streams=streams)
        return Purification(result.images, result.nfe * 3, 10 + strength)


def chain_of(policy: Any = "purify_flagged", *, target_fpr: float = 0.3, calibrate: bool = True) -> DefendedClassifier:
    """A chain whose detector flags about a third of the images."""
    chain = DefendedClassifier(tiny_classifier(), detector=GoodDetector(), purifier=CountingPurifier(), policy=policy)
    return chain.calibrate(BENIGN, target_fpr) if calibrate else chain


def diffusing(steps: int = 4, vote: Vote | None = None) -> DefendedClassifier:
    """A small gated chain around an untrained diffusion purifier."""
    model, sampling = {"widths": [8, 16], "unshuffle": 1}, {"num_inference_steps": steps}
    purifier = create("purifier", "ddpm", t_min=20, t_max=60, sampling=sampling, model=model)
    shape = DATA.image_shape
    purifier.adopt(purifier.make_network(shape, seed=0), shape)
    detector = create("detector", "denoising_disagreement")
    chain = DefendedClassifier(tiny_classifier(), detector=detector, purifier=purifier, vote=vote or Vote())
    return chain.calibrate(BENIGN, 0.3)


def assert_same(found: Prediction, wanted: Prediction, why: str, places: Any = slice(None)) -> None:
    """Equal decisions; scores and images within 1e-5."""
    for name in FIELDS:
        one, two = getattr(found, name), getattr(wanted, name)[places]
        assert one.shape == two.shape, f"{why}: {name} has shape {tuple(one.shape)}, not {tuple(two.shape)}"
        if one.dtype.is_floating_point:
            assert torch.allclose(one, two, atol=1e-5), f"{why}: {name} differs by {float((one - two).abs().max()):.3g}"
        else:
            assert torch.equal(one, two), f"{why}: {name} differs"
