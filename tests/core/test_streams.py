"""Streams: what an image receives depends on its id, the seed, the stage and the draw, on nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfedpure.core import philox
from medfedpure.core.errors import ConfigError, InputError, MedFedPureError
from medfedpure.core.streams import Streams, _check_layout, _mix, _twister_words, derive_seed, isolated_rng
from medfedpure.testing.checking import global_rng_untouched

SHAPE = (2, 5, 3)
BACKENDS = ("reference", "device")
DRAWS = {
    "normal": lambda streams: streams.normal(SHAPE, stage="noise"),
    "uniform": lambda streams: streams.uniform(SHAPE, stage="noise"),
    "permutations": lambda streams: streams.permutations(12, stage="noise"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=8), data=st.data())
def test_noise_is_bit_equal_in_every_batch(draw, backend, ids, data) -> None:
    whole = draw(Streams(3, torch.tensor(ids), backend))
    order = data.draw(st.permutations(range(len(ids))))
    shuffled = draw(Streams(3, torch.tensor([ids[place] for place in order]), backend))
    assert torch.equal(shuffled, whole[list(order)]), "noise changed with the order of the batch"
    for place, image_id in enumerate(ids):
        alone = draw(Streams(3, torch.tensor([image_id]), backend))
        assert torch.equal(alone[0], whole[place]), "noise changed with the size of the batch"


@pytest.mark.parametrize("backend", BACKENDS)
def test_seed_id_stage_draw_and_child_change_the_noise(backend: str) -> None:
    base = Streams(3, torch.tensor([7]), backend)
    variants = {
        "base": base.normal(SHAPE, stage="noise"),
        "seed": Streams(4, torch.tensor([7]), backend).normal(SHAPE, stage="noise"),
        "id": Streams(3, torch.tensor([8]), backend).normal(SHAPE, stage="noise"),
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_ids_share_their_noise(backend: str) -> None:
    noise = Streams(0, torch.tensor([5, 5, 6]), backend).normal(SHAPE, stage="noise")
    assert torch.equal(noise[0], noise[1]), "equal ids, other noise"
    assert not torch.equal(noise[0], noise[2]), "other ids, equal noise"


@pytest.mark.parametrize("backend", BACKENDS)
def test_noise_looks_as_it_should(backend: str) -> None:
    streams = Streams.for_batch(0, 500, backend)
    normal = streams.normal((10, 10), stage="a")
    assert float(normal.mean()) == pytest.approx(0, abs=0.02), "the mean of 50,000 normal numbers is near 0"
    assert float(normal.std()) == pytest.approx(1, abs=0.02), "their standard deviation is near 1"
    uniform = streams.uniform((10, 10), stage="a")
    assert 0 <= float(uniform.min()) < 0.01, "uniform numbers start at 0"
    assert 0.99 < float(uniform.max()) < 1, "uniform numbers end below 1"
    correlation = torch.corrcoef(normal.flatten(1)[:30]).fill_diagonal_(0).abs().max()
    assert float(correlation) < 0.5, "neighbouring ids have correlated noise"


@pytest.mark.parametrize("backend", BACKENDS)
def test_permutations(backend: str) -> None:
    rows = Streams.for_batch(0, 6, backend).permutations(9, stage="mask")
    assert torch.equal(rows.sort(1).values, torch.arange(9).expand(6, 9)), "rows must be permutations"
    assert rows.unique(dim=0).shape[0] > 1, "all images share one order"


def test_the_global_random_state_is_untouched() -> None:
    with global_rng_untouched("Streams"):
        for draw in DRAWS.values():
            for backend in BACKENDS:
                draw(Streams.for_batch(0, 4, backend))
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches(backend: str) -> None:
    none = Streams.for_batch(0, 0, backend)
    assert none.normal(SHAPE, stage="a").shape == (0, *SHAPE), "no image, no noise"
    assert none.permutations(4, stage="a").shape == (0, 4), "no image, no order"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_noise_follows_dtype(dtype: torch.dtype, backend: str) -> None:
    like = torch.zeros(1, dtype=dtype)
    noise = Streams.for_batch(0, 2, backend).normal(SHAPE, stage="a", like=like)
    assert noise.dtype == dtype, f"{noise.dtype} for {dtype}"
    assert torch.equal(noise, Streams.for_batch(0, 2, backend).normal(SHAPE, stage="a").to(dtype)), (
        "drawn in float32 first"
    )


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


def test_numbers_of_numpy_are_numbers() -> None:
    assert derive_seed(numpy.int64(3), "x") == derive_seed(3, "x")
    three = Streams(numpy.int64(3), torch.tensor([1])).normal(SHAPE, stage="a")
    assert torch.equal(three, Streams(3, torch.tensor([1])).normal(SHAPE, stage="a")), "seed=numpy.int64(3) is 3"


# -- keys of full width -----------------------------------------------------------------------------------------------

ALIKE = (59766, 115524)
"""Under seed 0 and stage "purify" the old seeds of these two images agree in their low 32 bits."""


def test_two_images_that_shared_their_noise_no_longer_do() -> None:
    low = [derive_seed(0, image, "purify", 0) % 2**32 for image in ALIKE]
    assert low[0] == low[1], "the pair is no pair: the test shows nothing"
    for backend in BACKENDS:
        one, other = Streams(0, torch.tensor(ALIKE), backend).normal((64,), stage="purify")
        assert abs(float(torch.corrcoef(torch.stack((one, other)))[0, 1])) < 0.5, f"{backend}: one noise for two images"
    one, other = Streams(0, torch.tensor(ALIKE), "format_1").normal((64,), stage="purify")
    assert torch.equal(one, other), "format_1 must repeat what version 0.1 drew"


def test_format_1_repeats_what_was_drawn_before() -> None:
    generator = torch.Generator().manual_seed(derive_seed(5, 7, "noise", 2))
    wanted = torch.randn(SHAPE, generator=generator)
    assert torch.equal(Streams(5, torch.tensor([7]), "format_1").normal(SHAPE, stage="noise", draw=2)[0], wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_million_keys_do_not_collide(backend: str) -> None:
    streams = Streams(0, torch.arange(1_000_000), backend)
    if backend == "reference":
        keys = torch.frombuffer(bytearray(streams._keys("noise", 0)), dtype=torch.int64).view(-1, 2)
    else:
        keys = streams._images[torch.device("cpu")]
        keys = torch.stack((keys[:, 0] << 32 | keys[:, 1], keys[:, 2]), 1)
    first = keys[:, 0].sort()
    same = (first.values[1:] == first.values[:-1]).nonzero().squeeze(1)
    seconds = keys[first.indices, 1]
    assert not bool((seconds[same] == seconds[same + 1]).any()), "two of a million images share a key"
    for word in range(2):
        ones = sum(float((keys[:, word] >> bit & 1).double().mean()) for bit in range(32)) / 32
        assert ones == pytest.approx(0.5, abs=1e-3), "bits of the keys are not balanced"


def test_the_reference_fills_the_whole_state_of_its_generator() -> None:
    """numpy's Mersenne Twister with the same 624 words gives the same numbers, so that nothing of the key is lost."""
    streams = Streams(1, torch.tensor([4, 5]))
    keys = torch.frombuffer(bytearray(streams._keys("a", 0)), dtype=torch.int64).view(-1, 2)
    for words, generator in zip(_twister_words(keys), streams._generators("a", 0), strict=True):
        twister = numpy.random.RandomState()
        twister.set_state(("MT19937", words.numpy().astype(numpy.uint32), 624))
        wanted = twister.randint(0, 2**32, 1500, dtype=numpy.uint32) % 2**16
        found = torch.empty(1500, dtype=torch.int64).random_(0, 2**16, generator=generator)
        assert found.tolist() == wanted.tolist()


