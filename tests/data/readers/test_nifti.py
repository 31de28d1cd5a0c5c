"""NIfTI volumes: the files that nibabel ships, and made ones lying in every way."""

from __future__ import annotations

import gzip
import itertools
import math
import struct
import sys
from pathlib import Path

import numpy
import pytest
from scans import write_nifti

nibabel = pytest.importorskip("nibabel")

from shipped import nifti_files, outcome  # noqa: E402

from medfedpure.core.errors import DataError, MissingExtraError  # noqa: E402
from medfedpure.data.readers import nifti  # noqa: E402
from medfedpure.data.readers.nifti import is_nifti, read_nifti  # noqa: E402
from medfedpure.data.readers.scans import ScanReader  # noqa: E402

READ = [path for path in nifti_files() if outcome(path).startswith("read")]
RADIOLOGICAL = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}


def volume(seed: int = 0, shape: tuple[int, ...] = (5, 7, 9)) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(-500, 2000, shape).astype(numpy.int16)


def stack(path: Path, axis: str = "axial", **options) -> numpy.ndarray:
    """All slices `(N, H, W)`."""
    return numpy.concatenate([image for image, _ in read_nifti(path).slices(axis, **options)])


def looked_at(values: numpy.ndarray, axis: str) -> list[numpy.ndarray]:
    """Slices of a volume towards right, anterior, superior, as a radiologist looks at them, pixel by pixel."""
    x, y, z = values.shape
    if axis == "axial":
        return [numpy.array([[values[x - 1 - c, y - 1 - r, k] for c in range(x)] for r in range(y)]) for k in range(z)]
    if axis == "coronal":
        return [numpy.array([[values[x - 1 - c, k, z - 1 - r] for c in range(x)] for r in range(z)]) for k in range(y)]
    return [numpy.array([[values[k, y - 1 - c, z - 1 - r] for c in range(y)] for r in range(z)]) for k in range(x)]


def test_enough_of_the_shipped_files_are_read():
    assert len(READ) >= 7


@pytest.mark.parametrize("path", READ, ids=lambda path: path.name)
def test_shipped_files_equal_get_fdata(path):
    turned = nibabel.as_closest_canonical(nibabel.load(path))
    for place in range(turned.shape[3] if turned.ndim == 4 else 1):
        values = turned.get_fdata()[..., place] if turned.ndim == 4 else turned.get_fdata()
        ours, _ = read_nifti(path).values(place)
        assert numpy.array_equal(ours, values, equal_nan=True)
        there = values[numpy.isfinite(values)]
        low, high = numpy.percentile(there, (0.5, 99.5), method="inverted_cdf")
        if low == high:
            low, high = there.min(), there.max()
        wanted = numpy.nan_to_num(numpy.clip((values - low) / (high - low), 0, 1))
        for axis, (normal, _, _) in RADIOLOGICAL.items():
            found = stack(path, axis, volume=place)
            assert len(found) == values.shape[normal]
            assert numpy.allclose(found[0], looked_at(wanted, axis)[0], atol=1e-6)
            assert numpy.allclose(found[-1], looked_at(wanted, axis)[-1], atol=1e-6)


@pytest.mark.parametrize("axis", RADIOLOGICAL)
def test_however_a_volume_lies_in_its_file_its_slices_are_the_same(tmp_path, axis):
    values = volume()
    expected = numpy.stack(looked_at(numpy.clip((values + 500) / 2500, 0, 1), axis))
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            affine = numpy.zeros((4, 4))
            affine[3, 3] = 1
            for place, (source, flip) in enumerate(zip(order, flips, strict=True)):
                affine[source, place] = flip * 2.0
            stored = values.transpose(order)[tuple(slice(None, None, flip) for flip in flips)]
            path = write_nifti(tmp_path / "a.nii", numpy.ascontiguousarray(stored), affine)
            assert numpy.allclose(stack(path, axis, window=(-500, 2000)), expected, atol=1e-6), (order, flips)


def test_the_packed_file_is_known_by_its_content(tmp_path):
    values = volume()
    plain, packed = write_nifti(tmp_path / "a.nii", values), write_nifti(tmp_path / "b.nii.gz", values)
    renamed = packed.rename(tmp_path / "scan")
    assert is_nifti(renamed)
    assert numpy.array_equal(stack(renamed), stack(plain))
    (tmp_path / "text.nii").write_text("notes")
    (tmp_path / "other.gz").write_bytes(gzip.compress(b"no volume" * 100))
    assert not any(is_nifti(tmp_path / name) for name in ("text.nii", "other.gz", "absent"))


def test_the_rescale_and_values_that_are_no_numbers(tmp_path):
    values = volume()
    path = write_nifti(tmp_path / "a.nii", values, rescale=(0.5, 10.0))
    assert numpy.array_equal(read_nifti(path).values()[0], values * 0.5 + 10)
    broken = values.astype(numpy.float32)
    broken[0, 0, 0], broken[1, 0, 0] = math.nan, math.inf
    found = stack(write_nifti(tmp_path / "b.nii", broken))
    assert numpy.isfinite(found).all()
    assert found[0, -1, -1] == 0, "what is no number is black"
    clean = broken[numpy.isfinite(broken)]
    low, high = numpy.percentile(clean, (0.5, 99.5), method="inverted_cdf")
    wanted = numpy.clip((broken[2, 3, 4] - low) / (high - low), 0, 1)
    assert found[4, 7 - 1 - 3, 5 - 1 - 2] == pytest.approx(wanted, abs=1e-6)


