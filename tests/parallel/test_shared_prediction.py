"""Predictions that several processes share are those of one, bit for bit."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from chains import DATA, chain_of, diffusing
from torch import Tensor

from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.progress import Observation
from medfedpure.core.results import Prediction
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.voting import Vote
from medfedpure.parallel.predict import predict_on


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Seen:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    def observe(self, found: Observation) -> None:
        """One batch."""
        self.ids.append(found.ids.tolist())


def assert_equal(found: Prediction, wanted: Prediction) -> None:
    """Every tensor, bit for bit, and the words."""
    for record, other in ((found, wanted), (found.trace, wanted.trace)):
        for item in fields(record):
            one, two = getattr(record, item.name), getattr(other, item.name)
            if isinstance(two, Tensor):
                assert torch.equal(one.nan_to_num(-1.0), two.nan_to_num(-1.0)), item.name
            elif item.name not in ("trace", "seconds"):
                assert one == two, item.name
    assert found.trace.seconds.keys() == wanted.trace.seconds.keys()


def test_a_data_set_a_loader_and_a_tensor_are_read_as_by_one() -> None:
    """Through a vote of a diffusion purifier, whose flagged images are collected from several batches."""
    chain = diffusing(vote=Vote(draws=2, how="majority"))
    wanted = chain.predict(DATA, seed=5, batch_size=4)
    assert 4 < int(wanted.purified.sum()) < len(DATA), "dense batches are full, and not all is purified"
    seen = Seen()
    found = predict_on(chain, DATA, processes=2, seed=5, batch_size=4, observer=seen)
    assert_equal(found, wanted)
    assert seen.ids == [ids.tolist() for ids in DATA.ids.split(4)], "in their order"
    loader = [(part, None) for part in DATA.images.split(7)]
    assert_equal(
        predict_on(chain, iter(loader), processes=2, seed=5, batch_size=4, target_fpr=0.1),
        chain.predict(iter(loader), seed=5, batch_size=4, target_fpr=0.1),
    )


def test_explanations_and_ids_come_along() -> None:
    chain = DefendedClassifier(chain_of().classifier, detector=chain_of().detector, policy="none")
    ids = torch.arange(100, 100 + len(DATA))
    found = predict_on(chain, DATA.images, ids, processes=2, seed=1, batch_size=8, explain=True)
    assert_equal(found, chain.predict(DATA.images, ids, seed=1, batch_size=8, explain=True))


def test_without_workers_this_process_predicts() -> None:
    chain = chain_of()
    assert_equal(predict_on(chain, DATA, seed=3), chain.predict(DATA, seed=3))
    assert_equal(predict_on(chain, DATA, processes=1, seed=3), chain.predict(DATA, seed=3))
    with pytest.raises(ConfigError, match="threads are those of workers"):
        predict_on(chain, DATA, threads=2)


def test_what_predict_refuses_is_refused() -> None:
    chain = chain_of()
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        predict_on(chain, DATA.images * 3, processes=2)
