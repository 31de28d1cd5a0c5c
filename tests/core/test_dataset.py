"""Data sets in memory: groups are never separated, sizes and classes come near to what was asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medfedpure.core.dataset import Attribute, ImageDataset, check_disjoint
from medfedpure.core.errors import DataError
from medfedpure.testing import tiny_dataset
from medfedpure.testing.checking import global_rng_untouched


def grouped(images: int = 400, groups: int = 150, classes: int = 2, sites: int = 4, seed: int = 0) -> ImageDataset:
    """Small random images in groups of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    owner = (torch.rand(images, generator=generator) ** 2 * groups).long()
    return ImageDataset(
        pixels=torch.randint(0, 256, (images, 1, 2, 2), generator=generator, dtype=torch.uint8),
        labels=torch.randint(0, classes, (groups,), generator=generator)[owner],
        groups=owner * 11 + 5,
        class_names=tuple("abcdefgh"[:classes]),
        ids=torch.arange(images) * 3 + 1,
        sites=torch.randint(0, sites, (groups,), generator=generator)[owner] + 2,
    )


def share_of_positives(data: ImageDataset) -> float:
    return float(data.labels.double().mean())


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    shares=st.lists(st.floats(0.1, 1.0), min_size=1, max_size=5),
    groups=st.integers(60, 300),
    seed=st.integers(0, 10**6),
)
def test_split_by_group(shares: list[float], groups: int, seed: int) -> None:
    data = grouped(groups=groups, seed=seed % 7)
    fractions = {f"part{place}": share for place, share in enumerate(shares)}
    parts = data.split(fractions, seed=seed)
    check_disjoint(parts)
    ids = torch.cat([part.ids for part in parts.values()])
    assert torch.equal(ids.sort().values, data.ids), "images were lost or doubled"
    largest = int(torch.bincount(data.groups).max())
    for name, part in parts.items():
        wanted = len(data) * fractions[name] / sum(shares)
        assert abs(len(part) - wanted) <= 2 * largest, f"{name} has {len(part)} images; about {wanted:.0f} were asked"
        near = abs(share_of_positives(part) - share_of_positives(data))
        assert near <= 2 * largest / len(part), f"{name} is not stratified: {near:.2f} away from the whole"


def test_split_repeats_and_follows_the_seed() -> None:
    data, shares = grouped(), {"train": 0.5, "test": 0.5}
    with global_rng_untouched("split"):
        one, two, other = (data.split(shares, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one["train"].ids, two["train"].ids), "equal seeds give another split"
    assert not torch.equal(one["train"].ids, other["train"].ids), "the seed does nothing"


def test_split_by_image_leaks_on_purpose() -> None:
    parts = grouped().split({"train": 0.5, "test": 0.5}, by="image")
    with pytest.raises(DataError, match="stands in both"):
        check_disjoint(parts)


def test_five_parts_stay_apart() -> None:
    shares = {"train": 0.6, "validation": 0.1, "tune": 0.1, "calibrate": 0.1, "test": 0.1}
    parts = grouped(images=1000, groups=400).split(shares)
    prints = check_disjoint(parts)
    assert list(prints) == list(shares), "a fingerprint is missing"
    assert len(set(prints.values())) == 5, "parts share a fingerprint"


def test_splits_that_cannot_be() -> None:
    data = grouped()
    few = data.select(data.groups == data.groups[0])
    with pytest.raises(DataError, match="too few"):
        few.split({"train": 0.5, "test": 0.5})
    for wrong in ({}, {"train": 0.0, "test": 1.0}, {"train": -1.0, "test": 2.0}):
        with pytest.raises(DataError, match="positive"):
            data.split(wrong)


@pytest.mark.parametrize("how", ["equal", "dirichlet", "site"])
@pytest.mark.parametrize("clients", [1, 2, 3, 4])
def test_partition_never_parts_a_group(how, clients: int) -> None:
    data = grouped()
    with global_rng_untouched("partition"):
        parts = data.partition(clients, by=how, alpha=0.5, seed=3)
    check_disjoint({str(place): part for place, part in enumerate(parts)})
    assert sum(len(part) for part in parts) == len(data), "images were lost or doubled"
    again = data.partition(clients, by=how, alpha=0.5, seed=3)
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(parts, again, strict=True)), "equal seeds differ"