def test_split_mix_by_its_published_numbers() -> None:
    """The first outputs of SplitMix64 from the state 1234567, as the reference implementation prints them."""
    golden = 0x9E3779B97F4A7C15
    states = torch.tensor([_signed(1234567 + golden * step) for step in (1, 2, 3)])
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [value % 2**64 for value in _mix(states).tolist()] == wanted


def _signed(value: int) -> int:
    return (value + 2**63) % 2**64 - 2**63


# -- statistics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_uniform_and_normal_numbers_have_their_distributions(backend: str) -> None:
    streams = Streams.for_batch(3, 64, backend)
    uniform = streams.uniform((4096,), stage="u").flatten().double().sort().values
    places = (torch.arange(len(uniform)) + 0.5) / len(uniform)
    limit = 1.95 / len(uniform) ** 0.5
    assert float((uniform - places).abs().max()) < limit, "uniform numbers fail Kolmogorov's test at one in a thousand"
    normal = streams.normal((4096,), stage="n").flatten().double()
    expected = torch.special.ndtr(normal.sort().values)
    assert float((expected - places).abs().max()) < limit, "normal numbers fail Kolmogorov's test"
    for power, moment, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        found = float((normal**power).mean())
        assert found == pytest.approx(moment, abs=4 * (deviation / len(normal)) ** 0.5), f"moment {power}"
    beyond = int((normal.abs() > 4).sum())
    assert 4 <= beyond <= 35, f"{beyond} of 262,144 lie beyond 4; 16.6 are expected"


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_stages_and_draws_are_uncorrelated(backend: str) -> None:
    """Pairs that a counter or a seed would take next: neighbours and far bits of ids, stages, draws, seeds."""
    size = 2048
    ids = torch.tensor([*range(16), *(2**bit for bit in range(4, 62, 4)), -1, -2, -(2**62), 2**63 - 1])
    rows = [Streams(0, ids, backend).normal((size,), stage="a")]
    rows += [Streams(0, ids[:1], backend).normal((size,), stage="a", draw=draw) for draw in range(1, 9)]
    rows += [Streams(0, ids[:1], backend).normal((size,), stage=name) for name in ("b", "aa", "a ", "")]
    rows += [Streams(seed, ids[:1], backend).normal((size,), stage="a") for seed in (1, 2, 2**32, 2**63, 2**64, -1)]
    matrix = torch.corrcoef(torch.cat(rows).double())
    worst = float((matrix - torch.eye(len(matrix))).abs().max())
    assert worst < 5 / size**0.5, f"a correlation of {worst:.3f} among {len(matrix)} streams of {size} numbers"
    lagged = torch.cat(rows).double()
    within = float((lagged[:, 1:] * lagged[:, :-1]).mean(1).abs().max())
    assert within < 5 / size**0.5, f"neighbouring pixels are correlated ({within:.3f})"


