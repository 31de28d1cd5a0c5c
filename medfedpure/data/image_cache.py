"""Decoded images kept as one safetensors file, so that a second load reads no picture."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import PIL
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from medfedpure.core.dataset import bits_of
from medfedpure.core.errors import ArtifactError
from medfedpure.core.storage import write_bytes

_logger = logging.getLogger(__name__)
_FORMAT = 2
"""Of what a reader makes of files: one that reads them otherwise raises it."""


def cache_folder(cache: Path | Literal[True]) -> Path:
    """The folder asked for, or for true the user's cache folder."""
    if isinstance(cache, Path):
        return cache.expanduser()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG rules say that a relative path is to be ignored.
    return (base if base.is_absolute() else Path.home() / ".cache") / "medfedpure" / "image_folder"


def cache_key(paths: Sequence[Path], how: Mapping[str, Any]) -> str:
    """A hash of the files (path, size, time of change), of how they are read, and of Pillow's version."""
    files = []
    for path in paths:
        try:
            facts = path.stat()
            files.append([str(path.resolve()), facts.st_size, facts.st_mtime_ns])
        except OSError:  # a dangling link: decoding will name it
            files.append([str(path), -1, -1])
    content = json.dumps([_FORMAT, PIL.__version__, dict(how), files], sort_keys=True)
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:32]


def cache_path(folder: Path, key: str) -> Path:
    """Where the tensors of a key are kept."""
    return folder / f"{key}.safetensors"


def is_cache_file(path: Path) -> bool:
    """Whether this is what `cache_path` names, or what a process that was killed has left of it."""
    ours = re.fullmatch(r"[0-9a-f]{32}\.safetensors|\.medfedpure-[0-9a-f]{12}-[0-9a-f]{8}", path.name)
    return ours is not None and path.is_file()


def through_cache(path: Path, names: Set[str], decode: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a cache file, or those of `decode`, which are then kept there.

    Args:
        path: of the file.
        names: of the tensors; all have one row for each image; uint16 is kept bit by bit as int16, which none may be.
        decode: makes them.

    A file that cannot be read is built again, and a folder that cannot be written to is only
    logged: the cache never stops a load. Files are written whole and readable by their owner only.
    """
    try:
        return _read(path, names)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, SafetensorError) as error:
        _logger.warning("%s cannot be read and is built again: %s", path, error)
    tensors = decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_bytes(path, save({name: bits_of(value) for name, value in tensors.items()}), mode=0o600)
    except (OSError, ArtifactError) as error:
        _logger.warning("the decoded images cannot be kept in %s: %s", path, error)
    return tensors


def _read(path: Path, names: Set[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load(path.read_bytes())
    if set(tensors) != names or len({value.shape[:1] for value in tensors.values()}) != 1:
        raise ValueError(f"it holds {', '.join(sorted(tensors))}")
    return {name: value.view(torch.uint16) if value.dtype == torch.int16 else value for name, value in tensors.items()}
