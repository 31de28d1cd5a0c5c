"""Files that are read otherwise than they say, that are no files, or that claim more than they hold."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from medfedpure.core.errors import DataError
from medfedpure.core.registry import create
from medfedpure.testing import tiny_dataset

GREY_ALPHA, COLOUR, COLOUR_ALPHA = 4, 2, 6


def png(values: numpy.ndarray, kind: int) -> bytes:
    """A PNG of 16 bits from `(H, W, C)` uint16, every row the difference to the one above."""
    height, width, _ = values.shape
    rows = values.astype(">u2").view(numpy.uint8).reshape(height, -1)
    above = numpy.concatenate([numpy.zeros_like(rows[:1]), rows[:-1]])
    lines = b"".join(b"\2" + (row - over).tobytes() for row, over in zip(rows, above, strict=True))

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values: numpy.ndarray, order: str, packed: bool) -> bytes:
    """A TIFF of 16 bits from `(H, W, 3)` uint16, one strip; order "<" or ">"."""
    height, width, _ = values.shape
    strip = values.astype(f"{order}u2").tobytes()
    strip = zlib.compress(strip) if packed else strip
    strip += b"\0" * (len(strip) % 2)
    start = 8 + len(strip)
    depths = start + 2 + 12 * 9 + 4
    entries = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, depths), (259, 3, 1, 8 if packed else 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(strip))]
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        table += struct.pack(f"{order}HHI", tag, kind, count)
        table += struct.pack(f"{order}HH", value, 0) if (kind, count) == (3, 1) else struct.pack(f"{order}I", value)
    table += struct.pack(f"{order}I3H", 0, 16, 16, 16)
    return (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start) + strip + table


def folder(root: Path, **files: bytes | None) -> Path:
    """Two classes, each with a grey picture of 8 bits, and further files by name in the positive one."""
    for name, grey in (("no", 10), ("yes", 200)):
        (root / name).mkdir(parents=True)
        Image.new("L", (16, 16), grey).save(root / name / "a.png")
    for name, content in files.items():
        (root / "yes" / name.replace("_", ".")).write_bytes(content or b"")
    return root


def read(root: Path, **options):
    return create("dataset", "image_folder", {"root": root, "image_size": 16, "groups": "none", **options}).read()


def ramp(top: int, channels: int) -> numpy.ndarray:
    """Even steps from 0 to `top`, of 16 x 16 pixels."""
    values = numpy.linspace(0, top, 256 * channels).round().astype(numpy.uint16).reshape(16, 16, channels)
    return numpy.ascontiguousarray(values)


WRITERS: dict[str, Callable[[numpy.ndarray], bytes]] = {
    "b.png": lambda values: png(values, COLOUR),
    "b.tif": lambda values: tiff(values, "<", packed=False),
    "c.tif": lambda values: tiff(values, ">", packed=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a09_twelve_bits_of_colour_are_scaled(tmp_path, name):
    """A9: `bit_depth` scales colour of 16 bits as it scales grey, and all of its steps are kept."""
    values = ramp(4095, 3)
    root = folder(tmp_path, **{name.replace(".", "_"): WRITERS[name](values)})
    data = read(root, bit_depth=12, channels=3)
    wanted = torch.from_numpy((values / 4095).transpose(2, 0, 1)).float()
    assert data.pixels.dtype == torch.uint16
    assert (data.images[2] - wanted).abs().max() <= 1 / 65535
    narrow = read(root, bit_depth=12, channels=3, pixel_bits=8)
    assert (narrow.images[2] - wanted).abs().max() <= 0.5 / 255 + 1e-6
    grey = read(root, bit_depth=12).images[2]
    luminance = (wanted * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    assert (grey - luminance).abs().max() <= 1 / 65535


@pytest.mark.parametrize("kind", [GREY_ALPHA, COLOUR_ALPHA], ids=["grey", "colour"])
def test_a09_opacity_of_sixteen_bits_lies_over_black(tmp_path, kind):
    """A9: with opacity as well, scaled by the range of the values."""
    values = ramp(4095, 2 if kind == GREY_ALPHA else 4)
    values[..., -1] = 4095
    values[8:, :, -1] = 0
    data = read(folder(tmp_path, b_png=png(values, kind)), bit_depth=12, channels=3)
    wanted = torch.from_numpy((values[..., :-1] / 4095).transpose(2, 0, 1)).float().expand(3, -1, -1)
    assert (data.images[2, :, :8] - wanted[:, :8]).abs().max() <= 1 / 65535
    assert data.images[2, :, 8:].max() == 0


def test_a09_values_above_the_depth_are_refused_and_dark_colour_is_pointed_out(tmp_path, caplog):
    """A9: like grey: a depth that is too small is an error, a picture that is almost black a warning."""
    root = folder(tmp_path, b_png=png(ramp(4095, 3), COLOUR))
    with pytest.raises(DataError, match=r"yes/b.png \(holds the value 4095, above 1023: bit_depth=10 is too small"):
        read(root, bit_depth=10)
    read(root)
    assert "yes/b.png" in caplog.text
    assert "bit_depth=12" in caplog.text


def test_a09_colour_that_cannot_be_scaled_is_refused(tmp_path):
    """A9: of 16-bit CMYK only the upper bytes are known: a depth is refused, not ignored."""
    values = ramp(4095, 4)
    content = bytearray(tiff(values[..., :3], "<", packed=False))
    strip = values.astype("<u2").tobytes()
    place = len(content) - (2 + 12 * 9 + 4 + 6)
    table = bytes(content[place:])
    start = 8 + len(strip)
    table = table.replace(struct.pack("<HHIHH", 262, 3, 1, 2, 0), struct.pack("<HHIHH", 262, 3, 1, 5, 0))
    table = table.replace(struct.pack("<HHIHH", 277, 3, 1, 3, 0), struct.pack("<HHIHH", 277, 3, 1, 4, 0))
    table = table.replace(struct.pack("<HHI", 258, 3, 3), struct.pack("<HHI", 258, 3, 4))
    table = table.replace(struct.pack("<I", place + 2 + 12 * 9 + 4), struct.pack("<I", start + 2 + 12 * 9 + 4))
    cmyk = b"II" + struct.pack("<HI", 42, start) + strip + table + struct.pack("<H", 16)
    root = folder(tmp_path, b_tif=cmyk)
    with pytest.raises(DataError, match=r"yes/b.tif \(bit_depth=12 cannot be applied to its CMYK"):
        read(root, bit_depth=12)
    assert read(root).pixels.dtype == torch.uint8


def grouped(root: Path, *ids: str, name: str = "groups.csv") -> Path:
    """Images of class yes in groups with these ids."""
    (root / "no").mkdir(parents=True)
    (root / "yes").mkdir()
    Image.new("L", (16, 16)).save(root / "no" / "a.png")
    rows = ["path,group", "no/a.png,own"]
    for place, group in enumerate(ids):
        Image.new("L", (16, 16), place * 20).save(root / "yes" / f"{place}.png")
        rows.append(f"yes/{place}.png,{group}")
    (root / name).write_text("\n".join(rows))
    return root


@pytest.mark.parametrize(
    "ids",
    [
        ("1_10", "11_0", "110"),
        ("007", "7"),
        ("7", "07", "+7", "\u0667"),
        ("1e3", "1000"),
        ("-0", "0"),
        ("9" * 5000, "1"),
    ],
    ids=lambda ids: ids[0][:9],
)
def test_a11_ids_of_groups_are_text(tmp_path, ids):
    """A11: another text is another group, whatever number it might be."""
    data = read(grouped(tmp_path, *ids, ids[0]), groups="csv")
    found = data.groups.tolist()
    assert len(set(found)) == len(ids) + 1
    assert found[1] == found[-1]


@pytest.mark.parametrize("ids", [("1_10", "110"), ("007", "7")])
def test_a11_without_other_names(tmp_path, ids):
    """A11: where every id reads as a number as well."""
    root = grouped(tmp_path, *ids)
    text = (root / "groups.csv").read_text()
    (root / "groups.csv").write_text(text.replace("own", "5"))
    assert read(root, groups="csv").num_groups == 3


@pytest.mark.parametrize("name", ["Groups.csv", "GROUPS.CSV"])
def test_a11_groups_csv_is_found_in_any_case(tmp_path, name):
    """A11: `Groups.csv` is not passed over, and two of them are an error that names both."""
    root = grouped(tmp_path, "x", "x", name=name)
    assert read(root, groups="auto").groups.tolist() == [0, 1, 1]
    (root / "groups.csv").write_text("path,group\n")
    with pytest.raises(DataError, match=r"groups.csv.*keep one"):
        read(root, groups="auto")


def test_b13_what_is_no_file_is_never_opened(tmp_path):
    """B13: pipes, sockets and devices are passed over, or refused where they are called as images are."""
    root = folder(tmp_path)
    os.mkfifo(root / "yes" / "pipe")
    (root / "yes" / "endless").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.open(root / "yes", os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{here}/talk")
        os.close(here)
        assert len(read(root)) == 2
    os.mkfifo(root / "yes" / "pipe.png")
    (root / "yes" / "endless.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"endless.jpg \(it is a device.*pipe.png \(it is a named pipe"):
        read(root)
    assert len(read(root, on_error="skip")) == 2
    os.mkfifo(root / "groups.csv")
    with pytest.raises(DataError, match=r"groups\.csv is a named pipe"):
        read(root, groups="csv")
    os.mkfifo(root / "tiny.npz")
    others = {root / "tiny.npz": "a named pipe", root / "yes": "a folder", Path("/dev/zero"): "a device"}
    for path, text in others.items():
        with pytest.raises(DataError, match=text):
            create("dataset", "medmnist", path=path, positive="class 1").read()


@pytest.mark.parametrize("alpha", [float("nan"), float("inf"), 1e308, 0.0, -1.0])
def test_b13_a_concentration_that_is_no_number_is_refused(alpha):
    """B13: the draw of shares would never end; B14: it is refused before anything is drawn."""
    failed: list[Exception] = []

    def ask() -> None:
        try:
            tiny_dataset(20).partition(2, by="dirichlet", alpha=alpha)
        except DataError as error:
            failed.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "it hangs"
    assert "alpha" in str(failed[0])


def test_b13_shares_and_words_that_are_none_are_refused():
    """B13: neither NaN shares nor a way to split that is not known, which once meant by image and leaked."""
    data = tiny_dataset(20)
    for shares in ({"a": float("nan"), "b": 1.0}, {"b": 1.0, "a": float("nan")}, {"a": float("inf"), "b": 1.0}):
        with pytest.raises(DataError, match="fractions are positive"):
            data.split(shares)
    with pytest.raises(DataError, match="got 'patient'"):
        data.split({"a": 1.0, "b": 1.0}, by="patient")
    for most in (0, -1):
        with pytest.raises(DataError, match="at least one image"):
            data.cap_groups(most)
        with pytest.raises(DataError, match="batch_size must be at least 1"):
            list(data.batches(most))
    with pytest.raises(DataError, match=r"pixels must be uint8 .*; got NoneType"):
        type(data)(None, data.labels, data.groups, data.class_names)
    with pytest.raises(DataError, match=r"labels must be int64 .*; got list"):
        type(data)(data.pixels, [0] * 20, data.groups, data.class_names)


def arrays(**changes: numpy.ndarray) -> dict[str, numpy.ndarray]:
    """What a small MedMNIST file holds."""
    found = {}
    for place, part in enumerate(("train", "val", "test")):
        found[f"{part}_images"] = numpy.random.default_rng(place).integers(0, 256, (6, 8, 8), dtype=numpy.uint8)
        found[f"{part}_labels"] = numpy.arange(6)[:, None] % 2
    return {**found, **changes}


def npz(path: Path, **changes: numpy.ndarray) -> Path:
    numpy.savez_compressed(path, **arrays(**changes))
    return path


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    stream = io.BytesIO()
    numpy.lib.format.write_array_header_1_0(stream, {"descr": dtype, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def with_member(path: Path, name: str, content: bytes) -> Path:
    """A MedMNIST file of which one member is replaced by these bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, array in arrays().items():
            stream = io.BytesIO()
            numpy.lib.format.write_array(stream, array)
            archive.writestr(f"{key}.npy", content if key == name else stream.getvalue())
    return path