def test_equal_partition_is_even() -> None:
    data = grouped(images=1200, groups=600)
    largest = int(torch.bincount(data.groups).max())
    for part in data.partition(4):
        assert abs(len(part) - 300) <= 2 * largest, f"a client holds {len(part)} of 1200 images"
        near = abs(share_of_positives(part) - share_of_positives(data))
        assert near < 0.06, f"a client's classes are {near:.2f} away from the whole"


def test_dirichlet_skew_grows_as_alpha_falls() -> None:
    data = grouped(images=1500, groups=1200)

    def skew(alpha: float) -> float:
        total, count = 0.0, 0
        for seed in range(40):
            try:
                parts = data.partition(3, by="dirichlet", alpha=alpha, seed=seed)
            except DataError:
                continue
            total += sum(abs(share_of_positives(part) - share_of_positives(data)) for part in parts)
            count += len(parts)
        assert count >= 30, f"too many partitions fail at alpha {alpha}"
        return total / count

    measured = [skew(alpha) for alpha in (100.0, 10.0, 1.0, 0.3)]
    assert measured == sorted(measured), f"skew must grow as alpha falls: {measured}"
    assert measured[0] < 0.05 < 0.2 < measured[-1], f"alpha 100 is nearly even, alpha 0.3 far from it: {measured}"


def test_dirichlet_shares_have_the_right_mean_and_spread() -> None:
    from medfedpure.core.rows.division import dirichlet

    alpha, clients = 2.0, 4
    rows = torch.tensor([dirichlet(1, clients, alpha, seed)[0] for seed in range(3000)], dtype=torch.float64)
    shares = rows / rows.sum(1, keepdim=True)
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert float(shares[:, 0].mean()) == pytest.approx(1 / clients, abs=0.01), "the mean share is 1 / clients"
    assert float(shares[:, 0].var()) == pytest.approx(variance, rel=0.1), "the variance is that of a Dirichlet"


def test_partition_by_site() -> None:
    data = grouped(sites=4)
    for part in data.partition(4, by="site"):
        assert part.sites.unique().numel() == 1, "with as many clients as sites each has one"
    two = data.partition(2, by="site")
    assert not set(two[0].sites.tolist()) & set(two[1].sites.tolist()), "a site lies at two clients"


def test_partitions_that_cannot_be() -> None:
    data = grouped(sites=3)
    unknown = ImageDataset(data.pixels, data.labels, data.groups, data.class_names)
    for call in (
        lambda: data.partition(4, by="site"),
        lambda: unknown.partition(2, by="site"),
        lambda: data.partition(2, by="dirichlet", alpha=0.0),
        lambda: data.partition(2, by="color"),
        lambda: data.partition(0),
        lambda: data.select(data.groups == data.groups[0]).partition(2),
        lambda: data.select(torch.zeros(len(data), dtype=torch.bool)).partition(2),
    ):
        with pytest.raises(DataError):
            call()


