"""Purified scans as files: the pixels that the classifier read, at their place in the patient, and nobody's name."""

import errno
import io
import itertools
import os
import stat

import numpy
import pytest
import torch
from PIL import Image
from scans import anatomy, dicom_bytes, write_nifti
from written import defence, rows_of

import medfedpure
from medfedpure.core.errors import ArtifactError, ConfigError, DataError
from medfedpure.data.readers.derived.dicom import derived_dicom
from medfedpure.data.readers.derived.kinds import look_at
from medfedpure.data.readers.derived.maker import Maker
from medfedpure.data.readers.derived.nifti import derived_nifti
from medfedpure.data.readers.derived.placing import cut_of
from medfedpure.data.readers.derived.png import derived_png
from medfedpure.data.readers.nifti import read_nifti
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.data.readers.squares import square_of_shares
from medfedpure.testing import tiny_classifier, tiny_dataset
from medfedpure.verdicts.files import files_of, name_of
from medfedpure.verdicts.predict import predict_files
from medfedpure.verdicts.purified import DOCUMENT, KEY, Purified, purified_of

pydicom = pytest.importorskip("pydicom")
nibabel = pytest.importorskip("nibabel")
NAMES = ("MUSTERMANN^ERIKA", "P-4711", "19701231", "ACC-99")
UIDS = {"StudyInstanceUID": "1.2.826.71", "SeriesInstanceUID": "1.2.826.72", "FrameOfReferenceUID": "1.2.826.73"}
MAKER = Maker("told", "1", "one", Pseudonyms(bytes(32)))
ROWS, COLUMNS = (0.6, 0.8, 0.0), (-0.8 * 0.6, 0.6 * 0.6, 0.8)
"""Directions along a row and down a column, of a slice that is turned twice."""
PLACED = {
    "PixelSpacing": [0.5, 0.25],
    "ImagePositionPatient": [-10.0, 20.5, 7.25],
    "ImageOrientationPatient": [*ROWS, *COLUMNS],
}
AGED = {"InstanceNumber": 12, "SliceThickness": 3}
WHO = dict(zip(("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber"), NAMES, strict=True))


def read(content):
    return pydicom.dcmread(io.BytesIO(content))


def derive(tmp_path, pixels, square, deep=True, place=0, maker=MAKER, **tags):
    source = tmp_path / "source"
    source.write_bytes(dicom_bytes(pixels, **tags))
    return read(derived_dicom(source, place, square, deep, maker))


def where(made, row, column):
    """The standard's own equation (PS3.3 C.7.6.2.1.1) of a pixel's centre, in mm."""
    axes = numpy.array(made.ImageOrientationPatient, float)
    down, across = (float(one) for one in made.PixelSpacing)
    return numpy.array(made.ImagePositionPatient, float) + axes[:3] * across * column + axes[3:] * down * row


@pytest.mark.parametrize(("height", "width"), [(48, 48), (30, 47), (61, 20), (7, 12), (1, 90)])
def test_a_pixel_lies_in_the_patient_where_the_picture_put_it(tmp_path, height, width):
    """What the reader's own resizing makes of a ramp says where each of its pixels came from."""
    ramp = numpy.linspace(0.2, 0.8, width, dtype=numpy.float32)[None].repeat(height, 0)
    square = square_of_shares(ramp[None], 16).float() / 65535
    made = derive(tmp_path, numpy.zeros((height, width), numpy.uint16), square, **PLACED)
    cut = cut_of(height, width, 16)
    assert (made.Rows, made.Columns) == (cut.rows, cut.columns)
    assert max(cut.rows, cut.columns) == 16
    source = type("Source", (), PLACED)
    for row, column in itertools.product(range(made.Rows), range(made.Columns)):
        at = (cut.first[0] + row * cut.step[0], cut.first[1] + column * cut.step[1])
        assert -0.5 - max(cut.step[0] - height, 0) / 2 <= at[0] <= height - 0.5 + max(cut.step[0] - height, 0) / 2
        assert where(made, row, column) == pytest.approx(where(source, *at), abs=1e-6)
    if cut.columns > 6 and cut.rows > 6:
        inside = made.pixel_array[3:-3, 3:-3] / 65535
        told = 0.2 + 0.6 * (cut.first[1] + numpy.arange(3, cut.columns - 3) * cut.step[1]) / (width - 1)
        assert inside == pytest.approx(told[None].repeat(len(inside), 0), abs=4e-3)


