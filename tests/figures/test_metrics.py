"""Figures of merit agree with scikit-learn."""

import math

import pytest
import torch
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from medfedpure.core.errors import InputError
from medfedpure.core.verdict import ABSTAINED
from medfedpure.figures.metrics import (
    auroc,
    average_precision,
    classification_figures,
    expected_calibration_error,
    true_positive_rate,
)


def draws(seed, size=200):
    return torch.Generator().manual_seed(seed), size


@pytest.mark.parametrize("seed", range(5))
def test_auroc_with_ties_agrees(seed):
    generator, size = draws(seed)
    benign = torch.randint(0, 20, (size,), generator=generator).float()
    attacked = torch.randint(5, 25, (size // 2,), generator=generator).float()
    truth = [0] * size + [1] * (size // 2)
    assert auroc(benign, attacked) == pytest.approx(roc_auc_score(truth, torch.cat((benign, attacked))), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_true_positive_rate_agrees(seed):
    generator, size = draws(seed)
    benign, attacked = torch.randn(size, generator=generator), torch.randn(size, generator=generator) + 1
    fpr, tpr, _ = roc_curve([0] * size + [1] * size, torch.cat((benign, attacked)), drop_intermediate=False)
    assert true_positive_rate(benign, attacked, 0.05) == pytest.approx(tpr[fpr <= 0.05].max(), abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_with_ties_agrees(seed):
    generator, size = draws(seed)
    benign = torch.randint(0, 20, (size,), generator=generator).float()
    attacked = torch.randint(5, 25, (size // 2,), generator=generator).float()
    truth = [0] * size + [1] * (size // 2)
    wanted = average_precision_score(truth, torch.cat((benign, attacked)))
    assert average_precision(benign, attacked) == pytest.approx(wanted, abs=1e-12)


def test_calibration_error_of_known_cases():
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert expected_calibration_error(sure, torch.zeros(4, dtype=torch.int64)) == 0.0
    assert expected_calibration_error(sure, torch.tensor([0, 0, 0, 1])) == pytest.approx(0.25)
    # Two bins, (0.5, 0.75] and (0.75, 1]: |1 - 0.6| and |0 - 0.9|, weighted by half each.
    mixed = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    assert expected_calibration_error(mixed, torch.tensor([0, 1]), bins=4) == pytest.approx(0.5 * 0.4 + 0.5 * 0.9)


def test_calibration_error_of_honest_probabilities_is_small():
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(20000, 3, generator=generator).softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    assert expected_calibration_error(probabilities, labels) < 0.02


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_figures_agree(classes):
    generator, size = draws(classes)
    labels = torch.randint(0, classes, (size,), generator=generator)
    predicted = torch.where(torch.rand(size, generator=generator) < 0.6, labels, labels.roll(1))
    positive = classes - 1
    figures = classification_figures(predicted, labels, classes, positive)
    assert figures.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert figures.accuracy == pytest.approx(float((labels == predicted).float().mean()), abs=1e-6)
    assert figures.sensitivity == pytest.approx(recall_score(labels == positive, predicted == positive))
    assert figures.specificity == pytest.approx(recall_score(labels != positive, predicted != positive))
    assert figures.recalls == pytest.approx(recall_score(labels, predicted, average=None))


def test_any_finding_counts_against_none():
    labels, predicted = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 2, 0, 2, 1])
    figures = classification_figures(predicted, labels, 3, positive=(1, 2))
    assert (figures.sensitivity, figures.specificity) == (0.75, 0.5)
    assert figures.recalls == (0.5, 0.0, 0.5)


def test_two_classes_have_a_positive_one_that_may_be_the_first():
    labels, predicted = torch.tensor([0, 0, 0, 0, 1]), torch.tensor([0, 0, 0, 1, 1])
    last, first = classification_figures(predicted, labels, 2), classification_figures(predicted, labels, 2, 0)
    assert (last.sensitivity, last.specificity) == (1.0, 0.75)
    assert (first.sensitivity, first.specificity) == (0.75, 1.0)


def test_of_several_classes_none_is_taken_for_positive():
    figures = classification_figures(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), 3)
    assert math.isnan(figures.sensitivity)
    assert math.isnan(figures.specificity)
    assert figures.recalls == (1.0, 1.0, 1.0)


def test_who_abstains_is_neither_sensitive_nor_specific():
    figures = classification_figures(torch.tensor([ABSTAINED, ABSTAINED]), torch.tensor([0, 1]), 2)
    assert (figures.sensitivity, figures.specificity, figures.recalls) == (0.0, 0.0, (0.0, 0.0))


@pytest.mark.parametrize(
    ("predicted", "labels", "positive", "text"),
    [
        ([0, 2], [0, 1], None, "predicted must lie in -1 ... 1; got 0 ... 2"),
        ([0, 1], [0, 2], None, "labels must lie in 0 ... 1; got 0 ... 2"),
        ([0, 1], [0, 1], 2, "positive must lie in 0 ... 1; got 2 ... 2"),
    ],
)
def test_classes_out_of_range_are_refused(predicted, labels, positive, text):
    with pytest.raises(InputError, match=text):
        classification_figures(torch.tensor(predicted), torch.tensor(labels), 2, positive)


def test_a_class_that_does_not_occur_is_left_out():
    figures = classification_figures(torch.tensor([0, 0, 0]), torch.tensor([0, 0, 0]), 2)
    assert figures.balanced_accuracy == 1.0
    assert figures.sensitivity != figures.sensitivity


def test_nothing_to_count_is_an_error():
    empty = torch.empty(0)
    with pytest.raises(InputError, match="of both kinds"):
        auroc(empty, torch.ones(3))
    for figure in (auroc, average_precision, lambda one, other: true_positive_rate(one, other, 0.1)):
        with pytest.raises(InputError, match="1 NaN of 3 scores"):
            figure(torch.ones(3), torch.tensor([1.0, float("nan"), 2.0]))
    with pytest.raises(InputError, match="one bin"):
        expected_calibration_error(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), bins=0)
    with pytest.raises(InputError, match="no image"):
        classification_figures(empty.long(), empty.long(), 2)
