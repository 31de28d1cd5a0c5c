"""Names of class folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from medfedpure.core.errors import DataError
from medfedpure.data.readers.folders import class_folders


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_refused_before_a_report_cannot_write_it(tmp_path: Path) -> None:
    (tmp_path / "healthy").mkdir()
    assert class_folders(tmp_path) == ["healthy"]
    (tmp_path / os.fsdecode(b"l\xe9sion")).mkdir()
    with pytest.raises(DataError, match=r"'l\\udce9sion' is no text in UTF-8: rename"):
        class_folders(tmp_path)
