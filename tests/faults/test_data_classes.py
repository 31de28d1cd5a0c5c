"""Which class is a finding, which folders are classes, and what may be joined."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.figures.metrics import classification_figures
from medfedpure.job.subject import load_subject
from medfedpure.testing import tiny_dataset


def folders(root: Path, *names: str) -> Path:
    """One picture in each class folder."""
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        Image.new("L", (20, 20), 40 + 50 * place).save(root / name / "a.png")
    return root


def read(root: Path, **options) -> ImageDataset:
    return create("dataset", "image_folder", root=root, image_size=16, groups="none", **options).read()


@pytest.mark.parametrize(
    ("negative", "positive"),
    [
        ("no_lesion", "lesion"),
        ("non-COVID", "COVID"),
        ("nonCOVID", "COVID"),
        ("NonCovid19", "Covid19"),
        ("not_infected", "infected"),
        ("without-tumor", "tumor"),
        ("tumor absent", "tumor present"),
        ("TB.negative", "TB.positive"),
        ("Normal", "Abnormal"),
        ("healthy", "diseased"),
        ("healthy", "unhealthy"),
        ("benign2", "Adenoma"),
        ("nondemented", "demented"),
        ("normal", "nodule"),
        ("No Finding", "Nodule"),
        ("NORMAL", "PNEUMONIA"),
        ("controls", "cases"),
    ],
)
def test_a08_the_negative_class_is_label_0(tmp_path, negative, positive):
    """A8: sensitivity is the recall of the finding, however its folder is called and sorted."""
    data = read(folders(tmp_path, negative, positive))
    assert data.class_names == (negative, positive)
    assert data.positive == (1,)


@pytest.mark.parametrize(
    "names",
    [
        ("glioma", "meningioma"),
        ("nodule", "mass"),
        ("normality", "anomaly"),
        ("not_normal", "normal"),
        ("benign", "normal"),
        ("no_lesion", "no_tumor"),
        ("0", "1"),
    ],
)
def test_a08_where_the_names_do_not_tell_it_is_asked(tmp_path, names):
    """A8: none or both look negative: nothing is guessed, and the error says what to pass."""
    root = folders(tmp_path, *names)
    with pytest.raises(DataError, match=r"positive=.* or classes with the finding last") as caught:
        read(root)
    assert all(part in str(caught.value) for part in (str(root), *names))
    one, other = names
    assert read(root, classes=(other, one)).class_names == (other, one)
    assert read(root, positive=one).class_names == (other, one)
    assert read(root, positive=one).positive == (1,)


def test_a08_a_choice_is_kept_and_names_tell_in_any_order(tmp_path):
    """A8: `positive` is the caller's; an order of labels alone does not turn a negative class into a positive one."""
    root = folders(tmp_path, "lesion", "no_lesion")
    assert read(root, classes=("lesion", "no_lesion")).positive == (0,)
    chosen = read(root, classes=("lesion", "no_lesion"), positive="no_lesion")
    assert (chosen.class_names, chosen.positive) == (("lesion", "no_lesion"), (1,))
    with pytest.raises(DataError, match="positive must be one or more of"):
        read(root, positive="tumour")


@pytest.mark.parametrize(
    ("names", "options", "positive"),
    [
        (("glioma", "meningioma", "notumor", "pituitary"), {}, (0, 1, 3)),
        (("benign", "malignant", "normal"), {}, (0, 1)),
        (("CNV", "DME", "DRUSEN"), {}, ()),
        (("CNV", "DME", "DRUSEN"), {"positive": "CNV"}, (0,)),
        (("CNV", "DME", "DRUSEN"), {"positive": ["CNV", "DME"]}, (0, 1)),
    ],
)
def test_a08_of_several_classes_any_finding_counts_against_none(tmp_path, names, options, positive):
    """A8: the last in the alphabet is not the finding of several classes; all but the one named as none are."""
    data = read(folders(tmp_path, *names), **options)
    assert data.class_names == names
    assert data.positive == positive
    right = classification_figures(data.labels, data.labels, data.num_classes, data.positive)
    assert math.isnan(right.sensitivity) == (not positive)
    assert right.recalls == (1.0,) * len(names)


