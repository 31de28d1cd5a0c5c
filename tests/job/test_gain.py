"""What a defence gains over what is simpler, with intervals, and what the run's page says of it."""

import math

import pytest
import torch

from medfedpure.core.dataset import ImageDataset
from medfedpure.evaluation.tally import Figure
from medfedpure.figures.intervals import paired_difference
from medfedpure.job.gain import gain_over_best, gains_over, mean_gain, shown


def labelled(labels, groups=None):
    count = len(labels)
    return ImageDataset(
        pixels=torch.zeros(count, 1, 2, 2, dtype=torch.uint8),
        labels=torch.tensor(labels),
        groups=torch.arange(count) if groups is None else torch.tensor(groups),
        class_names=("healthy", "lesion"),
    )


def test_a_gain_is_the_paired_difference_of_balanced_accuracies():
    test = labelled([0] * 20 + [1] * 20)
    defended = torch.tensor([0] * 18 + [1] * 2 + [1] * 16 + [0] * 4)
    bare = torch.tensor([0] * 10 + [1] * 10 + [1] * 6 + [0] * 14)
    found = gains_over(defended, {"bare": bare, "majority": torch.zeros_like(bare)}, test)
    assert found["bare"].value == pytest.approx((0.9 + 0.8) / 2 - (0.5 + 0.3) / 2)
    assert found["majority"].value == pytest.approx(0.85 - 0.5)
    halves = [
        paired_difference((defended == test.labels)[part], (bare == test.labels)[part])
        for part in (test.labels == 0, test.labels == 1)
    ]
    below = math.sqrt((0.4 - halves[0][0]) ** 2 + (0.5 - halves[1][0]) ** 2) / 2
    assert found["bare"].low == pytest.approx(0.45 - below), "the classes' distances add in squares"
    assert shown(found["bare"])


def test_one_group_has_no_interval_and_shows_nothing():
    found = gains_over(torch.tensor([0, 1]), {"bare": torch.tensor([1, 0])}, labelled([0, 1], [5, 5]))
    assert found["bare"] == Figure(value=1.0)
    assert not shown(found["bare"])
    assert mean_gain([found["bare"], Figure(value=0.0, low=-0.1, high=0.1)]) == Figure(value=0.5)


def test_distances_of_clients_add_in_squares():
    found = mean_gain([Figure(value=0.3, low=0.0, high=0.4), Figure(value=0.1, low=-0.3, high=0.5)])
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - math.hypot(0.3, 0.4) / 2)
    assert found.high == pytest.approx(0.2 + math.hypot(0.1, 0.4) / 2)


def test_the_best_baseline_is_that_with_the_least_gain_over_it():
    clients = [
        {"bare": Figure(value=0.4), "anchor": Figure(value=0.1), "majority": Figure(value=0.3)},
        {"bare": Figure(value=0.5), "anchor": Figure(value=0.1), "majority": Figure(value=-0.05)},
    ]
    assert gain_over_best(clients) == ("anchor", Figure(value=0.1))
    assert gain_over_best([{}, clients[0]]) is None, "results of version 0.1 hold none"
    assert gain_over_best([]) is None
