"""Which folder a saved defence is, seen from what a real federation leaves at its sites."""

from __future__ import annotations

from pathlib import Path

import pytest

from medfedpure.core.detector import Detector
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create
from medfedpure.job.subject import defence_of


@pytest.mark.parametrize("asked", [".", "sites/site-1", "sites/site-1/out"])
@pytest.mark.parametrize("client", [None, "site-1"])
def test_a_folder_around_the_defences_of_sites_names_them(asked: str, client: str | None, tmp_path: Path) -> None:
    saved: Detector = create("detector", "feature_squeezing")
    own = [tmp_path / "sites" / f"site-{number}" / "out" / "defence" for number in range(2)]
    for folder in own:
        saved.save(folder)
    with pytest.raises(ConfigError, match=r"holds some: name one of .*without --client") as told:
        defence_of(tmp_path / asked, client)
    assert str(own[1]) in str(told.value)
    assert (str(own[0]) in str(told.value)) == (asked == ".")
    assert defence_of(own[1], None) == own[1]
    with pytest.raises(ConfigError, match="is one defence: --client goes with"):
        defence_of(own[1], "site-1")