def test_of_a_square_of_its_own_size_nothing_moves(tmp_path):
    square = torch.rand(1, 16, 16, generator=torch.Generator().manual_seed(0))
    for deep, top in ((True, 65535), (False, 255)):
        made = derive(tmp_path, anatomy(1, 16), square, deep, **PLACED, **UIDS, **AGED)
        assert made.PixelSpacing == [0.5, 0.25]
        assert made.ImagePositionPatient == PLACED["ImagePositionPatient"]
        assert numpy.array_equal(made.pixel_array, (square[0].double() * top).round().numpy())
        assert (made.BitsStored, made.HighBit, made.PixelRepresentation) == ((16, 15, 0) if deep else (8, 7, 0))
        shown = pydicom.pixels.apply_voi_lut(made.pixel_array, made)
        assert shown == pytest.approx(made.pixel_array, abs=1e-6), "a viewer shows it as it is"
        assert (made.InstanceNumber, made.SliceThickness) == (12, 3)
    colour = torch.rand(3, 16, 16)
    made = derive(tmp_path, numpy.zeros((16, 16, 3), numpy.uint8), colour, False, SamplesPerPixel=3)
    assert numpy.array_equal(made.pixel_array, (colour.double() * 255).round().permute(1, 2, 0).numpy())
    assert "WindowWidth" not in made


def test_an_enhanced_file_places_each_frame_and_a_plain_one_only_what_it_says(tmp_path):
    def item(**tags):
        made = pydicom.Dataset()
        for tag, value in tags.items():
            setattr(made, tag, value)
        return made

    def position(z):
        return item(PlanePositionSequence=[item(ImagePositionPatient=[1, 2, z])])

    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[2, 3], SliceThickness=4)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    groups = {
        "SharedFunctionalGroupsSequence": [shared],
        "PerFrameFunctionalGroupsSequence": [position(z) for z in (5, 15)],
    }
    pixels, square = numpy.stack([anatomy(1, 32), anatomy(2, 32)]), torch.zeros(1, 16, 16)
    made = derive(tmp_path, pixels, square, place=1, **groups)
    assert made.PixelSpacing == [4, 6]
    assert made.ImagePositionPatient == [1 + 3 * 0.5, 2 + 2 * 0.5, 15]
    assert (made.InstanceNumber, made.SliceThickness) == (2, 4)
    plain = derive(tmp_path, pixels, square, place=1, **PLACED)
    assert "ImagePositionPatient" not in plain
    assert plain.PixelSpacing == [1, 0.5]
    for wrong in (
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImagePositionPatient": [1, 2, "1e300"]},
        {"ImagePositionPatient": [1, 2]},
        {"PixelSpacing": [0, 1]},
        {"PixelSpacing": None},
    ):
        made = derive(tmp_path, anatomy(1), square, **{**PLACED, **wrong}, **UIDS)
        assert "ImagePositionPatient" not in made
        assert "FrameOfReferenceUID" not in made
    assert derive(tmp_path, anatomy(1), square, ImagerPixelSpacing=[0.2, 0.2]).ImagerPixelSpacing == [0.4, 0.4]
    assert derive(tmp_path, anatomy(1), square, PixelAspectRatio=[2, 1]).PixelAspectRatio == [2, 1]


def test_it_says_what_it_is_and_of_whom_nothing(tmp_path):
    told = {**WHO, **UIDS, **PLACED, "Modality": "MR", "BurnedInAnnotation": "NO", "LossyImageCompression": "01"}
    hidden = {"InstitutionName": NAMES[0], "SeriesDescription": NAMES[0], "PatientComments": NAMES[1]}
    made = derive(tmp_path, anatomy(1), torch.zeros(1, 16, 16), **told, **hidden)
    assert made.ImageType == ["DERIVED", "SECONDARY"]
    assert (made.Modality, made.BurnedInAnnotation, made.LossyImageCompression) == ("MR", "NO", "01")
    assert made.DerivationDescription == "told"
    assert [(one.CodeValue, one.CodingSchemeDesignator) for one in made.DerivationCodeSequence] == [
        ("113085", "DCM"),
        ("PURIFIED", "99MEDFEDPURE"),
    ]
    assert made.PatientIdentityRemoved == "YES"
    assert made.PatientID == ""
    content = io.BytesIO()
    made.save_as(content)
    for secret in (*NAMES, *UIDS.values()):
        assert secret.encode() not in content.getvalue()
    odd = derive(tmp_path, anatomy(1), torch.zeros(1, 16, 16), Modality=NAMES[2], BurnedInAnnotation="MUSTERMANN")
    assert odd.Modality == "OT"
    assert "BurnedInAnnotation" not in odd
    assert "LossyImageCompression" not in odd
    keyed = derive(
        tmp_path, anatomy(1), torch.zeros(1, 16, 16), maker=Maker("t", "1", "n", Pseudonyms(), "abc"), **told
    )
    assert keyed.PatientID == "abc"
    assert keyed.StudyInstanceUID != made.StudyInstanceUID


