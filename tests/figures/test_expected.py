"""The mean of a robustness curve."""

import pytest

from medfedpure.core.errors import InputError
from medfedpure.figures.expected import expected_robustness


def test_by_hand():
    assert expected_robustness([0, 0.1], [0.9, 0.5]) == pytest.approx(0.7)
    assert expected_robustness([0, 0.1, 0.4], [1.0, 0.6, 0.0]) == pytest.approx((0.1 * 0.8 + 0.3 * 0.3) / 0.4)
    assert expected_robustness([0, 0.3, 0.7, 2.0], [0.5] * 4) == pytest.approx(0.5)


def test_a_finer_grid_of_a_straight_line_changes_nothing():
    line = [1 - place / 10 for place in range(11)]
    assert expected_robustness([place / 10 for place in range(11)], line) == pytest.approx(
        expected_robustness([0, 1.0], [line[0], line[-1]])
    )


@pytest.mark.parametrize(
    ("sizes", "accuracies"), [([0.1, 0.2], [1, 1]), ([0], [1]), ([0, 0.2, 0.1], [1, 1, 1]), ([0, 0.1], [1])]
)
def test_a_curve_that_is_none_is_refused(sizes, accuracies):
    with pytest.raises(InputError, match="rise from 0"):
        expected_robustness(sizes, accuracies)
