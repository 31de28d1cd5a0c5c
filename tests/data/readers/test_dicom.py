"""DICOM files of every kind that a scanner writes, and of some that nobody should have written."""

from __future__ import annotations

import struct
import sys
import warnings
import zlib
from collections.abc import Iterable

import numpy
import pytest
from scans import anatomy, dicom_bytes

pydicom = pytest.importorskip("pydicom")
pytest.importorskip("openjpeg")
pytest.importorskip("jpeg_ls")

from pydicom.dataset import Dataset  # noqa: E402

from medfedpure.core.errors import DataError, MissingExtraError  # noqa: E402
from medfedpure.data.readers import dicom_header  # noqa: E402
from medfedpure.data.readers.dicom import is_dicom, read_dicom  # noqa: E402

RAMP = numpy.arange(4096, dtype=numpy.uint16).reshape(64, 64)


def first(content: bytes, **options) -> numpy.ndarray:
    """The first frame `(C, H, W)`."""
    return next(read_dicom(content).images(**options))


def item(**tags) -> Dataset:
    """A data set to stand in a sequence."""
    found = Dataset()
    for name, value in tags.items():
        setattr(found, name, value)
    return found


def packed(entries: Iterable[int]) -> bytes:
    """Entries of a table as words of 16 bits."""
    return numpy.array(list(entries), "<u2").tobytes()


# What is read


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_all_steps_of_a_depth_survive(bits):
    stored = (RAMP >> 4).astype(numpy.uint8) if bits == 8 else (RAMP.astype(int) % 2**bits).astype(numpy.uint16)
    found = first(dicom_bytes(stored, bits=bits), window="full")[0]
    assert numpy.array_equal((found * (2**bits - 1)).round(), stored)


def test_signed_values_and_the_rescale():
    stored = (RAMP.astype(numpy.int16) - 2048).astype(numpy.int16)
    content = dicom_bytes(stored, RescaleSlope=2, RescaleIntercept=-100)
    found = first(content, window=(-100.0, 900.0))[0]
    assert numpy.allclose(found, numpy.clip(stored * 2 / 1000, 0, 1), atol=1e-6)


@pytest.mark.parametrize("bits", [12, 13])
def test_unused_upper_bits_do_not_count(bits):
    stored = RAMP | numpy.uint16(2**15)
    found = first(dicom_bytes(stored, bits=bits), window="full")[0]
    assert numpy.array_equal((found * (2**bits - 1)).round(), RAMP)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (None, lambda x: (x - 999.5) / 99 + 0.5),
        ("LINEAR_EXACT", lambda x: (x - 1000) / 100 + 0.5),
        ("SIGMOID", lambda x: 1 / (1 + numpy.exp(-4 * (x - 1000) / 100))),
    ],
)
def test_the_first_window_is_taken_by_its_function(function, wanted):
    content = dicom_bytes(RAMP, WindowCenter=[1000, 2000], WindowWidth=[100, 50], VOILUTFunction=function)
    with numpy.errstate(over="ignore"):
        assert numpy.allclose(first(content)[0], numpy.clip(wanted(RAMP.astype(float)), 0, 1), atol=1e-6)


@pytest.mark.parametrize("width", [0, 0.5, -3])
def test_a_window_that_the_standard_forbids_counts_as_none(width):
    content = dicom_bytes(RAMP, WindowCenter=1000, WindowWidth=width)
    assert numpy.array_equal(first(content), first(content, window="percentiles"))


def test_percentiles_cut_the_ends():
    found = first(dicom_bytes(RAMP), percentiles=(10, 90))[0]
    low, high = numpy.percentile(RAMP, (10, 90), method="inverted_cdf")
    assert numpy.allclose(found, numpy.clip((RAMP - low.astype(float)) / (float(high) - low), 0, 1), atol=1e-6)


def test_pictures_of_one_value_and_of_almost_one_are_read():
    flat = numpy.full((20, 20), 7, numpy.uint16)
    assert first(dicom_bytes(flat)).max() == 0
    flat[3, 3] = 900
    found = first(dicom_bytes(flat))[0]
    assert (found[3, 3], found[0, 0]) == (1, 0), "percentiles that fall together give way to the ends"


