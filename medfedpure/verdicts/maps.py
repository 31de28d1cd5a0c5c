"""Suspicion maps of flagged images, a grey PNG each."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from medfedpure.core.disk.whole import make_folder, put_bytes
from medfedpure.core.errors import ArtifactError, DataError
from medfedpure.core.results import Prediction
from medfedpure.data.readers.folders import entries_of
from medfedpure.verdicts.files import picture_of
from medfedpure.verdicts.listening import Judged

_NAME = re.compile(r".*-[0-9a-f]{12}-\d+\.png")


class Maps:
    """Writes where each flagged image looks suspicious, under the name that `picture_of` gives it.

    8 bits, black at the least value of the map and white at the largest: one map says where, not how much. The score
    says that.

    Args:
        path: of the folder; made where it is missing.

    Raises:
        ArtifactError: it cannot be made, or, later, written; or it holds something else.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        make_folder(self.path)
        if strange := [name for name in _names(self.path) if not _NAME.fullmatch(name)]:
            raise ArtifactError(
                f"{self.path} holds something else than maps, such as {strange[0]}: name another folder"
            )

    def judged(self, batch: Sequence[Judged], found: Prediction | None, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the maps of one batch."""
        del rows
        if found is None or found.suspicion_map is None:
            return
        told = [one for one in batch if one.frames is not None]
        for one, flagged, seen in zip(told, found.flagged.tolist(), found.suspicion_map.cpu(), strict=True):
            if flagged:
                put_bytes(self.path / picture_of(one.path, one.place or 0), _png(seen[0]))


def _names(folder: Path) -> list[str]:
    try:
        return [path.name for path in entries_of(folder)]
    except DataError as error:
        raise ArtifactError(f"{error}: name another folder for maps") from error


def _png(seen: Tensor) -> bytes:
    """A map `(H, W)` of any range."""
    seen = seen.float().nan_to_num()
    low, high = float(seen.min()), float(seen.max())
    shade = ((seen - low) / max(high - low, 1e-12) * 255).round().byte().contiguous()
    made = io.BytesIO()
    Image.frombytes("L", (shade.shape[1], shade.shape[0]), shade.numpy().tobytes()).save(made, "PNG")
    return made.getvalue()
