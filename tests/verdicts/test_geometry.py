"""Where a derived file lies: every pixel of the source holds its own place in the patient, read back from what is made.

Nothing of the derivation is asked: places of both files follow from their headers by the equation of the standard.
"""

import io

import numpy
import pytest
from scans import dicom_bytes, write_nifti

from medfedpure.data.readers.derived.kinds import derived
from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.scans import ScanReader

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
MAKER = Maker("told", "1", "one", Pseudonyms(bytes(32)))
SIZE, EDGE = 32, 4
"""Of the square; and the pixels beside the padding, which it darkens."""


def turned(generator):
    """Three axes at right angles, however they lie."""
    axes, signs = numpy.linalg.qr(generator.normal(size=(3, 3)))
    return axes * numpy.sign(numpy.diag(signs))


def where(position, axes, spacing, shape):
    """PS3.3 C.7.6.2.1.1: the centre of each pixel in mm, `(H, W, 3)`."""
    row, column = numpy.mgrid[: shape[0], : shape[1]][..., None]
    return position + axes[:3] * spacing[1] * column + axes[3:] * spacing[0] * row


def item(**tags):
    made = pydicom.Dataset()
    for tag, value in tags.items():
        setattr(made, tag, value)
    return made


def texts(values):
    return [f"{one:.10g}" for one in values]


@pytest.mark.parametrize("enhanced", [False, True], ids=["plain", "enhanced"])
@pytest.mark.parametrize("shape", [(48, 31), (40, 64), (32, 32), (257, 129)], ids=str)
def test_each_pixel_of_a_frame_says_the_place_that_its_file_gives_it(tmp_path, shape, enhanced):
    """Frames of an enhanced file lie anywhere, each with its own spacing, and not one as the shared groups say."""
    generator = numpy.random.default_rng(shape[0])
    frames = [
        (generator.uniform(-200, 200, 3), turned(generator)[:2].reshape(-1), generator.uniform(0.2, 3, 2))
        for _ in range(3 if enhanced else 1)
    ]
    places = [where(*frame, shape) for frame in frames]
    told = [
        {"ImagePositionPatient": texts(one), "ImageOrientationPatient": texts(two), "PixelSpacing": texts(three)}
        for one, two, three in frames
    ]
    groups = {
        "SharedFunctionalGroupsSequence": [item(PixelMeasuresSequence=[item(PixelSpacing=[9, 9])])],
        "PerFrameFunctionalGroupsSequence": [
            item(
                PlanePositionSequence=[item(ImagePositionPatient=one["ImagePositionPatient"])],
                PlaneOrientationSequence=[item(ImageOrientationPatient=one["ImageOrientationPatient"])],
                PixelMeasuresSequence=[item(PixelSpacing=one["PixelSpacing"])],
            )
            for one in told
        ],
    }
    for axis in range(3):
        values = numpy.stack([place[..., axis] for place in places])
        low, span = values.min(), values.max() - values.min()
        pixels = ((values - low) / span * 60000 + 2000).round().astype(numpy.uint16)
        source = tmp_path / "source"
        source.write_bytes(dicom_bytes(pixels if enhanced else pixels[0], **(groups if enhanced else told[0])))
        seen = ScanReader(SIZE, window=(0.0, 65535.0)).read(source).pixels.float() / 65535
        for place in range(len(frames)):
            made = pydicom.dcmread(io.BytesIO(derived(source, place, seen[place], True, MAKER, "axial")[1]))
            said = (made[tag].value for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"))
            told_there = where(*(numpy.array(one, float) for one in said), (made.Rows, made.Columns))[..., axis]
            held = (made.pixel_array.astype(float) - 2000) / 60000 * span + low
            inside = (slice(EDGE, -EDGE), slice(EDGE, -EDGE))
            step = numpy.abs(numpy.diff(told_there, axis=0)).max() + numpy.abs(numpy.diff(told_there, axis=1)).max()
            assert numpy.abs(told_there - held)[inside].max() < 0.03 * step


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
def test_each_voxel_of_a_slice_says_the_place_that_its_affine_gives_it(tmp_path, axis):
    """Of a volume whose axes are turned, flipped, sheared and of three spacings."""
    generator = numpy.random.default_rng(5)
    for shape in ((42, 30, 25), (23, 51, 36)):
        affine = numpy.eye(4)
        shear = numpy.array([[1, 0.15, 0], [0, 1, 0.1], [0, 0, 1]])
        affine[:3, :3] = turned(generator) @ numpy.diag(generator.uniform(1, 1.7, 3) * [1, -1, 1]) @ shear
        affine[:3, 3] = generator.uniform(-90, 90, 3)
        places = numpy.stack(numpy.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]
        for along in range(3):
            values = places[..., along].astype(numpy.float32)
            low, high = float(values.min()), float(values.max())
            source = write_nifti(tmp_path / "v.nii.gz", values, affine)
            seen = ScanReader(SIZE, window=(low, high), axis=axis).read(source).pixels.float() / 65535
            for place in (0, len(seen) - 1):
                content = derived(source, place, seen[place], True, MAKER, axis)[1]
                made = nibabel.Nifti1Image.from_bytes(content)
                voxels = numpy.stack(numpy.indices(made.shape), -1)
                told = (voxels @ made.affine[:3, :3].T + made.affine[:3, 3])[..., along]
                held = made.get_fdata() / 65535 * (high - low) + low
                inside = tuple(slice(None) if count == 1 else slice(EDGE, -EDGE) for count in made.shape)
                step = sum(abs(made.affine[along, one]) for one in range(3) if made.shape[one] > 1)
                assert numpy.abs(told - held)[inside].size
                assert numpy.abs(told - held)[inside].max() < 0.03 * step


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (2**31 - 1, 2**31 - 1), (-1, 1), (None, 1)])
def test_a_file_keeps_its_number_in_the_series_where_it_has_one(tmp_path, number, kept):
    source = tmp_path / "source"
    source.write_bytes(dicom_bytes(numpy.zeros((8, 8), numpy.uint8), InstanceNumber=number))
    content = derived(source, 0, ScanReader(8).read(source).pixels[0].float(), False, MAKER, "axial")[1]
    assert pydicom.dcmread(io.BytesIO(content)).InstanceNumber == kept
