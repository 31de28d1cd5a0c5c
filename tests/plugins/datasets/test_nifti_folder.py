"""NiftiFolder: volumes by class, slice by slice."""

from __future__ import annotations

import logging
import struct
import sys
from pathlib import Path

import numpy
import pytest
import torch
from scans import anatomy, write_nifti, write_nifti_folder

pytest.importorskip("nibabel")

from medfedpure.core.dataset import check_disjoint
from medfedpure.core.errors import ConfigError, DataError, MissingExtraError
from medfedpure.plugins.datasets.nifti_folder import NiftiFolder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two classes of three volumes of six slices."""
    return write_nifti_folder(tmp_path_factory.mktemp("nifti") / "scans")


def test_volumes_become_slices_and_groups(root):
    folder = NiftiFolder(root=root, image_size=24, window=(0, 4095))
    data = folder.read()
    assert (data.pixels.shape, data.pixels.dtype) == ((36, 1, 24, 24), torch.uint16)
    assert data.class_names == ("normal", "lesion")
    assert data.labels.tolist() == [1] * 18 + [0] * 18
    assert data.groups.tolist() == [place // 6 for place in range(36)]
    assert torch.equal(data.levels["volume"], data.groups)
    assert [path.name for path in folder.paths[::6]] == [f"{place}.nii.gz" for place in (1, 3, 5, 0, 2, 4)]
    slices = (data.images[:6, 0] * 4095).round().numpy()
    assert numpy.array_equal(slices, numpy.stack([anatomy(10 + z, 24)[::-1, ::-1].T for z in range(6)]))
    check_disjoint(data.split({"train": 1, "test": 1}))


def test_options_choose_slices(root):
    data = NiftiFolder(root=root, image_size=16, every=2, part=(0.25, 1.0)).read()
    assert len(data) == 6 * 3
    assert len(NiftiFolder(root=root, image_size=16, axis="coronal").read()) == 6 * 24
    assert len(NiftiFolder(root=root, image_size=16, max_per_group=2).read()) == 12
    bytes_ = NiftiFolder(root=root, image_size=16, pixel_bits=8, channels=3).read()
    assert (bytes_.pixels.dtype, bytes_.image_shape) == (torch.uint8, (3, 16, 16))


def test_volumes_in_a_patients_folder_are_one_group(tmp_path):
    for place, name in enumerate(["no/a/t1.nii", "no/a/late/t2.nii", "no/b.nii", "yes/a/t1.nii", "yes/c.nii"]):
        write_nifti(tmp_path / name, numpy.stack([anatomy(place, 16)] * 2, 2).astype(numpy.int16))
    folder = NiftiFolder(root=tmp_path, image_size=16)
    data = folder.read()
    assert [path.relative_to(tmp_path).as_posix() for path in folder.paths[::2]] == [
        *("no/a/late/t2.nii", "no/a/t1.nii", "no/b.nii", "yes/a/t1.nii", "yes/c.nii"),
    ]
    assert data.groups.tolist()[::2] == [0, 0, 1, 0, 2]
    assert data.levels["volume"].unique().numel() == 5


def test_eight_bits_stay_eight_and_lost_orientations_are_told(tmp_path, caplog):
    for place in range(4):
        values = (numpy.stack([anatomy(place, 16)] * 2, 2) >> 4).astype(numpy.uint8)
        path = write_nifti(tmp_path / ("no", "yes")[place % 2] / f"{place}.nii", values)
    content = bytearray(path.read_bytes())
    struct.pack_into("<2h", content, 252, 0, 0)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert NiftiFolder(root=tmp_path, image_size=16).read().pixels.dtype == torch.uint8
    assert (
        "1 volumes do not say how the patient lies, so that slices may be across another axis: yes/3.nii" in caplog.text
    )


def test_damaged_files_are_named_or_skipped(tmp_path, monkeypatch):
    write_nifti_folder(tmp_path)
    (tmp_path / "normal" / "cut.nii").write_bytes(b"\x5c\1\0\0")
    with pytest.raises(DataError, match=r"1 of 7 files in .* cannot be read: normal/cut\.nii \(it is no NIfTI file"):
        NiftiFolder(root=tmp_path, image_size=16).read()
    folder = NiftiFolder(root=tmp_path, image_size=16, on_error="skip")
    assert len(folder.read()) == 36
    assert [path.name for path in folder.skipped] == ["cut.nii"]
    with pytest.raises(DataError, match="not one file holds a picture"):
        NiftiFolder(root=tmp_path, image_size=16, volume=1, on_error="skip").read()
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"medfedpure\[medical\]"):
        NiftiFolder(root=tmp_path, image_size=16, on_error="skip").read()


@pytest.mark.parametrize(
    "options", [{"part": (0.5, 0.5)}, {"part": (0.0, 1.5)}, {"window": (3, 1)}, {"every": 0}, {"axis": "oblique"}]
)
def test_wrong_configurations(options):
    with pytest.raises(ConfigError):
        NiftiFolder(root="x", image_size=16, **options)
