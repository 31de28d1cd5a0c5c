"""Three lines for a model one already has."""

import pytest
import torch

import medfedpure
from medfedpure.core.errors import CalibrationError, InputError
from medfedpure.defence.defend import from_tensor

QUICK = {"model": {"widths": [8, 8], "unshuffle": 2}, "training": {"steps": 2, "batch_size": 4}}


def a_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 3))


def eight_bit(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 1, 16, 16), generator=generator) / 255


def test_a_tensor_is_enough():
    model = a_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    defended = medfedpure.defend(model, eight_bit(80), purifier_config=QUICK)
    prediction = defended.predict(eight_bit(5), seed=0)
    assert prediction.labels.shape == (5,)
    assert len(defended.calibration) == 24
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_other_parts_by_name():
    detector = {
        "model": {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1},
        "training": {"steps": 2, "batch_size": 4},
    }
    defended = medfedpure.defend(
        a_model(), eight_bit(80), detector="mae", detector_config=detector, purifier="median", policy="abstain"
    )
    assert defended.predict(eight_bit(3), seed=0).abstained.shape == (3,)


def test_too_few_images_are_an_error():
    with pytest.raises(CalibrationError, match=r"19 are wanted .* bring about 64 in all"):
        medfedpure.defend(a_model(), eight_bit(20), purifier_config=QUICK)


def test_images_out_of_range_are_an_error():
    with pytest.raises(InputError, match="before normalization"):
        medfedpure.defend(a_model(), eight_bit(80) * 2 - 1, purifier_config=QUICK)


def test_a_tensor_keeps_its_depth():
    fine = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = from_tensor(fine)
    assert kept.pixels.dtype == torch.uint16
    assert (kept.images - fine).abs().max() <= 0.51 / 65535
    coarse = eight_bit(4)
    kept = from_tensor(coarse)
    assert kept.pixels.dtype == torch.uint8
    assert torch.equal(kept.images, coarse)
