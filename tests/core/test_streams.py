"""Streams: what an image receives depends on its id, the seed, the stage and the draw, on nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfedpure.core.errors import InputError
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.testing.checking import global_rng_untouched

SHAPE = (2, 5, 3)
DRAWS = {
    "normal": lambda streams: streams.normal(SHAPE, stage="noise"),
    "uniform": lambda streams: streams.uniform(SHAPE, stage="noise"),
    "permutations": lambda streams: streams.permutations(12, stage="noise"),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), data=st.data())
def test_noise_is_bit_equal_in_every_batch(draw, ids, data) -> None:
    whole = draw(Streams(3, torch.tensor(ids)))
    order = data.draw(st.permutations(range(len(ids))))
    shuffled = draw(Streams(3, torch.tensor([ids[place] for place in order])))
    assert torch.equal(shuffled, whole[list(order)]), "noise changed with the order of the batch"
    for place, image_id in enumerate(ids):
        alone = draw(Streams(3, torch.tensor([image_id])))
        assert torch.equal(alone[0], whole[place]), "noise changed with the size of the batch"


def test_seed_id_stage_draw_and_child_change_the_noise() -> None:
    base = Streams(3, torch.tensor([7]))
    variants = {
        "base": base.normal(SHAPE, stage="noise"),
        "seed": Streams(4, torch.tensor([7])).normal(SHAPE, stage="noise"),
        "id": Streams(3, torch.tensor([8])).normal(SHAPE, stage="noise"),
        "stage": base.normal(SHAPE, stage="other"),
        "draw": base.normal(SHAPE, stage="noise", draw=1),
        "child": base.child("vote").normal(SHAPE, stage="noise"),
        "another child": base.child(1).normal(SHAPE, stage="noise"),
        "a child named like a number": base.child("1").normal(SHAPE, stage="noise"),
        "grandchild": base.child("vote").child("vote").normal(SHAPE, stage="noise"),
    }
    names = list(variants)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert not torch.equal(variants[one], variants[other]), f"{one} and {other} share their noise"


def test_equal_ids_share_their_noise() -> None:
    noise = Streams(0, torch.tensor([5, 5, 6])).normal(SHAPE, stage="noise")
    assert torch.equal(noise[0], noise[1]), "equal ids, other noise"
    assert not torch.equal(noise[0], noise[2]), "other ids, equal noise"


def test_noise_looks_as_it_should() -> None:
    streams = Streams.for_batch(0, 500)
    normal = streams.normal((10, 10), stage="a")
    assert float(normal.mean()) == pytest.approx(0, abs=0.02), "the mean of 50,000 normal numbers is near 0"
    assert float(normal.std()) == pytest.approx(1, abs=0.02), "their standard deviation is near 1"
    uniform = streams.uniform((10, 10), stage="a")
    assert 0 <= float(uniform.min()) < 0.01, "uniform numbers start at 0"
    assert 0.99 < float(uniform.max()) < 1, "uniform numbers end below 1"
    correlation = torch.corrcoef(normal.flatten(1)[:30]).fill_diagonal_(0).abs().max()
    assert float(correlation) < 0.5, "neighbouring ids have correlated noise"


def test_permutations() -> None:
    rows = Streams.for_batch(0, 6).permutations(9, stage="mask")
    assert torch.equal(rows.sort(1).values, torch.arange(9).expand(6, 9)), "rows must be permutations"
    assert rows.unique(dim=0).shape[0] > 1, "all images share one order"


def test_the_global_random_state_is_untouched() -> None:
    with global_rng_untouched("Streams"):
        for draw in DRAWS.values():
            draw(Streams.for_batch(0, 4))
    torch.manual_seed(0)
    first = DRAWS["normal"](Streams.for_batch(0, 4))
    torch.manual_seed(1)
    assert torch.equal(DRAWS["normal"](Streams.for_batch(0, 4)), first), "the global seed matters"


def test_isolated_rng() -> None:
    with global_rng_untouched("isolated_rng"):
        with isolated_rng(5):
            first = torch.rand(3)
        with isolated_rng(5):
            assert torch.equal(torch.rand(3), first), "the block is not seeded"
        with pytest.raises(ZeroDivisionError), isolated_rng(5):
            _ = torch.rand(3) / (1 // 0)


def test_select() -> None:
    streams = Streams(0, torch.tensor([4, 9, 2]))
    assert streams.select(torch.tensor([2, 0])).ids.tolist() == [2, 4], "by positions"
    assert streams.select(torch.tensor([True, False, True])).ids.tolist() == [4, 2], "by a mask"
    assert len(streams.select(torch.tensor([], dtype=torch.int64))) == 0, "nothing"
    assert streams.select(torch.tensor([0])).seed == streams.seed, "the seed stays"


def test_empty_batches() -> None:
    none = Streams.for_batch(0, 0)
    assert none.normal(SHAPE, stage="a").shape == (0, *SHAPE), "no image, no noise"
    assert none.permutations(4, stage="a").shape == (0, 4), "no image, no order"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_noise_follows_dtype(dtype: torch.dtype) -> None:
    like = torch.zeros(1, dtype=dtype)
    noise = Streams.for_batch(0, 2).normal(SHAPE, stage="a", like=like)
    assert noise.dtype == dtype, f"{noise.dtype} for {dtype}"
    assert torch.equal(noise, Streams.for_batch(0, 2).normal(SHAPE, stage="a").to(dtype)), "drawn in float32 first"


@pytest.mark.parametrize("ids", [torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2), torch.tensor(3)])
def test_wrong_ids_raise(ids: torch.Tensor) -> None:
    with pytest.raises(InputError):
        Streams(0, ids)


def test_derive_seed_is_the_same_everywhere() -> None:
    assert derive_seed(0, "noise", 3) == 1268448877862088369, "seeds changed: saved results would not repeat"
    assert derive_seed(1) != derive_seed("1"), "a number and its text are different parts"
    assert derive_seed("a", "b") != derive_seed("ab"), "parts must not run together"
    code = "from medfedpure.core.streams import derive_seed; print(derive_seed('x', 1))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed("x", 1), "another process derives another seed"
    assert 0 <= derive_seed("x", 1) < 2**63, "a seed has 63 bits"
