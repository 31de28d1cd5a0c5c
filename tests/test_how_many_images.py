"""The smallest numbers of images that docs/how-to/how-many-images.md names: so many run, fewer are refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from documentation import ROOT

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import CalibrationError, DataError
from medfedpure.defence.calibration import Calibration
from medfedpure.evaluation.evaluate import choose
from medfedpure.evaluation.ladder import PRESETS
from medfedpure.federation import Site, federate
from medfedpure.job.division import deal
from medfedpure.job.presets import folder_demo
from medfedpure.testing import tiny_classifier, tiny_dataset

PAGE = (ROOT / "docs" / "how-to" / "how-many-images.md").read_text(encoding="utf-8")


def row(of: str) -> str:
    """The line of the page's table that begins with this."""
    (found,) = (line for line in PAGE.splitlines() if line.startswith(f"| {of}"))
    return found


def singles(count: int) -> ImageDataset:
    """So many independent images, half of each class."""
    return replace(tiny_dataset(count, seed=1), groups=torch.arange(count))


def rates(of: str) -> dict[float, int]:
    """The smallest number for each false-positive rate."""
    return {int(percent) / 100: int(count) for count, percent in re.findall(r"(\d+) at (\d+) %", row(of))}


def test_a_threshold() -> None:
    assert len(rates("`chain.calibrate")) == 3, "three rates are named"
    for rate, count in rates("`chain.calibrate").items():
        assert len(Calibration.fit(torch.rand(count), rate)) == count, f"{count} scores are enough at {rate}"
        with pytest.raises(CalibrationError):
            Calibration.fit(torch.rand(count - 1), rate)


@pytest.mark.filterwarnings("ignore::medfedpure.core.errors.WeakDefenceWarning")
def test_a_defence() -> None:
    parts = {"detector": "feature_squeezing", "purifier": "median"}
    assert len(rates("`medfedpure.defend")) == 3, "three rates are named"
    for rate, count in rates("`medfedpure.defend").items():
        chain = medfedpure.defend(tiny_classifier(), singles(count).images, target_fpr=rate, **parts)
        assert chain.calibration is not None, f"{count} images are enough at {rate}"
        with pytest.raises(CalibrationError):
            medfedpure.defend(tiny_classifier(), singles(count * 9 // 10).images, target_fpr=rate, **parts)


def test_a_demo_on_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    count, choice = int(re.findall(r"\d+", row("`medfedpure demo"))[0]), folder_demo("x").data
    wanted = rates("`chain.calibrate")[0.05]

    def kept(images: int) -> list[int]:
        monkeypatch.setattr("medfedpure.job.division.create", lambda *_: Given(singles(images)))
        return [own["calibrate"].num_groups for own in deal(choice, 0).values()]

    assert sum(kept(count)) >= wanted, f"{count} images leave {kept(count)} for a threshold that wants {wanted}"
    assert sum(kept(count * 9 // 10)) < wanted, "the page asks for more than is wanted"
    assert min(kept(3 * count)) >= wanted, f"{count} at each client leave {kept(3 * count)}"


class Given:
    """A data set that was read already."""

    def __init__(self, data: ImageDataset) -> None:
        self._data = data

    def read(self) -> ImageDataset:
        """It."""
        return self._data


def test_a_client() -> None:
    few, many = singles(40).select(torch.arange(1)), singles(40).select(torch.arange(1, 40))
    network = medfedpure.create("classifier", "small_cnn", widths=(4,))
    channels, size, _ = many.image_shape

    def missing(data: ImageDataset) -> int:
        result = federate(
            [Site("few", data), Site("many", many)],
            make_model=lambda: network.create_model(in_channels=channels, num_classes=2, image_size=size),
            task=medfedpure.ClassificationTask(),
            strategy=medfedpure.create("personalization", "fedper"),
            training=medfedpure.TrainingConfig(steps=2, batch_size=8),
            rounds=1,
            seed=0,
        )
        return len(result.history[0].failed)

    assert missing(few) == 0, "a client with one image takes part"
    with pytest.raises(DataError):
        missing(few.select(torch.arange(0)))


def test_an_evaluation() -> None:
    named = {name: int(count) for count, name in re.findall(r"(\d+) \(`(\w+)`\)", row("`medfedpure evaluate"))}
    assert named == {name: preset.images for name, preset in PRESETS.items()}, "other presets than the page's"
    data = singles(40)
    one_of_each = torch.cat([(data.labels == label).nonzero()[0] for label in (0, 1)])
    assert len(choose(data.select(one_of_each), 24, 0)) == 2
    with pytest.raises(DataError):
        choose(data.select(one_of_each[:1]), 24, 0)


def test_what_a_calibration_promises() -> None:
    sizes, promised = (re.findall(r"[\d.]+", row(of)) for of in ("*n* | 19", "at 5 % |"))
    for size, share in zip(sizes, promised[1:], strict=True):
        told = Calibration.fit(torch.arange(float(size)), 0.05).describe()
        assert f"keeps to {share}%" in told, f"{size} images: {share} % on the page; {told}"