def test_equal_uids_become_equal_ones_under_one_key(tmp_path):
    square = torch.zeros(1, 16, 16)
    one = derive(tmp_path, anatomy(1), square, **UIDS, **PLACED)
    other = derive(tmp_path, anatomy(2), square, maker=Maker("t", "1", "two", MAKER.pseudonyms), **UIDS, **PLACED)
    apart = derive(tmp_path, anatomy(2), square, **{**UIDS, "SeriesInstanceUID": "1.2.826.74"}, **PLACED)
    for tag in UIDS:
        assert one[tag].value == other[tag].value != UIDS[tag]
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert one.SeriesInstanceUID != apart.SeriesInstanceUID
    assert one.StudyInstanceUID == apart.StudyInstanceUID
    assert derive(tmp_path, anatomy(1), square, **UIDS).SOPInstanceUID == one.SOPInstanceUID
    assert len({one.SOPInstanceUID, one.SeriesInstanceUID, one.StudyInstanceUID, one.FrameOfReferenceUID}) == 4


AFFINES = {
    "as stored": numpy.diag([2.0, 2.0, 5.0, 1.0]),
    "turned": numpy.array([[0, 0, 3.0, -7], [-2.0, 0, 0, 8], [0, 2.0, 0, 9], [0, 0, 0, 1]]),
    "oblique": numpy.array([[1.6, -1.2, 0, -30], [1.2, 1.6, 0, 4], [0, 0, -2.5, 60], [0, 0, 0, 1]]),
}


