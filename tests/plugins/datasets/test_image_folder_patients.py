"""A sub-folder inside a class is a patient, and a patient is a group."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from medfedpure.core.dataset import check_disjoint
from medfedpure.core.errors import DataError
from medfedpure.plugins.datasets.image_folder import ImageFolder


def put(path: Path, seed: int) -> None:
    """A blocky random grey picture."""
    values = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(seed)).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("L", (8, 8), bytes(values)).resize((40, 40), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def root(tmp_path) -> Path:
    """Two classes; patient a in both, c with two studies."""
    names = ["no/a/1.png", "no/a/2.png", "no/b/1.png", "yes/a/1.png", "yes/c/mri/1.png", "yes/c/ct/1.png"]
    for place, name in enumerate(names):
        put(tmp_path / "scans" / name, place)
    return tmp_path / "scans"


def read(root: Path, **options):
    return ImageFolder(root=root, image_size=16, **options).read()


def test_patients_are_groups_whatever_their_class_and_depth(root):
    folder = ImageFolder(root=root, image_size=16)
    data = folder.read()
    names = [path.relative_to(root).as_posix() for path in folder.paths]
    assert names == ["no/a/1.png", "no/a/2.png", "no/b/1.png", "yes/a/1.png", "yes/c/ct/1.png", "yes/c/mri/1.png"]
    assert data.groups.tolist() == [0, 0, 1, 0, 2, 2]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    check_disjoint(data.split({"train": 1, "test": 1}))
    assert len(read(root, max_per_group=1)) == 3


def test_images_beside_patients_are_grouped_among_themselves(root):
    put(root / "no" / "x.png", 50)
    put(root / "yes" / "y.png", 50)
    put(root / "yes" / "z.png", 51)
    put(root / "yes" / "zz.png", 0)
    groups = read(root).groups.tolist()
    assert groups == [0, 0, 1, 3, 0, 2, 2, 3, 4, 5], "twins share a group; one of a patient's images stays out of it"
    assert read(root, groups="none").num_groups == 10
    assert read(root, groups="hash").num_groups == 8


def test_a_csv_counts_before_folders_and_skipped_files_leave_the_others(root):
    (root / "no" / "a" / "2.png").write_bytes(b"")
    assert read(root, on_error="skip").groups.tolist() == [0, 1, 0, 2, 2]
    files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.png"))]
    (root / "groups.csv").write_text("path,group\n" + "".join(f"{name},g\n" for name in files))
    assert read(root, on_error="skip").num_groups == 1
    assert read(root, on_error="skip", groups="folder").num_groups == 3


@pytest.mark.parametrize("parts", [("train", "test"), ("Training", "Validation")])
def test_parts_of_a_data_set_are_no_classes(tmp_path, parts):
    for part in parts:
        for kind in ("cat", "dog"):
            put(tmp_path / part / kind / "1.png", 1)
    with pytest.raises(DataError, match=r"give .* as the root then"):
        read(tmp_path, classes=parts)


def test_classes_one_level_too_deep_are_seen(root):
    for kind in ("normal", "lesion"):
        put(root.parent / "other" / kind / "1.png", 1)
    with pytest.raises(DataError, match=r"other holds folders \(lesion, normal\) that are classes by their names"):
        read(root.parent, classes=("other", "scans"))


def test_folders_of_masks_are_no_patients(root):
    put(root / "no" / "Images" / "1.png", 60)
    put(root / "no" / "masks" / "1.png", 61)
    with pytest.raises(DataError, match=r"no holds folders \(Images, masks\) that are no patients by their names"):
        read(root)


def test_one_patient_may_be_called_after_its_class(root):
    (root / "no" / "a").rename(root / "no" / "normal_01")
    (root / "no" / "b" / "1.png").rename(root / "no" / "normal_01" / "3.png")
    (root / "no" / "b").rmdir()
    assert read(root).groups.tolist() == [0, 0, 0, 1, 2, 2]


def test_links_that_lead_back_end(root):
    (root / "no" / "a" / "up").symlink_to(root / "no")
    assert len(read(root)) == 6
