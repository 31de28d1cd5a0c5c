"""Input checks: what is refused, and what the error says."""

from __future__ import annotations

import pytest
import torch

from medfedpure.core import errors
from medfedpure.core.checks import check_image_layout, check_images, check_labels, check_logits, check_scores
from medfedpure.core.errors import InputError

GOOD = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_good_images(dtype: torch.dtype) -> None:
    check_images(GOOD.to(dtype))
    check_images(GOOD.to(dtype)[:0])
    check_images(torch.tensor([-5e-7, 1 + 5e-7]).reshape(1, 1, 1, 2))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (GOOD[0], "unsqueeze"),
        (GOOD[:, :, None], "slice by slice"),
        (GOOD[0, 0], r"\(N, C, H, W\)"),
        ((GOOD * 255).to(torch.uint8), "divide"),
        (GOOD > 0.5, "torch.bool"),
        (GOOD.to(torch.complex64), "complex64"),
        (GOOD * 255, "normalization"),
        (GOOD - 1, "normalization"),
        (GOOD / 0.0, "lie in"),
        (GOOD * torch.nan, "NaN"),
        (torch.cat((GOOD, GOOD * torch.nan)), "NaN"),
        (GOOD.numpy(), "ndarray"),
        (GOOD.tolist(), "list"),
        (None, "NoneType"),
    ],
)
def test_bad_images(images: object, text: str) -> None:
    with pytest.raises(InputError, match=text):
        check_images(images)


def test_layout_alone_does_not_look_at_values() -> None:
    check_image_layout(GOOD * torch.nan)


@pytest.mark.parametrize(
    "labels", [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 1, dtype=torch.int64), [0, 1]]
)
def test_bad_labels(labels: object) -> None:
    with pytest.raises(InputError, match="labels must be int64"):
        check_labels(labels, 2)


@pytest.mark.parametrize("scores", [torch.zeros(2, 1), torch.zeros(3), torch.zeros(2, dtype=torch.int64), 0.5])
def test_bad_scores(scores: object) -> None:
    with pytest.raises(InputError, match="it must return floating scores"):
        check_scores(scores, 2, "it")


@pytest.mark.parametrize(
    "logits", [torch.zeros(2), torch.zeros(2, 1), torch.zeros(3, 2), torch.zeros(2, 2, 4, 4), "no"]
)
def test_bad_logits(logits: object) -> None:
    with pytest.raises(InputError, match="out of scope"):
        check_logits(logits, 2)


def test_good_values() -> None:
    check_labels(torch.tensor([0, 1]), 2)
    check_scores(torch.zeros(2, dtype=torch.float64), 2, "it")
    check_logits(torch.zeros(2, 3), 2)


def test_every_error_is_one_of_ours() -> None:
    named = [value for value in vars(errors).values() if isinstance(value, type)]
    found = [value for value in named if not issubclass(value, UserWarning)]
    assert len(found) > 10, "the errors are gone"
    for error in found:
        assert issubclass(error, errors.MedFedPureError), f"{error.__name__} is not a MedFedPureError"
        assert error.__doc__, f"{error.__name__} does not say when it is raised"
