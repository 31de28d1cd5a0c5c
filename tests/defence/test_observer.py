"""Whoever watches `predict` is told of every batch: ids, scores, flags, times, and no image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from chains import DATA, chain_of
from torch import Tensor

from medfedpure import InputError, Observation
from medfedpure.core.progress import listening


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.found: list[Observation] = []

    def observe(self, found: Observation) -> None:
        self.found.append(found)


class Bars:
    """A listener that counts steps."""

    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def started(self, description: str, total: int) -> int:
        self.seen.append(("started", description, total))
        return 0

    def advanced(self, handle: int, note: str = "") -> None:
        self.seen.append(("advanced",))

    def finished(self, handle: int) -> None:
        self.seen.append(("finished",))


def test_every_batch_is_told_in_order() -> None:
    chain, recorder = chain_of(), Recorder()
    found = chain.predict(DATA, seed=0, batch_size=8, observer=recorder)
    assert [len(batch.ids) for batch in recorder.found] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([batch.ids for batch in recorder.found]), DATA.ids)
    assert torch.equal(torch.cat([batch.scores for batch in recorder.found]), found.scores)
    assert torch.equal(torch.cat([batch.flagged for batch in recorder.found]), found.flagged)
    assert all(batch.seconds > 0 for batch in recorder.found)


def test_watching_changes_no_answer() -> None:
    chain = chain_of()
    watched = chain.predict(DATA, seed=0, batch_size=8, observer=Recorder())
    assert torch.equal(watched.logits, chain.predict(DATA, seed=0, batch_size=8).logits)


def test_no_image_is_told() -> None:
    recorder = Recorder()
    chain_of().predict(DATA, seed=0, observer=recorder)
    for field in dataclasses.fields(Observation):
        value = getattr(recorder.found[0], field.name)
        assert not isinstance(value, Tensor) or value.ndim == 1, f"{field.name} has the shape of images"


def test_without_a_detector_there_are_no_scores() -> None:
    recorder = Recorder()
    chain = chain_of("purify_all", calibrate=False)
    chain.detector = None
    chain.predict(DATA.images, observer=recorder)
    assert recorder.found[0].scores is None
    assert not recorder.found[0].flagged.any()


def test_an_observer_may_stop_a_prediction() -> None:
    class Stops:
        def observe(self, found: Observation) -> None:
            raise InterruptedError(f"{len(found.ids)} images are enough")

    with pytest.raises(InterruptedError, match="8 images are enough"):
        chain_of().predict(DATA, batch_size=8, observer=Stops())


def test_a_long_prediction_has_a_bar_where_someone_listens() -> None:
    chain, bars = chain_of(), Bars()
    with listening(bars):
        chain.predict(DATA, batch_size=8)
    assert bars.seen == [("started", "predict", 4), *[("advanced",)] * 4, ("finished",)]
    chain.predict(DATA, batch_size=8)
    assert len(bars.seen) == 6, "outside the block nobody listens"


def test_one_batch_and_a_loader_have_no_bar() -> None:
    chain, bars = chain_of(), Bars()
    with listening(bars):
        chain.predict(DATA)
        chain.predict(iter(DATA.batches(8)))
    assert bars.seen == []


def test_what_is_told_may_be_changed_and_kept() -> None:
    class Overwrites(Recorder):
        def observe(self, found: Observation) -> None:
            super().observe(dataclasses.replace(found, ids=found.ids.clone()))
            found.scores.zero_()
            found.ids.fill_(7)
            found.flagged.fill_(True)

    chain, ids = chain_of(), DATA.ids.clone()
    found = chain.predict(DATA.images, ids=ids, seed=0, batch_size=8, observer=Overwrites())
    assert torch.equal(found.logits, chain.predict(DATA.images, ids=DATA.ids, seed=0, batch_size=8).logits)
    assert found.scores.any()
    assert torch.equal(ids, DATA.ids), "the caller's ids were overwritten"


@pytest.mark.parametrize("wrong", [torch.tensor(0.5), torch.rand(3, 8, 8)])
def test_no_images_are_an_input_error(wrong: Tensor) -> None:
    with pytest.raises(InputError):
        chain_of().predict(wrong)


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_has_a_size(size: int) -> None:
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        chain_of().predict(DATA, batch_size=size)
    with pytest.raises(InputError, match="batch_size must be at least 1"):
        chain_of().score_benign(DATA.images, batch_size=size)
