"""A defence whose noise is drawn where the images are: independent of the batch, repeatable, named in results."""

from __future__ import annotations

import pytest
import torch
from chains import DATA, assert_same, diffusing

from medfedpure import Acceleration, DefendedClassifier
from medfedpure.core.errors import ConfigError
from medfedpure.evaluation.store import digest_of


@pytest.fixture(scope="module")
def chain() -> DefendedClassifier:
    return diffusing().accelerate(Acceleration(noise="device"))


def test_an_image_is_answered_alike_in_every_batch(chain: DefendedClassifier) -> None:
    whole = chain.predict(DATA, seed=1)
    assert whole.purified.any(), "nothing is purified: the test shows nothing"
    few = torch.tensor([3, 17, 29])
    assert_same(chain.predict(DATA.select(few), seed=1), whole, "three images alone", few)
    assert_same(chain.predict(DATA, seed=1, batch_size=7), whole, "batches of seven")


def test_results_say_who_drew(chain: DefendedClassifier) -> None:
    assert chain.predict(DATA.images[:2], seed=1).trace.noise == "device"
    assert diffusing().predict(DATA.images[:2], seed=1).trace.noise == "reference"


def test_another_backend_is_other_noise_and_another_evaluation(chain: DefendedClassifier) -> None:
    reference = diffusing()
    assert not torch.equal(chain.predict(DATA, seed=1).scores, reference.predict(DATA, seed=1).scores)
    assert digest_of(chain) != digest_of(reference), "an evaluation would go on under other noise"


def test_forward_draws_from_it_too(chain: DefendedClassifier) -> None:
    with chain.fixed_noise(3):
        one, two = chain(DATA.images), chain(DATA.images)
    assert torch.equal(one, two)
    assert torch.allclose(one, chain.predict(DATA.images, seed=3).logits, atol=1e-5)


def test_old_noise_is_for_reading_only() -> None:
    with pytest.raises(ConfigError, match="reference"):
        Acceleration(noise="format_1")