@pytest.mark.parametrize("axis", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("affine", AFFINES.values(), ids=AFFINES)
def test_a_slice_of_a_volume_lies_where_it_lay(tmp_path, axis, affine):
    """The volume's values are a ramp over the patient, so that every derived voxel says itself where it should lie."""
    places = numpy.stack(numpy.meshgrid(*map(numpy.arange, (40, 34, 28)), indexing="ij"), -1)
    slope = numpy.array([0.9, 0.5, 0.7])
    world = places @ affine[:3, :3].T + affine[:3, 3]
    values = (world @ slope).astype(numpy.float32)
    low, high = float(values.min()), float(values.max())
    source = write_nifti(tmp_path / "v.nii.gz", values, affine)
    slices = list(read_nifti(source).slices(axis, window=(low, high)))
    for place in (0, len(slices) // 2):
        shown, aspect = slices[place]
        square = square_of_shares(shown, 32, aspect).float() / 65535
        content = derived_nifti(source, place, axis, square, True, MAKER)
        made = nibabel.Nifti1Image.from_bytes(content)
        assert nibabel.aff2axcodes(made.affine) == nibabel.aff2axcodes(affine)
        assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (2, 0)
        whole_voxels = numpy.stack(numpy.meshgrid(*map(numpy.arange, made.shape), indexing="ij"), -1)
        wanted = (whole_voxels @ made.affine[:3, :3].T + made.affine[:3, 3]) @ slope
        found = made.get_fdata() / 65535 * (high - low) + low
        inside = tuple(slice(None) if n == 1 else slice(4, -4) for n in made.shape)
        assert found[inside] == pytest.approx(wanted[inside], abs=0.01 * (high - low))
        assert sorted(made.shape)[0] == 1
        (tmp_path / "made.nii").write_bytes(content)
        cut = cut_of(*shown.shape[1:], 32, aspect)
        assert torch.equal(look_at(tmp_path / "made.nii", axis), cut.of(square)), "seen as the radiologist sees it"


def test_a_volume_that_says_no_position_gives_slices_that_say_none_and_nobodys_name(tmp_path):
    image = nibabel.Nifti1Image(numpy.zeros((8, 8, 4), numpy.int16), None)
    image.header.set_zooms((2, 3, 4))
    image.header["descrip"], image.header["aux_file"] = NAMES[0].encode(), NAMES[1].encode()
    (tmp_path / "v.nii").write_bytes(image.to_bytes())
    content = derived_nifti(tmp_path / "v.nii", 1, "axial", torch.zeros(3, 16, 16), False, MAKER)
    made = nibabel.Nifti1Image.from_bytes(content)
    assert (int(made.header["sform_code"]), int(made.header["qform_code"])) == (0, 0)
    assert made.shape == (11, 16, 1, 1, 3)
    assert made.header.get_zooms()[:3] == pytest.approx((2 * 8 / 11, 3 * 8 / 16, 4))
    assert NAMES[0].encode() not in content
    assert NAMES[1].encode() not in content


@pytest.mark.parametrize(("mode", "deep"), [("L", False), ("RGB", False), ("I;16", True)])
def test_a_picture_is_png_of_its_depth_cut_to_its_shape(tmp_path, mode, deep):
    Image.new(mode, (20, 10)).save(tmp_path / "p.png")
    square = torch.rand(3 if mode == "RGB" else 1, 20, 20)
    (tmp_path / "made.png").write_bytes(derived_png(tmp_path / "p.png", square, {"Description": "told"}))
    top = 65535 if deep else 255
    found = look_at(tmp_path / "made.png", "axial")
    assert torch.equal(found, ((square[:, 5:15].double() * top).round() / top).float())
    with Image.open(tmp_path / "made.png") as opened:
        assert opened.mode.startswith(mode)
        assert opened.info["Description"] == "told"
    lying = Image.new("L", (20, 10))
    exif = lying.getexif()
    exif[274] = 6
    lying.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "made.png").write_bytes(derived_png(tmp_path / "turned.jpg", square[:1], {}))
    assert look_at(tmp_path / "made.png", "axial").shape == (1, 20, 10)


# -- the listener ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def inbox(tmp_path):
    """Pictures of one name in two folders, two DICOM files of a series, one of them of frames, a volume."""
    folder = tmp_path / "inbox"
    data = tiny_dataset(12, size=16)
    for place, where_ in enumerate(("a", "b", "c\n\\d")):
        (folder / where_).mkdir(parents=True)
        Image.fromarray(data.pixels[place, 0].numpy()).save(folder / where_ / "scan.png")
    (folder / "IM1").write_bytes(dicom_bytes(anatomy(1), bits=12, **WHO, **UIDS, **PLACED))
    frames = numpy.stack([anatomy(2), anatomy(3)])
    (folder / "IM2").write_bytes(dicom_bytes(frames, bits=12, **WHO, **UIDS))
    write_nifti(folder / "v.nii.gz", numpy.stack([anatomy(z, 24) for z in range(3)], 2).astype(numpy.int16))
    return folder


def purify_all(**options):
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "smoothing"),
        policy="purify_all",
        **options,
    )
    return made.calibrate(tiny_dataset(60, size=16), 0.3, seed=1)


def derived_files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name not in (DOCUMENT, KEY))


def test_what_was_purified_is_there_and_nothing_else(chain, inbox, tmp_path):
    out = tmp_path / "out" / "purified"
    predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", target_fpr=0.8, also=[Purified(out, chain)])
    rows = rows_of(tmp_path / "v.jsonl")
    files = files_of([inbox], lambda path: path.is_file())
    assert len(rows) == 9
    by_name = {name_of(path): path for path in files}
    assert {row["purified"] for row in rows} == {True, False}
    for row in rows:
        saved = purified_of(out, by_name[row["file"]], row["frame"])
        assert (saved is not None) == row["purified"], row
    assert len(derived_files(out)) == sum(row["purified"] for row in rows)
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o600}