def test_a_group_of_several_sites_stays_together() -> None:
    data = tiny_dataset(40)
    torn = ImageDataset(data.pixels, data.labels, data.groups, data.class_names, sites=(torch.arange(40) + 1) // 2 % 4)
    parts = torn.partition(2, by="site")
    check_disjoint({str(place): part for place, part in enumerate(parts)})
    assert sum(len(part) for part in parts) == 40, "images were lost or doubled"


@pytest.mark.parametrize("most", [1, 2, 5, 10**6])
def test_cap_groups(most: int) -> None:
    data = grouped()
    with global_rng_untouched("cap_groups"):
        capped = data.cap_groups(most, seed=4)
    counts = torch.bincount(data.groups).clamp_max(most)
    assert torch.equal(torch.bincount(capped.groups), counts), f"groups must keep min(size, {most}) images"
    assert bool((capped.ids.diff() > 0).all()), "the order of the data must stay"
    assert torch.equal(capped.ids, data.cap_groups(most, seed=4).ids), "equal seeds differ"
    assert len(data.one_per_group()) == data.num_groups, "one image of each group"


def test_select_carries_everything_along() -> None:
    data = tiny_dataset(12)
    masked = ImageDataset(
        data.pixels, data.labels, data.groups, data.class_names, data.ids, data.sites, data.pixels[:, :1] > 128
    )
    index = torch.tensor([5, 0, 9])
    part = masked.select(index)
    for name in ("pixels", "labels", "groups", "ids", "sites", "masks"):
        assert torch.equal(getattr(part, name), getattr(masked, name)[index]), f"{name} did not travel along"
    assert torch.equal(masked.select(masked.labels == 1).ids, masked.ids[masked.labels == 1]), "by a mask"
    joined = ImageDataset.concatenate([part, masked.select(torch.tensor([1, 2]))])
    assert joined.masks is not None, "masks were lost in joining"
    assert len(joined.masks) == len(joined) == 5, "masks were lost in joining"
    with pytest.raises(DataError, match="distinct"):
        ImageDataset.concatenate([part, part])


def test_batches() -> None:
    data = tiny_dataset(10)
    batches = list(data.batches(4))
    assert [len(batch.ids) for batch in batches] == [4, 4, 2], "batches of 4, the last one shorter"
    assert torch.equal(torch.cat([batch.images for batch in batches]), data.images), "images differ from the whole"
    assert torch.equal(torch.cat([batch.ids for batch in batches]), data.ids), "ids differ from the whole"
    assert batches[0].images.dtype == torch.float32, "images must be float32"
    assert float(data.images.max()) <= 1, "images must lie in [0, 1]"


def test_fingerprints() -> None:
    data = grouped()
    assert data.fingerprint() == grouped().fingerprint(), "equal data, another fingerprint"
    changed = data.pixels.clone()
    changed[3, 0, 1, 1] ^= 1
    others = {
        "a pixel": replace(data, pixels=changed),
        "a label": replace(data, labels=data.labels.clone().fill_(1)),
        "the groups": replace(data, groups=data.groups + 1),
        "the order": data.select(torch.arange(len(data)).flip(0)),
        "a part": data.select(torch.arange(5)),
    }
    for what, other in others.items():
        assert other.fingerprint() != data.fingerprint(), f"{what} does not change the fingerprint"
        assert other.fingerprint(format=1) != data.fingerprint(format=1), f"{what} does not change format 1"
    assert data.select(torch.arange(len(data))).fingerprint() == data.fingerprint(), "a full selection is the same"


@pytest.mark.parametrize(
    "change",
    [
        {"pixels": torch.zeros(4, 1, 2, 2)},
        {"pixels": torch.zeros(4, 2, 2, dtype=torch.uint8)},
        {"labels": torch.tensor([0, 1, 0, 2])},
        {"labels": torch.tensor([0, 1, 0, -1])},
        {"labels": torch.zeros(4)},
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"groups": torch.zeros(4, 1, dtype=torch.int64)},
        {"ids": torch.tensor([1, 2, 3, 3])},
        {"sites": torch.zeros(2, dtype=torch.int64)},
        {"masks": torch.zeros(4, 2, 2, dtype=torch.bool)},
        {"masks": torch.zeros(4, 1, 2, 2)},
        {"top": -1},
        {"top": 256},
        {"pixels": torch.full((4, 1, 2, 2), 101, dtype=torch.uint8), "top": 100},
        {"pixels": torch.full((4, 1, 2, 2), 65535).to(torch.uint16), "top": 4095},
        {"levels": {"patient": torch.zeros(4)}},
        {"levels": {"patient": torch.zeros(3, dtype=torch.int64)}},
        {"levels": {"patient": torch.arange(4), "study": torch.tensor([0, 0, 1, 1])}},
        {"attributes": {"sex": Attribute(("F",), torch.zeros(3, dtype=torch.int64))}},
    ],
    ids=lambda change: "-".join(change),
)
def test_wrong_parts_are_refused(change: dict) -> None:
    good = {
        "pixels": torch.zeros(4, 1, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 0, 1]),
        "groups": torch.arange(4),
        "class_names": ("a", "b"),
    }
    ImageDataset(**good)
    with pytest.raises(DataError):
        ImageDataset(**{**good, **change})
