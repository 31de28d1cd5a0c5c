"""What images a defence is for goes where it goes, and others are refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from chains import BENIGN, DATA, chain_of, diffusing

from medfedpure import DefendedClassifier, ImageDataset, create, defend
from medfedpure.core import storage
from medfedpure.core.errors import ArtifactError, InputError
from medfedpure.defence.images import ImageFacts
from medfedpure.testing import tiny_classifier, tiny_dataset

FACTS = ImageFacts((1, 32, 32), ("plain", "disc"), 255)
PARTS = {"detector": "feature_squeezing", "purifier": "median", "target_fpr": 0.2, "check_share": 0}


def sixteen_bits(data: ImageDataset, top: int = 65535) -> ImageDataset:
    return replace(data, pixels=(data.images * top).round().to(torch.int32).to(torch.uint16), top=top)


def test_calibration_on_a_data_set_says_what_images_it_is_for() -> None:
    assert chain_of().image_facts == FACTS
    assert chain_of(calibrate=False).calibrate(BENIGN.images, 0.3).image_facts is None, "a tensor says nothing"
    one_class = replace(
        BENIGN, labels=torch.zeros(len(BENIGN), dtype=torch.int64), class_names=("benign",), positive=()
    )
    assert chain_of(calibrate=False).calibrate(one_class, 0.3).image_facts == replace(FACTS, class_names=())


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 32), (1, 48, 48)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    chain = chain_of()
    with pytest.raises(InputError, match=r"images of shape \(2, .* came, .* \(N, 1, 32, 32\): resize and convert"):
        chain.predict(torch.rand(2, *shape))
    with pytest.raises(InputError, match="resize and convert"):
        chain(torch.rand(2, *shape))


def test_a_data_set_of_another_depth_is_refused() -> None:
    chain = chain_of()
    chain.predict(DATA)
    with pytest.raises(InputError, match=r"the pixel 4095 stands for 1\.0, and .* 255: read them with the same depth"):
        chain.predict(sixteen_bits(DATA, 4095))
    deep = chain_of(calibrate=False).calibrate(sixteen_bits(BENIGN), 0.3)
    assert deep.image_facts == replace(FACTS, top=65535)
    with pytest.raises(InputError, match="255 stands for"):
        deep.calibrate(BENIGN, 0.3)


def test_a_data_set_of_other_classes_is_refused() -> None:
    chain = chain_of()
    for names in (("disc", "plain"), ("a", "b"), ("plain", "disc", "ring")):
        with pytest.raises(InputError, match=f"holds the classes {', '.join(names)}, and .* knows plain, disc: read"):
            chain.predict(replace(DATA, class_names=names, positive=()))
    chain.predict(replace(DATA, labels=DATA.labels * 0, class_names=("anything",), positive=()))


def test_they_are_saved_and_loaded(tmp_path: Path) -> None:
    diffusing().save(tmp_path / "saved")
    assert DefendedClassifier.load(tmp_path / "saved").image_facts == FACTS


def test_a_folder_without_them_is_read(tmp_path: Path) -> None:
    """As this format was saved before: nothing is known, and nothing refused for it."""
    folder = edited(tmp_path, drop=("images", "own_check"))
    loaded = DefendedClassifier.load(folder)
    assert (loaded.image_facts, loaded.own_check) == (None, None)
    assert len(loaded.predict(DATA, seed=0)) == len(DATA)


def edited(folder: Path, drop: tuple[str, ...] = (), **changes: object) -> Path:
    """A saved defence whose document a forger changed and sealed again."""
    diffusing().save(folder / "saved")
    path = folder / "saved" / storage.DOCUMENT
    document = {key: value for key, value in json.loads(path.read_text()).items() if key not in drop} | changes
    document["digest"] = storage._digest(document)
    path.write_text(json.dumps(document))
    return folder / "saved"


@pytest.mark.parametrize(
    "changes",
    [
        {"image_shape": [1, 32]},
        {"image_shape": [1, 0, 32]},
        {"image_shape": [1, 32.0, 32]},
        {"image_shape": [1, 32, "32"]},
        {"image_shape": {}},
        {"class_names": ["one"]},
        {"class_names": ["a", "a"]},
        {"class_names": ["a", ["b"]]},
        {"class_names": "ab"},
        {"top": -1},
        {"top": 10**30},
        {"top": True},
        {"more": 1},
    ],
    ids=str,
)
def test_forged_ones_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        DefendedClassifier.load(edited(tmp_path, images=FACTS.document() | changes))


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="restore it"):
        DefendedClassifier.load(edited(tmp_path, images=[1, 2]))


# -- defend -----------------------------------------------------------------------------------------------------------


def test_defend_takes_them_from_a_data_set() -> None:
    assert defend(tiny_classifier(), BENIGN, **PARTS).image_facts == FACTS


def test_defend_is_told_the_classes_of_a_tensor() -> None:
    images = BENIGN.images
    assert defend(tiny_classifier(), images, **PARTS).image_facts == replace(FACTS, class_names=())
    named = defend(tiny_classifier(), images, class_names=["healthy", "lesion"], **PARTS)
    assert named.image_facts == replace(FACTS, class_names=("healthy", "lesion"))
    fine = images * 0.987  # no 8 bits, and whether 12 or 16 cannot be told
    assert defend(tiny_classifier(), fine, **PARTS).image_facts == replace(FACTS, class_names=(), top=0)


def test_defend_refuses_class_names_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"class_names are 3 \(a, b, c\), and the classifier has 2 logits"):
        defend(tiny_classifier(), BENIGN.images, class_names=("a", "b", "c"), **PARTS)
    with pytest.raises(InputError, match=r"class_names are 3 \(0, 1, 2\), and the classifier has 2 logits"):
        defend(tiny_classifier(), BENIGN.images, class_names=(0, 1, 2), **PARTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"class_names are several texts, .* got the one text 'no'"):
        defend(tiny_classifier(), BENIGN.images, class_names="no", **PARTS)
    with pytest.raises(InputError, match=r"class_names are disc, plain, and the classes of .* are plain, disc"):
        defend(tiny_classifier(), BENIGN, class_names=("disc", "plain"), **PARTS)
    with pytest.raises(InputError, match="two or more different texts"):
        defend(tiny_classifier(), BENIGN.images, class_names=("a", "a"), **PARTS)


def test_a_record_describes_itself() -> None:
    assert FACTS.describe() == "grey images of 32 x 32 pixels, 255 stands for 1.0; classes plain, disc"
    assert ImageFacts((3, 8, 9)).describe() == "RGB images of 8 x 9 pixels; classes of unknown names"


def test_the_bare_part_of_a_chain_asks_nothing() -> None:
    """Without facts every shape that the classifier can read is read."""
    chain = DefendedClassifier(
        torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16, 2)),
        purifier=create("purifier", "median"),
        policy="purify_all",
    )
    for size in (8, 16):
        assert len(chain.predict(tiny_dataset(2, size=size).images)) == 2