def test_a08_what_is_positive_travels_along():
    """A8: a subset, a part and a joined set have the finding of the whole; numbers that are no class are refused."""
    data = replace(tiny_dataset(20), positive=(0,))
    parts = data.split({"one": 1, "two": 1})
    assert [part.positive for part in (data.select(torch.arange(3)), *parts.values())] == [(0,)] * 3
    assert ImageDataset.concatenate(list(parts.values())).positive == (0,)
    for wrong in ((2,), (-1,), "disc", 1):
        with pytest.raises(DataError, match="positive must be numbers of some of plain, disc"):
            replace(data, positive=wrong)


def test_a10_only_litter_of_the_system_is_passed_over(tmp_path):
    """A10: `__other` is a class and `__scan0.png` an image; what systems leave behind is neither."""
    root = folders(tmp_path, "__other", "no_finding", "zebra")
    Image.new("L", (20, 20), 200).save(root / "zebra" / "__scan0.png")
    for litter in ("__MACOSX", ".git", "@eaDir", "lost+found", "$RECYCLE.BIN"):
        (root / litter).mkdir()
        (root / "zebra" / litter).mkdir()
    for litter in (".DS_Store", "Thumbs.db", "thumbs.db", "desktop.ini", "Desktop.ini", "._a.png"):
        (root / litter).touch()
        (root / "zebra" / litter).touch()
    data = create("dataset", "image_folder", root=root, image_size=16)
    assert data.read().class_names == ("__other", "no_finding", "zebra")
    assert [path.name for path in data.paths] == ["a.png", "a.png", "__scan0.png", "a.png"]


def test_a10_one_rule_for_evaluations(tmp_path):
    """A10: `evaluate --data` sees the class folders that `image_folder` sees."""
    root = folders(tmp_path / "images", "__plain", "disc")
    for litter in ("__MACOSX", "@eaDir", "lost+found", ".cache"):
        (root / litter).mkdir()
    architecture = create("classifier", "small_cnn", widths=(8, 16))
    model = architecture.create_model(in_channels=1, num_classes=2, image_size=16, class_names=("__plain", "disc"))
    DefendedClassifier(model, policy="none").save(tmp_path / "mine")
    subject = load_subject(tmp_path / "mine", data=str(root))
    assert subject.data.class_names == ("__plain", "disc")
    (root / "__third").mkdir()
    with pytest.raises(DataError, match="holds the classes __plain, __third, disc"):
        load_subject(tmp_path / "mine", data=str(root))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"class_names": ("disc", "plain")}, "classes differ.*plain.*disc"),
        ({"class_names": ("plain", "ring")}, "classes differ"),
        ({"positive": (0,)}, "positive differ"),
        ({"pixels": torch.zeros(12, 3, 32, 32, dtype=torch.uint8)}, "size differ"),
    ],
    ids=["order", "names", "positive", "size"],
)
def test_a21_sets_of_other_classes_are_not_joined(change, text):
    """A21: label K means the same in all parts, or they are refused."""
    data = tiny_dataset(12)
    with pytest.raises(DataError, match=text):
        ImageDataset.concatenate([data, replace(data, ids=data.ids + 100, **change)])
    with pytest.raises(DataError, match="no part"):
        ImageDataset.concatenate([])


def test_a21_a_fingerprint_covers_masks_sites_and_classes():
    """A21: a checkpoint does not resume over changed masks, sites, ids, classes or findings."""
    data = replace(tiny_dataset(12), masks=torch.zeros(12, 1, 32, 32, dtype=torch.bool))
    assert data.masks is not None
    changes = {
        "masks": ~data.masks,
        "sites": data.sites + 1,
        "ids": data.ids + 1,
        "class_names": ("disc", "plain"),
        "positive": (0,),
    }
    for name, value in changes.items():
        assert replace(data, **{name: value}).fingerprint() != data.fingerprint(), f"{name} does not count"
