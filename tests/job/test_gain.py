"""What a defence gains over what is simpler, with intervals, and what the run's page says of it."""

import math

import pytest
import torch

from medfedpure.core.dataset import ImageDataset
from medfedpure.evaluation.tally import Figure
from medfedpure.figures.intervals import paired_difference
from medfedpure.job.gain import gain_over_best, gains_over, mean_gain, shown
from medfedpure.job.records import Arm, ClientResult, RunResult
from medfedpure.reporting.job.words import guessing, of_chance


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


def measured(name, *, majority, gain, recalls=None, specificity=0.6):
    """A client whose defence reads 45 % of its attacked images."""
    arm = Arm(
        clean_balanced_accuracy=0.5,
        robust_balanced_accuracy=0.45,
        clean_sensitivity=0.5,
        robust_sensitivity=0.4,
        clean_specificity=specificity,
        robust_specificity=specificity,
        clean_recalls=recalls or {},
        robust_recalls=recalls or {},
    )
    plain = dict.fromkeys(name for name, info in ClientResult.model_fields.items() if info.annotation is float)
    return ClientResult(
        **{**dict.fromkeys(plain, 0.5), "majority_balanced_accuracy": majority},
        **dict.fromkeys(("test_images", "test_groups", "calibration_images"), 40),
        **dict.fromkeys(("bare", "anchor", "defended"), arm),
        bpda_robust_balanced_accuracy=None,
        client=name,
        calibration="",
        gains={} if gain is None else {"majority": gain},
    )


def run_of(classes, *clients):
    return RunResult.model_construct(class_names=list(classes), clients=list(clients))


def test_guessing_is_among_the_classes_that_a_client_has():
    """0.45 is above a third, and not above a half: of three classes only two are in this test part."""
    two_of_three = {"no": 0.6, "lesion": 0.4, "cyst": None}
    at = measured("a", majority=0.5, gain=Figure(value=-0.05, low=-0.1, high=0.02), recalls=two_of_three)
    assert of_chance(run_of(two_of_three, at), at) == "at chance level"
    # what this client trained on most is not in its test part, so that the anchor gets nothing
    absent = measured("b", majority=0.0, gain=Figure(value=0.45, low=0.3, high=0.6), recalls=two_of_three)
    assert of_chance(run_of(two_of_three, absent), absent) == "at chance level"
    better = Figure(value=0.117, low=0.05, high=0.2)
    whole = measured("c", majority=1 / 3, gain=better, recalls=dict.fromkeys("abc", 0.4))
    assert of_chance(run_of("abc", whole), whole) == ""
    one = measured("d", majority=1.0, gain=None, specificity=None)
    assert guessing(run_of("ab", one), one) == 1
    old = measured("e", majority=1 / 3, gain=None)
    assert guessing(run_of("abc", old), old) == 1 / 3, "version 0.1 keeps no recalls"
