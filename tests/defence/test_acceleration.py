"""Accelerated chains say the same within rounding, and leave types as they are."""

import pytest
import torch

import medfedpure
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(40, size=16)
SMALL = {"widths": (8, 16)}


def chain(**switches):
    sampling = {"num_inference_steps": 2}
    purifier = medfedpure.create("purifier", "ddpm", model=SMALL, t_min=20, t_max=60, sampling=sampling)
    purifier.adopt(purifier.make_network((1, 16, 16), seed=0), (1, 16, 16))
    detector = medfedpure.create("detector", "denoising_disagreement")
    classifier = tiny_classifier(16, 1)
    made = medfedpure.DefendedClassifier(classifier, detector=detector, purifier=purifier, policy="purify_all")
    return made.accelerate(medfedpure.Acceleration(**switches)).calibrate(DATA, 0.3, seed=1)


@pytest.mark.parametrize(
    ("switches", "tolerance"),
    [
        ({"channels_last": True}, 1e-5),
        ({"autocast": True}, 0.05),
        pytest.param({"compile": True}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_the_same_within_rounding(switches, tolerance):
    plain, fast = (made.predict(DATA.images, seed=3) for made in (chain(), chain(**switches)))
    assert fast.logits.dtype == fast.images.dtype == fast.scores.dtype == torch.float32
    assert float((fast.probabilities - plain.probabilities).abs().max()) <= tolerance
    assert float((fast.images - plain.images).abs().max()) <= tolerance
    assert float((fast.scores - plain.scores).abs().max()) <= tolerance
    if switches.get("autocast"):
        assert not torch.equal(fast.images, plain.images), "bfloat16 rounds"


def test_small_divergences_survive_half_precision():
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.03125, 0.0]])
    exact = medfedpure.figures.divergences.jensen_shannon(one, other)
    half = medfedpure.figures.divergences.jensen_shannon(one.bfloat16(), other.bfloat16())
    assert float(exact) > 0
    assert float(half) == pytest.approx(float(exact), rel=1e-3)
