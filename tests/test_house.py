"""The house is as the documentation says: its picture, its size, and where things go."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from documentation import ROOT

PACKAGE = ROOT / "medfedpure"
FOLDERS = sorted({path.parent for path in PACKAGE.rglob("*.py")})
MOST_FILES, MOST_LINES = 20, 400


@pytest.fixture(scope="module")
def house():
    """The script that draws the picture, which stands beside the pages."""
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import house

        yield house
    finally:
        sys.path.remove(str(ROOT / "docs"))


def test_the_picture_shows_todays_imports(house):
    counts = re.compile(r"\d+ files, [\d,]+ lines")
    shown, drawn = house.PICTURE.read_text(encoding="utf-8"), house.draw()
    assert counts.sub("", shown) == counts.sub("", drawn), "the house has changed: run python docs/house.py"


def test_every_room_stands_in_the_picture(house):
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert {name for row in house.layers() for name in row} == rooms


def test_an_import_through_another_room_has_no_arrow(house):
    rooms = {
        "top": house.Room("top", 1, 1, frozenset({"middle", "bottom"})),
        "middle": house.Room("middle", 1, 1, frozenset({"bottom"})),
        "bottom": house.Room("bottom", 1, 1, frozenset()),
    }
    assert house.direct(rooms) == [("top", "middle"), ("middle", "bottom")]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_room_is_small_and_says_what_it_holds(folder: Path):
    files = sorted(folder.glob("*.py"))
    if folder.parent.name != "plugins":
        assert len(files) <= MOST_FILES, f"{folder} has {len(files)} files"
    long = [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > MOST_LINES]
    assert not long, f"more than {MOST_LINES} lines: {', '.join(long)}"
    first = (folder / "__init__.py").read_text(encoding="utf-8").partition("\n")[0]
    assert re.match(r'"""[A-Z].{20,}', first) or folder == PACKAGE, f"{folder}/__init__.py does not say what it holds"


def test_the_guide_names_ten_changes_and_files_that_exist():
    text = (ROOT / "docs" / "explanation" / "where-things-go.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| you")]
    assert len(rows) == 10
    for path in re.findall(r"`((?:medfedpure|tests|docs)/[\w/.-]*|pyproject\.toml)`", text):
        assert (ROOT / path).exists(), f"the guide speaks of {path}, which does not exist"
