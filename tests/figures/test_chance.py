"""What is no better than guessing is called that, and only that."""

import pytest
import torch

from medfedpure.figures.balanced import balanced, balanced_interval, chance_level


@pytest.mark.parametrize(
    ("value", "interval", "chance", "wanted"),
    [
        (0.6, (0.5, 0.7), 0.5, "at chance level"),
        (0.6, (0.45, 0.75), 0.5, "at chance level"),
        (0.6, (0.51, 0.7), 0.5, ""),
        (0.1, (0.0, 0.3), 0.5, "below chance level"),
        (0.4, (0.3, 0.5), 1 / 3, "at chance level"),
        (0.5, None, 0.5, "at chance level"),
        (0.51, None, 0.5, ""),
        (None, None, 0.5, ""),
        (float("nan"), None, 0.5, ""),
    ],
)
def test_the_interval_decides(value, interval, chance, wanted):
    assert chance_level(value, interval, chance) == wanted


def test_guesses_are_seldom_taken_for_more():
    generator, labels, groups = torch.Generator().manual_seed(0), torch.arange(60) % 3, torch.arange(60)
    better = 0
    for _ in range(300):
        right = torch.randint(0, 3, (60,), generator=generator) == labels
        better += chance_level(balanced(right, labels), balanced_interval(right, labels, groups), 1 / 3) == ""
    assert better <= 0.05 * 300, "an interval of 95 % leaves 2.5 % above it"
