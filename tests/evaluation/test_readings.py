"""Intervals of balanced accuracy: certain of nothing, and covering what they promise."""

import pytest
import torch

from medfedpure.figures.balanced import balanced, balanced_interval
from medfedpure.figures.intervals import wilson

LABELS = torch.arange(24) % 2


def test_all_right_is_not_certain():
    low, high = balanced_interval(torch.ones(24, dtype=torch.bool), LABELS, torch.arange(24))
    assert 0.75 < low < 0.9
    assert high == pytest.approx(1.0)


def test_shares_of_draws_stand_between_the_draws():
    one, other = torch.arange(10) < 6, torch.arange(10) < 8
    alone, labels = torch.arange(10), torch.zeros(10, dtype=torch.int64)
    share = torch.stack((one, other)).double().mean(0)
    assert balanced(share, labels) == pytest.approx(0.7)
    low, high = balanced_interval(share, labels, alone)
    (low6, high6), (low8, high8) = (balanced_interval(right, labels, alone) for right in (one, other))
    assert low6 < low < low8
    assert high6 < high < high8
    low, high = balanced_interval(share, labels, alone // 2)
    assert low < 0.7 < high, "groups of two are drawn whole"


def test_one_class_is_wilson():
    right = torch.arange(10) < 7
    found = balanced_interval(right, torch.zeros(10, dtype=torch.int64), torch.arange(10))
    assert found == pytest.approx(wilson(7, 10))


# near 1 twelve images a class are too few for any interval of this kind; the bootstrap covers in half of the draws
@pytest.mark.parametrize(("shares", "least"), [((0.5, 0.5), 0.92), ((0.9, 0.6), 0.92), ((0.97, 0.97), 0.88)])
def test_it_covers_about_as_often_as_it_says(shares, least):
    generator = torch.Generator().manual_seed(0)
    chance = torch.tensor(shares)[LABELS]
    covered = 0
    for _ in range(400):
        low, high = balanced_interval(torch.rand(24, generator=generator) < chance, LABELS, torch.arange(24))
        covered += low <= sum(shares) / 2 <= high
    assert covered / 400 >= least, f"a 95 % interval covered in {covered / 4:.1f} % of 400 draws"


def test_groups_widen_it():
    right = (torch.arange(24) // 2) % 3 > 0
    labels = torch.arange(24) // 12
    alone = balanced_interval(right, labels, torch.arange(24))
    paired = balanced_interval(right, labels, torch.arange(24) // 2)
    assert alone[0] < balanced(right, labels) < alone[1]
    assert paired[1] - paired[0] > 0.9 * (alone[1] - alone[0])


def test_a_single_group_has_none():
    assert balanced_interval(torch.ones(4, dtype=torch.bool), LABELS[:4], torch.zeros(4, dtype=torch.int64)) is None
