"""The chain gives an image one answer, whatever stands around it; only flagged images enter the purifier."""

from __future__ import annotations

import itertools

import pytest
import torch
from chains import DATA, assert_same, chain_of
from hypothesis import given, settings
from hypothesis import strategies as st

from medfedpure.defence.calibration import Calibration
from medfedpure.testing.checking import global_rng_untouched, unchanged

# -- the same answer for every batching --------------------------------------------------------------------------


def test_every_kind_of_input_gives_the_same() -> None:
    chain = chain_of()
    wanted = chain.predict(DATA.images, DATA.ids, seed=4)
    batches = list(DATA.batches(7))
    assert_same(chain.predict(DATA, seed=4, batch_size=8), wanted, "an ImageDataset")
    assert_same(chain.predict(batches, seed=4), wanted, "a list of Batch objects")
    assert_same(chain.predict(iter(batches), seed=4), wanted, "a generator of Batch objects")
    counted = chain.predict(DATA.images, seed=4)
    tensors = [batch.images for batch in batches]
    assert_same(chain.predict(tensors, seed=4), counted, "a list of tensors, running index as ids")
    pairs = [(batch.images, batch.labels) for batch in batches]
    assert_same(chain.predict(pairs, seed=4), counted, "tuples of images and labels")
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA.images, DATA.labels), batch_size=4)
    assert_same(chain.predict(loader, seed=4), counted, "a torch DataLoader")


CHAIN = chain_of()
WHOLE = CHAIN.predict(DATA, seed=6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(order=st.permutations(range(len(DATA))), size=st.integers(1, len(DATA)), batch_size=st.integers(1, 40))
def test_the_batch_around_an_image_is_nothing(order: list[int], size: int, batch_size: int) -> None:
    places = torch.tensor(order[:size])
    part = DATA.select(places)
    found = CHAIN.predict(part.images, part.ids, seed=6, batch_size=batch_size)
    assert_same(found, WHOLE, f"{size} images in batches of {batch_size}", places)
    assert torch.equal(found.trace.nfe, WHOLE.trace.nfe[places]), "evaluations stand at another image"


def test_uneven_batches_give_the_same() -> None:
    cuts = (0, 1, 2, 9, 10, 26, 30)
    batches = [DATA.batch(torch.arange(a, b)) for a, b in itertools.pairwise(cuts)]
    for batch_size in (1, 3, 64):
        assert_same(CHAIN.predict(batches, seed=6, batch_size=batch_size), WHOLE, f"purified by {batch_size}")


def test_in_float64_the_agreement_is_closer() -> None:
    chain = chain_of()
    chain.double()
    images = DATA.images.double()
    whole = chain.predict(images, DATA.ids, seed=6)
    alone = [chain.predict(images[i : i + 1], DATA.ids[i : i + 1], seed=6) for i in range(len(DATA))]
    for name in ("scores", "logits", "images"):
        value = torch.cat([getattr(part, name) for part in alone])
        assert value.dtype == torch.float64, f"{name} must stay float64"
        assert torch.allclose(value, getattr(whole, name), atol=1e-10, rtol=0), f"{name} depends on the batch"


def test_predictions_repeat() -> None:
    chain = chain_of()
    with global_rng_untouched("predict"), unchanged({"images": DATA.images, **chain.state_dict()}, "predict"):
        first = chain.predict(DATA, seed=5)
    assert_same(chain.predict(DATA, seed=5), first, "the same seed")
    other = chain.predict(DATA, seed=6)
    assert not torch.equal(other.scores, first.scores), "the seed does nothing"
    fresh = [chain.predict(DATA).scores for _ in range(2)]
    assert not torch.equal(*fresh), "without a seed, noise must be fresh"


# -- only flagged images enter the purifier ----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 4, 5, 30])
def test_only_flagged_images_enter_the_purifier(batch_size: int) -> None:
    chain = chain_of()
    found = chain.predict(DATA, seed=1, batch_size=batch_size)
    entered = list(itertools.chain(*chain.purifier.seen))
    assert entered == DATA.ids[found.flagged].tolist(), "other images entered, or in another order"
    strengths = torch.cat(chain.purifier.strengths)
    assert torch.allclose(strengths, found.strength[found.flagged]), "strengths stand at other images"


def test_flagged_images_are_gathered_to_full_batches() -> None:
    chain = chain_of()
    found = chain.predict(DATA, seed=1, batch_size=4)
    flagged = int(found.flagged.sum())
    sizes = [len(ids) for ids in chain.purifier.seen]
    assert sum(sizes) == flagged, "every flagged image once"
    assert all(4 <= size < 8 for size in sizes[:-1]), f"batches of at least 4 were promised; got {sizes}"
    assert len(sizes) <= flagged // 4 + 1, f"{len(sizes)} purifier calls for {flagged} images"


def test_nothing_flagged_means_no_purifier_call() -> None:
    chain = chain_of(target_fpr=0.02)
    highest = chain.score_benign(DATA.images).max()
    chain.calibration = Calibration.fit(highest + torch.arange(1.0, 100.0), 0.02)
    found = chain.predict(DATA, seed=1)
    assert not found.flagged.any(), "no score lies above the threshold"
    assert chain.purifier.seen == [], "the purifier was called for nothing"
    assert torch.equal(found.images, DATA.images), "images must be the given ones"
