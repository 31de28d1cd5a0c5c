"""Models that `benchmarks.flagship` trained, taken over: the same data, division, seeds and recipes."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from benchmarks.study.units import Study, catalog
from medfedpure.core.storage import write_json

PLACES: Mapping[str, str] = {"fold_0": "br35h_fold_0", "leaking": "br35h_leaking"}


def adopt(folder: Path, study: Study) -> list[str]:
    """Copy every finished model that is not here yet, and note where it comes from; the keys of its units.

    Args:
        folder: `--out` of `benchmarks.flagship`, at its default seed.
        study: at the flagship's size.
    """
    found = []
    for split, place in PLACES.items():
        source = folder / f"{split}_{study.how.size}"
        for unit in catalog(study.how):
            there = source / unit.what
            if unit.place != place or unit.kind not in ("train", "federate") or study.done(unit):
                continue
            if not _whole(there, unit.kind):
                continue
            shutil.copytree(there, study.folder(unit) / unit.what, dirs_exist_ok=True)
            head = {"unit": unit.key, "size": study.how.name, "seed": study.seed}
            path = unit.path(study.results, study.how)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {**head, "adopted": "trained by benchmarks.flagship"})
            found.append(unit.key)
    return found


def _whole(folder: Path, kind: str) -> bool:
    """Whether a model, or one for each client, was saved there."""
    if kind == "train":
        return (folder / "medfedpure.json").exists()
    return folder.is_dir() and all((client / "medfedpure.json").exists() for client in folder.iterdir())