def test_tables_of_modality_and_voi():
    modality = item(LUTDescriptor=[4096, 0, 16], LUTData=packed(range(4095, -1, -1)), ModalityLUTType="US")
    voi = item(LUTDescriptor=[100, 1000, 8], LUTData=packed(2 * n for n in range(100)))
    content = dicom_bytes(RAMP, bits=12, ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    wanted = numpy.clip(4095 - RAMP.astype(int) - 1000, 0, 99) * 2 / 255
    assert numpy.allclose(first(content)[0], wanted, atol=1e-6)


def test_monochrome1_is_turned():
    stored = anatomy(3)
    dark = first(dicom_bytes(stored, bits=12, PhotometricInterpretation="MONOCHROME1"), window="full")
    assert numpy.allclose(dark, 1 - stored[None] / 4095, atol=1e-6)


@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_no_part_of_the_window(kind):
    stored = anatomy(3) + numpy.uint16(100)
    stored[:5] = 60000
    stored[5:7] = 60007
    content = dicom_bytes(stored, PixelPaddingValue=60000, PixelPaddingRangeLimit=60010, PhotometricInterpretation=kind)
    found = first(content)[0]
    assert found[:7].max() == 0
    black, white = numpy.percentile(stored[7:], (0.5, 99.5), method="inverted_cdf").astype(float)
    share = numpy.clip((stored[7:] - black) / (white - black), 0, 1)
    assert numpy.allclose(found[7:], share if kind == "MONOCHROME2" else 1 - share, atol=1e-6)
    alone = first(dicom_bytes(stored, PixelPaddingValue=60000, PhotometricInterpretation=kind))[0]
    assert alone[:5].max() == 0
    assert (alone[5:7] == (1 if kind == "MONOCHROME2" else 0)).all(), "without a limit it is one value"


def test_padding_of_signed_values_may_be_written_unsigned():
    stored = anatomy(3).astype(numpy.int16)
    stored[:4] = -2000
    content = dicom_bytes(stored, PixelPaddingValue=-2000)
    assert read_dicom(content).header.padding() == (-2000, -2000)
    wrong = content.replace(
        struct.pack("<HH2sHh", 0x28, 0x120, b"SS", 2, -2000), struct.pack("<HH2sHH", 0x28, 0x120, b"US", 2, 63536)
    )
    assert wrong != content
    assert read_dicom(wrong).header.padding() == (-2000, -2000)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_is_grey_only_where_asked(planar):
    colour = numpy.zeros((8, 6, 3), numpy.uint8)
    colour[..., 0], colour[:4, :, 1], colour[:, :3, 2] = 250, 100, 50
    stored = colour if planar == 0 else numpy.ascontiguousarray(colour.transpose(2, 0, 1)).reshape(8, 6, 3)
    scan = read_dicom(dicom_bytes(stored, SamplesPerPixel=3, PlanarConfiguration=planar))
    assert scan.channels == 3
    found = next(scan.images())
    assert numpy.allclose(found, colour.transpose(2, 0, 1) / 255, atol=1e-6)
    grey = next(scan.images(colour_to_grey=True))
    assert numpy.allclose(grey[0], found.transpose(1, 2, 0) @ numpy.array([0.299, 0.587, 0.114]), atol=1e-6)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.80"])
def test_frames_of_compressed_files_come_in_order(syntax):
    stored = numpy.stack([anatomy(place) for place in range(3)])
    content = dicom_bytes(stored, bits=12, syntax=syntax)
    scan = read_dicom(content)
    assert scan.header.frames == 3
    found = numpy.stack(list(scan.images(window="full")))[:, 0]
    assert numpy.array_equal((found * 4095).round(), stored)


def test_frames_may_have_rules_of_their_own():
    stored = numpy.stack([RAMP, RAMP])
    shared = item(FrameVOILUTSequence=[item(WindowCenter=500, WindowWidth=101)])
    own = [
        item(PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")])
        for slope in (1, 2)
    ]
    own[1].FrameVOILUTSequence = [item(WindowCenter=3000, WindowWidth=1001)]
    content = dicom_bytes(stored, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=own)
    one, two = (frame[0] for frame in read_dicom(content).images())
    ramp = RAMP.astype(float)
    assert numpy.allclose(one, numpy.clip((ramp - 499.5) / 100 + 0.5, 0, 1), atol=1e-6)
    assert numpy.allclose(two, numpy.clip((ramp * 2 - 2999.5) / 1000 + 0.5, 0, 1), atol=1e-6)


def test_a_data_set_without_preamble_is_read_where_asked(tmp_path):
    content = dicom_bytes(RAMP, bits=12)
    stream = tmp_path / "bare"
    pydicom.dcmread(pydicom.filebase.BytesIO(content)).save_as(tmp_path / "whole")
    data = pydicom.dcmread(tmp_path / "whole")
    start = 144 + data.file_meta.FileMetaInformationGroupLength
    stream.write_bytes((tmp_path / "whole").read_bytes()[start:])
    assert not is_dicom(stream)
    assert is_dicom(stream, force=True)
    with pytest.raises(DataError, match="force reads"):
        read_dicom(stream)
    found = next(read_dicom(stream, force=True).images(window="full"))
    assert numpy.array_equal((found[0] * 4095).round(), RAMP)
    for name, other in (("text", b"a text of some length, which is none"), ("empty", b""), ("png", b"\x89PNG\r\n")):
        (tmp_path / name).write_bytes(other)
        assert not is_dicom(tmp_path / name, force=True)


# What is refused


def changed(content: bytes, tag: int, kind: bytes, old: bytes, new: bytes) -> bytes:
    """The content with another value of a tag of group 0028."""
    head = struct.pack("<HH2sH", 0x28, tag, kind, len(old))
    assert content.count(head + old) == 1
    return content.replace(head + old, struct.pack("<HH2sH", 0x28, tag, kind, len(new)) + new)


def refused(content: bytes) -> str:
    with pytest.raises(DataError) as caught:
        list(read_dicom(content).images())
    assert str(caught.value).startswith("the DICOM file given as bytes: ")
    return str(caught.value)


def test_what_claims_more_than_it_holds():
    content = dicom_bytes(RAMP)
    rows = struct.pack("<H", 64)
    assert "claim 8320 bytes and 8192 are there" in refused(changed(content, 0x10, b"US", rows, struct.pack("<H", 65)))
    assert "square of more than" in refused(changed(content, 0x10, b"US", rows, struct.pack("<H", 65535)))
    assert "cannot be read" in refused(content[:-1000]) or "are there" in refused(content[:-1000])
    assert "no whole number from 1" in refused(changed(content, 0x10, b"US", rows, struct.pack("<H", 0)))


def test_many_frames_in_few_bytes_are_refused_before_any_is_decoded(monkeypatch):
    content = dicom_bytes(numpy.zeros((2, 64, 64), numpy.uint16), syntax="1.2.840.10008.1.2.5")
    bomb = changed(content, 0x08, b"IS", b"2 ", b"9999999 ")
    assert "which no scan is" in refused(bomb)
    few = changed(content, 0x08, b"IS", b"2 ", b"7 ")
    assert "frame 3 of 7 is not there" in refused(few)


def test_a_frame_of_another_size_than_declared_is_refused():
    content = dicom_bytes(RAMP, bits=12, syntax="1.2.840.10008.1.2.4.90")
    place = content.index(b"\xff\x4f\xff\x51") + 8
    assert struct.unpack_from(">II", content, place) == (64, 64)
    bomb = content[:place] + struct.pack(">II", 60000, 60000) + content[place + 8 :]
    assert "declares 60000x60000 pixels of 1 values, and the header 64x64 of 1" in refused(bomb)
    broken = content.replace(b"\xff\x4f\xff\x51", b"\0\0\0\0")
    assert "does not begin as its compression does" in refused(broken)


def test_a_deflated_bomb_is_refused_before_it_is_inflated(monkeypatch):
    monkeypatch.setattr(dicom_header, "SMALL", 2**16)
    monkeypatch.setattr(dicom_header, "TIGHTEST", 10)
    meta = pydicom.dcmread(pydicom.filebase.BytesIO(dicom_bytes(RAMP)))
    meta.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    stream = pydicom.filebase.BytesIO()
    meta.save_as(stream)
    whole = stream.getvalue()
    assert next(read_dicom(whole).images()).shape == (1, 64, 64)
    start = 144 + int.from_bytes(whole[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = whole[:start] + packer.compress(bytes(2**24)) + packer.flush()
    monkeypatch.setattr(pydicom, "dcmread", lambda *_, **__: pytest.fail("it was inflated"))
    assert "which no scan does" in refused(bomb)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"PhotometricInterpretation": "HSV"}, "PhotometricInterpretation is missing, or none of MONOCHROME1"),
        ({"BitsAllocated": 32}, "2 to 16 bits of 8 or 16 are read"),
        ({"BitsStored": 17}, "2 to 16 bits of 8 or 16 are read"),
        ({"SamplesPerPixel": 2}, "2 values a pixel, which MONOCHROME2 has not"),
        ({"VOILUTSequence": [item(LUTDescriptor=[100, 0, 8], LUTData=packed([1, 2]))]}, "holds 4 of 100 entries"),
        ({"WindowCenter": "1e400", "WindowWidth": 10}, "WindowCenter is no finite number"),
    ],
    ids=["photometric", "allocated", "stored", "samples", "table", "window"],
)
def test_headers_that_cannot_be(tags, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        content = dicom_bytes(RAMP, **tags)
    assert text in refused(content)


def test_other_files_are_told(tmp_path):
    (tmp_path / "a.dcm").write_text("notes")
    with pytest.raises(DataError, match=r"a\.dcm: it is no DICOM file"):
        read_dicom(tmp_path / "a.dcm")
    (tmp_path / "b.dcm").touch()
    with pytest.raises(DataError, match=r"b\.dcm: empty file"):
        read_dicom(tmp_path / "b.dcm")
    with pytest.raises(DataError, match=r"c\.dcm: it cannot be read: No such file"):
        read_dicom(tmp_path / "c.dcm")
    with pytest.raises(DataError, match="it is a folder, not a file"):
        read_dicom(tmp_path)


def test_every_cut_is_an_error_of_ours():
    whole = dicom_bytes(numpy.stack([anatomy(1, 8), anatomy(2, 8)]), syntax="1.2.840.10008.1.2.5")
    lost = []
    for end in range(0, len(whole) - 8, 7):
        try:
            lost.append((end, len(list(read_dicom(whole[:end]).images()))))
        except DataError:
            continue
    assert lost == [], "a cut file is an error, not one without pictures"


def test_what_is_missing_is_named_by_its_extra(monkeypatch):
    lossless = dicom_bytes(RAMP, bits=12, syntax="1.2.840.10008.1.2.4.80")
    from pydicom.pixels.decoders.base import Decoder

    monkeypatch.setattr(Decoder, "available_plugins", property(lambda _: ()))
    with pytest.raises(MissingExtraError, match=r"JPEG-LS.*pip install 'medfedpure\[medical\]'"):
        list(read_dicom(lossless).images())
    # An extended JPEG of 12 bits: only its head is looked at.
    head = b"\xff\xd8\xff\xc1" + struct.pack(">HBHHB", 11, 12, 64, 64, 1) + b"\1\x11\0\xff\xd9"
    data = pydicom.dcmread(pydicom.filebase.BytesIO(dicom_bytes(RAMP, bits=12)))
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.51"
    data.PixelData = pydicom.encaps.encapsulate([head])
    data["PixelData"].is_undefined_length = True
    stream = pydicom.filebase.BytesIO()
    data.save_as(stream)
    with pytest.raises(MissingExtraError, match=r"12 bits.*GPL.*pip install 'medfedpure\[medical-gpl\]'"):
        list(read_dicom(stream.getvalue()).images())
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfedpure\[medical\]'"):
        read_dicom(lossless)


# What fuzzing found


def boxed(content: bytes, length: int) -> bytes:
    """A file of one JPEG 2000 frame as a JP2 file with a box of some length before the codestream."""
    data = pydicom.dcmread(pydicom.filebase.BytesIO(content))
    frame = pydicom.encaps.get_frame(data.PixelData, 0, number_of_frames=1)
    box = struct.pack(">I4s", length, b"free") + bytes(8)
    head = b"\0\0\0\x0cjP  \r\n\x87\n" + box + struct.pack(">I4s", len(frame) + 8, b"jp2c")
    data.PixelData = pydicom.encaps.encapsulate([head + frame])
    stream = pydicom.filebase.BytesIO()
    data.save_as(stream)
    return stream.getvalue()


def test_boxes_before_a_codestream_end_somewhere():
    """A length of 0 sends pydicom's own search for the codestream round for ever."""
    content = dicom_bytes(RAMP, bits=12, syntax="1.2.840.10008.1.2.4.90")
    assert "cannot be decoded" in refused(boxed(content, 16)), "it is found, and is no whole JP2 file"
    for length in (0, 7, 2**31):
        assert "does not begin as its compression does" in refused(boxed(content, length))


def test_a_decoder_that_panics_is_an_error_of_ours():
    """What panics in Rust is no Exception: a run of RLE behind the end of its segment."""
    content = dicom_bytes(RAMP, bits=12, syntax="1.2.840.10008.1.2.5")
    start = content.index(struct.pack("<2I", 2, 64)) + 64
    broken = bytearray(content)
    for place in range(start, len(broken) - 10, 2):
        broken[place : place + 2] = b"\x81\xff"
    assert "frame 1 of 1 cannot be decoded" in refused(bytes(broken)), refused(bytes(broken))