def damaged(path: Path) -> Path:
    """In the middle of the packed images of the first part."""
    npz(path)
    content = bytearray(path.read_bytes())
    content[150:250] = b"\xff" * 100
    path.write_bytes(content)
    return path


def encrypted(path: Path) -> Path:
    """Marked so in the directory and before each member."""
    content = npz(path).read_bytes()
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        parts = content.split(mark)
        rest = [part[: place - 4] + bytes([part[place - 4] | 1]) + part[place - 3 :] for part in parts[1:]]
        content = mark.join([parts[0], *rest])
    path.write_bytes(content)
    return path


def medmnist(path: Path, **options):
    return create("dataset", "medmnist", path=path, groups="none", **{"positive": "class 1", **options}).read()


BIG = 2**30
FORGED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "damaged": (damaged, "cannot be read"),
    "encrypted": (encrypted, "encrypted"),
    "claims": (lambda path: with_member(path, "train_images", header((BIG // 64, 8, 8))), "claims shape"),
    "zeros": (
        lambda path: with_member(path, "train_images", header((2**21, 8, 8)) + bytes(2**27)),
        "packed into",
    ),
    "zero labels": (
        lambda path: with_member(path, "train_labels", header((2**24, 1), "<i8") + bytes(2**27)),
        "packed into",
    ),
    "long header": (
        lambda path: with_member(path, "train_images", b"\x93NUMPY\2\0" + struct.pack("<I", BIG) + b" " * 2**20),
        "cannot be read",
    ),
    "nested header": (
        lambda path: with_member(path, "train_images", b"\x93NUMPY\1\0" + struct.pack("<H", 9000) + b"(" * 9000),
        "cannot be read",
    ),
    "negative": (lambda path: with_member(path, "train_images", header((-4, 8, 8))), "claims shape"),
    "objects": (lambda path: with_member(path, "train_images", header((6, 8, 8), "|O")), "claims shape"),
    "one label": (
        lambda path: npz(path, train_labels=numpy.array([0, 1, 0, 1, 0, 30_000_000])[:, None]),
        "the label 30000000",
    ),
    "large label": (
        lambda path: npz(path, train_labels=numpy.full((6, 1), 2**64 - 1, numpy.uint64)),
        "18446744073709551615",
    ),
    "fewer labels": (lambda path: npz(path, val_labels=numpy.zeros((4, 1), numpy.int64)), r"val_labels .*for 6 images"),
    "other size": (lambda path: npz(path, val_images=numpy.zeros((6, 9, 9), numpy.uint8)), r"val_images of \(9, 9\)"),
    "no pixel": (lambda path: npz(path, train_images=numpy.zeros((6, 0, 0), numpy.uint8)), "of shape"),
    "no array": (lambda path: with_member(path, "train_images", b"hello"), "cannot be read"),
}


@pytest.mark.parametrize("kind", FORGED)
def test_b08_a_forged_archive_is_one_error_and_asks_for_no_memory(tmp_path, kind):
    """B8: damaged, encrypted, sizes, labels and lengths that do not fit: one DataError, and nothing allocated."""
    make, text = FORGED[kind]
    path = make(tmp_path / "forged.npz")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=rf"forged\.npz.*{text}"):
            medmnist(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**25, f"{peak / 2**20:.0f} MiB were asked for"


def test_b08_an_honest_archive_is_read(tmp_path):
    """B8: packed or not, labels of any whole type, columns first."""
    plain = medmnist(npz(tmp_path / "a.npz"))
    small = {f"{part}_labels": (numpy.arange(6) % 2).astype(numpy.uint8) for part in ("train", "val", "test")}
    columns = numpy.asfortranarray(arrays()["train_images"])
    again = medmnist(npz(tmp_path / "a.npz", **small, train_images=columns))
    assert again.fingerprint() == plain.fingerprint()
    assert plain.positive == (1,)


def test_a08_a_file_without_names_is_asked_which_class_is_the_finding(tmp_path):
    """A8: of BreastMNIST's two classes the finding is number 0: the number alone does not tell."""
    path = npz(tmp_path / "breastmnist.npz")
    with pytest.raises(DataError, match=r"breastmnist\.npz does not say.*class_names"):
        medmnist(path, positive=None)
    named = medmnist(path, positive=None, class_names=("malignant", "normal, benign"))
    assert named.positive == (0,)
    assert medmnist(path, positive=None, class_names=("plain", "disc")).positive == (1,)