def test_pixels_are_those_that_the_classifier_read_and_no_name_is_anywhere(inbox, tmp_path):
    chain = purify_all()
    seen = []

    class Spy:
        path = tmp_path / "spy"

        def judged(self, batch, found, rows):
            seen.extend(zip([(one.path, one.place) for one in batch], found.images, strict=True))

    out, key = tmp_path / "purified", tmp_path / "key"
    listeners = [Spy(), Purified(out, chain, made_by="me", key_file=key)]
    predict_files(chain, [inbox], tmp_path / "v.jsonl", format="jsonl", made_by="me", key_file=key, also=listeners)
    assert len(seen) == len(derived_files(out)) == 9
    for (path, place), image in seen:
        saved = purified_of(out, path, place)
        top = 255
        found = look_at(saved, "axial")
        assert torch.equal((found * top).round(), (image.double() * top).round().float())
        content = saved.read_bytes()
        for secret in (*NAMES, *UIDS.values()):
            assert secret.encode() not in content
            assert secret not in saved.name
    made = [pydicom.dcmread(path) for path in out.glob("*.dcm")]
    (patient,) = {row["patient"] for row in rows_of(tmp_path / "v.jsonl")} - {None}
    assert [one.PatientID for one in made] == [patient] * 3
    assert len({one.SeriesInstanceUID for one in made}) == len({one.StudyInstanceUID for one in made}) == 1
    assert len({one.SOPInstanceUID for one in made}) == 3
    assert all("smoothing at strength" in one.DerivationDescription for one in made)
    assert all("defence me" in one.DerivationDescription for one in made)


def test_told_twice_it_writes_the_same_and_takes_away_what_is_purified_no_more(chain, inbox, tmp_path):
    out = tmp_path / "purified"
    everything = purify_all()
    for _ in range(2):
        rows = tmp_path / "v.csv"
        rows.unlink(missing_ok=True)
        predict_files(everything, [inbox], rows, made_by="me", seed=7, also=[Purified(out, everything, made_by="me")])
        names = derived_files(out)
        uids = {path.name: pydicom.dcmread(path).SOPInstanceUID for path in out.glob("*.dcm")}
    contents = {path: path.read_bytes() for path in out.iterdir()}
    predict_files(everything, [inbox], rows, made_by="me", seed=7, also=[Purified(out, everything, made_by="me")])
    assert contents == {path: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "v.csv").unlink()
    predict_files(chain, [inbox], rows, made_by="me", target_fpr=0.8, also=[Purified(out, chain, made_by="me")])
    assert set() < set(derived_files(out)) < set(names)
    for path in out.glob("*.dcm"):
        assert pydicom.dcmread(path).SOPInstanceUID == uids[path.name], "one key gives one UID"


def test_a_folder_is_of_one_defence_and_one_key_and_of_a_defence_that_purifies(chain, tmp_path):
    Purified(tmp_path / "p", chain, made_by="one")
    with pytest.raises(ArtifactError, match=r"of another defence: name another folder"):
        Purified(tmp_path / "p", chain, made_by="two")
    with pytest.raises(ArtifactError, match="this defence under another key"):
        Purified(tmp_path / "p", chain, made_by="one", key_file=tmp_path / "key")
    (tmp_path / "p" / DOCUMENT).write_text("[]")
    with pytest.raises(ArtifactError, match="another defence"):
        Purified(tmp_path / "p", chain, made_by="one")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ArtifactError, match="is a file, and a folder is wanted"):
        Purified(tmp_path / "file", chain)
    for policy in ("none", "abstain"):
        with pytest.raises(ConfigError, match="purifies no file"):
            Purified(tmp_path / "q", defence(policy=policy))
    assert not (tmp_path / "q").exists()


def test_a_full_disk_and_a_source_that_went_are_said_and_no_row_is_written(inbox, tmp_path, monkeypatch):
    chain, out = purify_all(), tmp_path / "purified"
    saving = Purified(out, chain)
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", _refuse)
        with pytest.raises(ArtifactError, match=r"purified/.* cannot be written \(No space left on device\)"):
            predict_files(chain, [inbox / "a"], tmp_path / "v.jsonl", format="jsonl", also=[saving])
    assert rows_of(tmp_path / "v.jsonl") == []
    assert derived_files(out) == []
    with pytest.raises(DataError, match="gone: its header cannot be read any more"):
        derived_dicom(tmp_path / "gone", 0, torch.zeros(1, 4, 4), False, MAKER)
    with pytest.raises(DataError, match="gone: its header cannot be read any more"):
        derived_nifti(tmp_path / "gone", 0, "axial", torch.zeros(1, 4, 4), False, MAKER)
    with pytest.raises(DataError, match="gone: it cannot be read any more"):
        derived_png(tmp_path / "gone", torch.zeros(1, 4, 4), {})


def _refuse(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
