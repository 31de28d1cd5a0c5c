"""DICOM and NIfTI files drawn from a seed, for tests: no image of a patient, and none that is downloaded."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy

PLAIN = "1.2.840.10008.1.2.1"
UID = "1.2.826.0.1.3680043.8.498"


def anatomy(seed: int, size: int = 32, top: int = 4095) -> numpy.ndarray:
    """Smooth blobs, `(size, size)` uint16 up to about `top`."""
    generator = numpy.random.default_rng(seed)
    rows, columns = numpy.mgrid[:size, :size] / size
    picture = numpy.zeros((size, size))
    for _ in range(4):
        y, x, width = generator.uniform(0.2, 0.8, 3)
        picture += numpy.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (0.05 * width))
    return (picture / picture.max() * top).round().astype(numpy.uint16)


def dicom_bytes(pixels: numpy.ndarray, *, bits: int | None = None, syntax: str = PLAIN, **tags: Any) -> bytes:
    """A file of stored values `(H, W)`, `(F, H, W)`, or with `SamplesPerPixel=3` of `(H, W, 3)`.

    Args:
        pixels: of an integer type.
        bits: stored; those of the type by default.
        syntax: UID of the transfer syntax; a compressed one is encoded by pydicom.
        tags: further elements by keyword; None leaves one out.
    """
    from pydicom.dataset import Dataset, FileMetaDataset

    data = Dataset()
    colour = tags.get("SamplesPerPixel") == 3
    frames = pixels.shape[: pixels.ndim - (3 if colour else 2)]
    height, width = pixels.shape[len(frames) : len(frames) + 2]
    allocated = pixels.dtype.itemsize * 8
    told = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": f"{UID}.1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "Rows": height,
        "Columns": width,
        "BitsAllocated": allocated,
        "BitsStored": bits or allocated,
        "HighBit": (bits or allocated) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"NumberOfFrames": frames[0]} if frames else {}),
        **({"PlanarConfiguration": 0} if colour else {}),
        **tags,
    }
    for name, value in told.items():
        if value is not None:
            setattr(data, name, value)
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW" if allocated == 16 else "OB"
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = PLAIN
    data.file_meta.MediaStorageSOPClassUID = told["SOPClassUID"]
    data.file_meta.MediaStorageSOPInstanceUID = told["SOPInstanceUID"]
    if syntax != PLAIN:
        data.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def write_dicom_folder(folder: Path, patients: int = 6) -> Path:
    """Two classes, and patients of whom each has one study of two files of 12 bits."""
    for place in range(2 * patients):
        kind, patient = ("normal", "lesion")[place % 2], place // 2
        path = folder / kind / f"patient{patient}" / f"study{patient}" / f"{place}"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dicom_bytes(
            anatomy(place), bits=12, PatientID=f"P{patient:03}", StudyInstanceUID=f"{UID}.{patient + 1}"
        )
        path.write_bytes(content)
    return folder


def write_nifti(
    path: Path, values: numpy.ndarray, affine: numpy.ndarray | None = None, rescale: tuple[float, float] | None = None
) -> Path:
    """A volume, .nii or .nii.gz by its name; a plain one with scl_slope and scl_inter where they are given."""
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, numpy.eye(4) if affine is None else affine), path)
    if rescale is not None:
        content = bytearray(path.read_bytes())
        struct.pack_into("<2f", content, 112, *rescale)
        path.write_bytes(content)
    return path


def write_nifti_folder(folder: Path) -> Path:
    """Two classes of three volumes each, of six slices."""
    for place in range(6):
        volume = numpy.stack([anatomy(10 * place + z, 24) for z in range(6)], axis=2).astype(numpy.int16)
        write_nifti(folder / ("normal", "lesion")[place % 2] / f"{place}.nii.gz", volume)
    return folder
