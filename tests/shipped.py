"""What becomes of the files that pydicom and nibabel ship: the tables of docs/reference/scan-files.md.

python tests/shipped.py            # write them
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path

from medfedpure.core.errors import MedFedPureError
from medfedpure.data.readers.dicom import is_dicom, read_dicom
from medfedpure.data.readers.nifti import is_nifti, read_nifti

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "scan-files.md"
HAS_GPL = importlib.util.find_spec("libjpeg") is not None
"""Whether the decoders of the extra medical-gpl are there, with which more files are read than the page says."""
_MARK = "<!-- written by tests/shipped.py -->"


def dicom_files() -> list[Path]:
    """Those of pydicom's own test data that are DICOM by their content, sorted."""
    import pydicom.data

    root = Path(pydicom.data.__file__).parent / "test_files"
    return sorted(path for path in root.rglob("*") if path.is_file() and is_dicom(path))


def nifti_files() -> list[Path]:
    """Those of nibabel's own test data that are NIfTI by their content, sorted."""
    import nibabel

    root = Path(nibabel.__file__).parent / "tests" / "data"
    return sorted(path for path in root.iterdir() if path.is_file() and is_nifti(path))


def outcome(path: Path) -> str:
    """What reading a file gives, in words without its name."""
    try:
        if is_nifti(path):
            scan = read_nifti(path)
            counts = ", ".join(
                f"{sum(1 for _ in scan.slices(axis))} {axis}" for axis in ("axial", "coronal", "sagittal")
            )
            return f"read: {' x '.join(map(str, scan.shape))}; slices: {counts}"
        found = read_dicom(path)
        if not found.header.frames:
            return "no picture, passed over"
        frames = sum(1 for _ in found.images())
    except MedFedPureError as error:
        return f"refused: {str(error).removeprefix(f'{path}: ')}"
    kind = "colour" if found.channels == 3 else "grey"
    window = "" if kind == "colour" else ", own window" if found.rules(0).has_window() else ", percentiles"
    return f"read: {frames} {'frame' if frames == 1 else 'frames'} of {kind}, {found.header.bits} bits{window}"


def table() -> str:
    """Both tables; files of one folder below the first with one outcome share a row."""
    parts = []
    for title, files in (("pydicom", dicom_files()), ("nibabel", nifti_files())):
        root = min((path.parent for path in files), key=lambda folder: len(folder.parts))
        found = Counter()
        for path in files:
            inner = path.relative_to(root).parts
            name = inner[0] if len(inner) == 1 else "/".join((*inner[:2], "...") if len(inner) > 2 else inner)
            found[name, outcome(path)] += 1
        lines = [f"| `{name}` | {count} | {told.replace('|', '/')} |" for (name, told), count in sorted(found.items())]
        parts.append(
            "\n".join([f"### Files of {title}", "", "| file | number | what became of it |", "|---|---|---|", *lines])
        )
    return "\n\n".join(parts)


def rows(text: str) -> dict[str, str]:
    """What a page or table tells of each file: number and outcome, several of one name joined."""
    found: dict[str, str] = {}
    for name, told in re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, re.M):
        found[name] = "; ".join(filter(None, (found.get(name), told)))
    return found


def main() -> None:
    """Write the tables behind the mark of the page."""
    before = PAGE.read_text(encoding="utf-8").split(_MARK)[0]
    PAGE.write_text(f"{before}{_MARK}\n\n{table()}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