# -- the counter-based backend ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_by_the_known_answers_of_its_authors(counter, key, wanted) -> None:
    found = philox.block([torch.tensor([word]) for word in counter], [torch.tensor([word]) for word in key])
    assert tuple(int(word) for word in found) == wanted


def test_the_quantile_is_that_of_the_normal_distribution() -> None:
    ends = torch.arange(2000)
    words = torch.cat((torch.arange(0, 2**32, 65537), ends, 2**32 - 1 - ends))
    exact = torch.special.ndtri((words.double() + 0.5) / 2**32)
    found = philox.normal(words).double()
    assert float((found - exact).abs().max()) < 3e-6, "AS 241 promises seven digits"
    assert torch.equal(philox.normal(2**32 - 1 - words), -philox.normal(words)), "not symmetric"


def test_portions_change_nothing(monkeypatch) -> None:
    streams = Streams.for_batch(0, 7, "device")
    whole = streams.normal((6,), stage="a")
    monkeypatch.setattr("medfedpure.core.streams._AT_ONCE", 13)
    assert torch.equal(streams.normal((6,), stage="a"), whole)


def test_the_noise_of_a_smaller_image_is_the_beginning_of_a_larger_ones() -> None:
    streams = Streams.for_batch(0, 3, "device")
    assert torch.equal(streams.normal((5,), stage="a"), streams.normal((9,), stage="a")[:, :5])


def test_device_noise_is_recorded() -> None:
    """Equal on every device and in every version: a change here parts saved results from their seeds."""
    streams = Streams(7, torch.tensor([0, 12345]), "device")
    words = streams._drawn(lambda bits: bits, (2,), "noise", 0, None)
    assert words.tolist() == [[243363554, 4269844084], [2748405439, 3662542218]], "integers changed"
    normal = torch.tensor([[-1.5834232568740845, 2.5210983753204346], [0.35822629928588867, 1.0483099222183228]])
    assert torch.equal(streams.normal((2,), stage="noise"), normal), "numbers changed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_draws_what_the_cpu_draws() -> None:
    streams, like = Streams.for_batch(0, 64, "device"), torch.empty(0, device="cuda")
    for draw in (streams.normal, streams.uniform):
        assert torch.equal(draw((4096,), stage="a", like=like).cpu(), draw((4096,), stage="a"))
    assert torch.equal(
        streams.permutations(99, stage="a", device=like.device).cpu(), streams.permutations(99, stage="a")
    )


def test_another_layout_of_the_generator_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("medfedpure.core.streams._WORDS", slice(16, 16 + 8 * 624))
    _check_layout.cache_clear()
    with pytest.raises(MedFedPureError, match="another way"):
        Streams.for_batch(0, 1).normal((1,), stage="a")
    _check_layout.cache_clear()


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="reference or device"):
        Streams(0, torch.tensor([1]), "gpu")


def test_the_default_dtype_and_device_do_not_matter() -> None:
    wanted = DRAWS["normal"](Streams.for_batch(0, 3))
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(DRAWS["normal"](Streams.for_batch(0, 3)), wanted), "drawn in float32, always"
    finally:
        torch.set_default_dtype(before)
