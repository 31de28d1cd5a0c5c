"""A class order that is not the model's is said before anything is trained."""

import dataclasses
import warnings

import pytest
import torch
from torch import nn

import medfedpure
from medfedpure.core.errors import ClassesWarning, InputError
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(160, seed=3)
PARTS = {"detector": "feature_squeezing", "purifier": "median", "target_fpr": 0.1, "check_share": 0}


class Turned(nn.Module):
    """The same classifier with its logits the other way round, as where somebody sorted the folders otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_classifier()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner(images).flip(1)


def test_logits_in_another_order_than_the_classes_are_noticed() -> None:
    with pytest.warns(ClassesWarning, match=r"fewer than guessing would: are its logits in another order than 0 = "):
        medfedpure.defend(Turned(), DATA, **PARTS)


@pytest.mark.parametrize("silent", ["right order", "no labels", "names given"])
def test_where_nothing_is_wrong_or_known_nothing_is_said(silent: str) -> None:
    model = tiny_classifier() if silent == "right order" else Turned()
    benign = DATA.images if silent == "no labels" else DATA
    names = {"class_names": DATA.class_names} if silent == "names given" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClassesWarning)
        medfedpure.defend(model, benign, **PARTS, **names)


def test_other_classes_than_logits_are_noticed() -> None:
    three = dataclasses.replace(DATA, class_names=("a", "b", "c"), positive=())
    with pytest.warns(ClassesWarning, match=r"2 logits and .* 3 classes \(0 = a, 1 = b, 2 = c\)"):
        defended = medfedpure.defend(tiny_classifier(), three, **PARTS)
    assert defended.image_facts.class_names == ()


def test_another_number_of_channels_is_said_with_what_to_do() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(
        InputError, match=r"takes images of 3 channels, and \(2, 1, 32, 32\) came: .*channels=3.*in_chans=1"
    ):
        medfedpure.defend(network, DATA, **PARTS)


def test_half_precision_is_said_with_what_to_do() -> None:
    with pytest.raises(InputError, match="wrap it in a module whose forward calls model"):
        medfedpure.defend(tiny_classifier().half(), DATA, **PARTS)
