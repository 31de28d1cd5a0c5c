"""Faults of section C: what ended in an error of torch, timm or Python ends in a sentence of ours, or works."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from chains import BENIGN, DATA
from torch import Tensor, nn

import medfedpure
from medfedpure import DefendedClassifier, MedFedPureError, Streams, defend
from medfedpure.testing import tiny_classifier


class Answers(nn.Module):
    """A model that answers what a function makes of two logits."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.change = tiny_classifier(), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.inner(images))


ODD: dict[str, Callable[[Tensor], Any]] = {
    "one logit": lambda logits: logits[:, 1],
    "one column": lambda logits: logits[:, 1:],
    "a tuple": lambda logits: (logits,),
    "a dictionary": lambda logits: {"logits": logits},
    "classes": lambda logits: logits.argmax(1),
    "numpy": lambda logits: logits.detach().numpy(),
    "nothing": lambda logits: None,
    "a map": lambda logits: logits[:, :, None, None],
    "half the rows": lambda logits: logits[::2],
}
MEDIAN = {"detector": "feature_squeezing", "purifier": "median", "target_fpr": 0.2}


@pytest.mark.parametrize("answer", ODD)
@pytest.mark.parametrize("entry", ["predict", "forward", "calibrate", "defend", "certify"])
def test_c_an_answer_that_is_no_logits(answer: str, entry: str) -> None:
    """C: in every public entry, `defend` among them before anything is trained."""
    model = Answers(ODD[answer])
    chain = DefendedClassifier(model, policy="none")
    squeezing = DefendedClassifier(model, detector=medfedpure.create("detector", "feature_squeezing"), policy="abstain")
    call = {
        "predict": lambda: chain.predict(DATA.images),
        "forward": lambda: chain(DATA.images),
        "calibrate": lambda: squeezing.calibrate(BENIGN, 0.2),
        "defend": lambda: defend(model, BENIGN, **MEDIAN),
        "certify": lambda: medfedpure.certify(model.eval(), DATA.images[:1], sigma=0.1, n0=2, n=2),
    }[entry]
    with pytest.raises(MedFedPureError, match="must map images to logits"):
        call()


@pytest.mark.parametrize("nothing", [None, [], 3, "scan.png", torch.zeros(0), torch.ones(2, 1, 8, 8) > 0.5], ids=repr)
def test_c_images_that_are_none(nothing: Any) -> None:
    """C: None, numbers, names, flags where images are wanted."""
    with pytest.raises(MedFedPureError):
        DefendedClassifier(tiny_classifier(), policy="none").predict(nothing)


@pytest.mark.parametrize("model", [None, 3, "resnet18", nn.Linear, lambda images: images.flatten(1)[:, :2]])
def test_c_what_is_defended_is_a_module(model: Any) -> None:
    """C: a name, a class that is not built, nothing, a plain function."""
    with pytest.raises(MedFedPureError, match=r"nn\.Module"):
        defend(model, BENIGN, **MEDIAN)
    with pytest.raises(MedFedPureError, match=r"nn\.Module"):
        DefendedClassifier(model, policy="none")


@pytest.mark.parametrize("name", ["ddpm", "diffpure"])
def test_c_images_smaller_than_a_diffusion_model_can_fold(name: str) -> None:
    """C: one image of 8 px under unshuffle 4 and two levels leaves a normalization one value."""
    pytest.importorskip("diffusers")
    purifier = medfedpure.create("purifier", name, model={"widths": (8, 8), "unshuffle": 4}, training={"steps": 1})
    purifier.adopt(purifier.make_network((1, 8, 8), 0), (1, 8, 8))
    with pytest.raises(MedFedPureError, match="choose a smaller unshuffle"):
        purifier(torch.rand(1, 1, 8, 8), 0.5)
    assert purifier(torch.rand(1, 1, 16, 16), 0.5).images.shape == (1, 1, 16, 16)


def test_c_the_second_head_of_a_distilled_transformer_is_a_head() -> None:
    """C: both heads of a distilled DeiT stay private, in FedPer and its kin."""
    pytest.importorskip("timm")
    made = medfedpure.create(
        "classifier", "timm", model="deit_tiny_distilled_patch16_224", set_image_size=True, options={"depth": 1}
    )
    model = made.create_model(in_channels=1, num_classes=3, image_size=32)
    layers = {key.rpartition(".")[0].rpartition(".")[2] for key in model.head_keys()}
    assert layers == {"head", "head_dist"}
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("ids", [[0, 1], torch.tensor([0.0, 1.0]), torch.tensor([0])], ids=str)
def test_c_ids_that_do_not_fit(ids: Any) -> None:
    """C: ids are whole numbers, one for each image."""
    with pytest.raises(MedFedPureError):
        DefendedClassifier(tiny_classifier(), policy="none").predict(DATA.images[:2], ids=ids)


@pytest.mark.parametrize("images", [3, 20, 60])
def test_c_too_few_images_are_said_before_any_training(images: int) -> None:
    """C: `defend` says how many images it wants in all (64, and 67 of two classes), and trains nothing before."""
    begun = []

    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_classifier()

        def forward(self, given: Tensor) -> Tensor:
            begun.append(len(given))
            return self.inner(given)

    few = BENIGN.one_per_group().select(torch.arange(images))
    with pytest.raises(medfedpure.CalibrationError, match=r"independent benign images .*\b67\b"):
        defend(Told(), few, target_fpr=0.05)
    assert sum(begun) <= 2, "more than a look was taken at the model"


def test_a01_two_images_never_share_their_noise() -> None:
    """A1: the pair that shared it has noise of its own, and 4,096 neighbours are all different."""
    pair = Streams(0, torch.tensor([59766, 115524])).normal((64,), stage="purify")
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.5
    many = Streams.for_batch(0, 4096).normal((4,), stage="purify")
    assert len(many.unique(dim=0)) == 4096