def test_one_volume_of_several_every_nth_slice_and_a_part(tmp_path):
    values = volume(shape=(5, 6, 20, 3))
    path = write_nifti(tmp_path / "a.nii.gz", values)
    window = {"window": (-500.0, 2000.0)}
    every = stack(path, volume=2, **window)
    assert numpy.allclose(every, numpy.stack(looked_at(numpy.clip((values[..., 2] + 500) / 2500, 0, 1), "axial")))
    assert numpy.array_equal(stack(path, volume=2, every=3, part=(0.25, 0.75), **window), every[5:15:3])
    with pytest.raises(DataError, match=r"a\.nii\.gz: it holds 3 volumes, 0 to 2; volume 3 was asked for"):
        stack(path, volume=3)


def test_pixels_that_are_no_squares_are_made_such(tmp_path):
    values = numpy.zeros((40, 40, 10), numpy.int16)
    values[10:30, :, :] = 1000
    path = write_nifti(tmp_path / "a.nii", values, numpy.diag([1.0, 1.0, 4.0, 1.0]))
    tall = ScanReader(40, axis="coronal").read(path).pixels[0, 0].int()
    flat = ScanReader(40, axis="coronal").read(
        write_nifti(tmp_path / "b.nii", values, numpy.diag([1.0, 1.0, 1.0, 1.0]))
    )
    assert (tall[:, 20] > 60000).all(), "ten slices of 4 mm are as high as 40 columns of 1 mm"
    assert (flat.pixels[0, 0, :14, 20].int() == 0).all()


# What is refused


def test_what_claims_more_than_it_holds(tmp_path, monkeypatch):
    path = write_nifti(tmp_path / "a.nii", volume())
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"a\.nii: its values claim 982 bytes and 882 are there"):
        read_nifti(path)
    huge = content[:42] + struct.pack("<3h", 30000, 30000, 30000) + content[48:]
    path.write_bytes(huge)
    with pytest.raises(DataError, match="which no scan is"):
        read_nifti(path)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(content[:-100]))
    with pytest.raises(DataError, match=r"b\.nii\.gz: its values claim 982 bytes and 882 are there"):
        stack(packed)
    packed.write_bytes(gzip.compress(content + bytes(10**7)))
    assert len(stack(packed)) == 9, "what is behind the values is not unpacked"
    monkeypatch.setattr(nifti, "SMALL", 900)
    monkeypatch.setattr(nifti, "TIGHTEST", 1)
    with pytest.raises(DataError, match="which no scan is"):
        read_nifti(packed.parent / write_nifti(tmp_path / "c.nii.gz", numpy.zeros((50, 50, 50), numpy.int16)))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (numpy.zeros((4, 4, 4), numpy.complex64), "complex64, grey is wanted"),
        (numpy.zeros((4, 4), numpy.int16), "a volume or several"),
        (numpy.zeros((2, 2, 2, 2, 2), numpy.int16), "a volume or several"),
    ],
)
def test_other_kinds_of_values_are_refused(tmp_path, values, text):
    with pytest.raises(DataError, match=text):
        read_nifti(write_nifti(tmp_path / "a.nii", values))


def test_other_files_are_told(tmp_path, monkeypatch):
    nibabel.save(nibabel.Nifti1Pair(volume(), numpy.eye(4)), tmp_path / "a.img")
    with pytest.raises(DataError, match=r"a\.hdr: its values are in another file, \.img"):
        read_nifti(tmp_path / "a.hdr")
    (tmp_path / "b.nii").write_text("notes")
    with pytest.raises(DataError, match=r"b\.nii: it is no NIfTI file"):
        read_nifti(tmp_path / "b.nii")
    (tmp_path / "c.nii").touch()
    with pytest.raises(DataError, match=r"c\.nii: empty file"):
        read_nifti(tmp_path / "c.nii")
    with pytest.raises(DataError, match=r"d\.nii: it cannot be read: No such file"):
        read_nifti(tmp_path / "d.nii")
    good = write_nifti(tmp_path / "e.nii", volume())
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfedpure\[medical\]'"):
        read_nifti(good)


def test_an_affine_that_is_none_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii", volume())
    content = bytearray(path.read_bytes())
    struct.pack_into("<12f", content, 280, *([0.0] * 12))
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii: its affine maps two axes to one"):
        stack(path)


def test_every_cut_is_an_error_of_ours(tmp_path):
    for name in ("a.nii", "a.nii.gz"):
        whole = write_nifti(tmp_path / name, volume(shape=(3, 3, 3))).read_bytes()
        path, through = tmp_path / f"cut-{name}", []
        for end in range(0, len(whole) - 9, 5):
            path.write_bytes(whole[:end])
            try:
                through.append((end, len(stack(path))))
            except DataError:
                continue
        assert through == []
