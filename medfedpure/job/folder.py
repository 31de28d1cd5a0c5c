"""The folder of a run: one run at a time works in it, and what stands there is one whole run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medfedpure.core.disk.whole import make_folder, writing_to
from medfedpure.core.errors import ConfigError
from medfedpure.core.storage import locked
from medfedpure.data.image_cache import is_cache_file

CONFIG, RESULTS, DEFENCES, CACHE = "config.toml", "results.json", "defences", "cache"
_ENTRIES = (CONFIG, RESULTS, DEFENCES, CACHE, "gallery.png", "report.html")
_OTHERS = ("setting.json", "rungs", "checkpoint", "private", "parts")
"""What an evaluation or a federation leaves, which no run replaces."""
_NEW, _DONE, _NONE = ".medfedpure-new", ".medfedpure-done", ".none"


@contextmanager
def run_folder(out: Path, config: str, *, overwrite: bool) -> Iterator[Path]:
    """A place to write a run into, whose content appears in `out` when the block succeeds.

    Until then a run that is there stays as it is; then it is replaced, with its page and picture, and files of
    others stay.

    Args:
        out: made where it is missing.
        config: what config.toml will say.
        overwrite: whether a run that is there may be replaced.

    Raises:
        ConfigError: it holds a run, and must not be overwritten, or something else.
        ArtifactError: somebody else is at work in it, or it cannot be written.
    """
    make_folder(out)
    with locked(out, "a run"), writing_to(out):
        _move_in(out)
        _check_free(out, config, overwrite)
        work = out / _NEW
        shutil.rmtree(work, ignore_errors=True)  # of a run that was killed
        work.mkdir()
        try:
            yield work
            for name in _ENTRIES:
                if not (work / name).exists():
                    (work / f"{name}{_NONE}").touch()
            work.rename(out / _DONE)  # from here on the new run is the one that counts
            _move_in(out)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def complete(out: Path) -> None:
    """Put in place what a run finished just before it was killed."""
    if (out / _DONE).is_dir():
        with locked(out, "what completes a run"), writing_to(out):
            _move_in(out)


def clean_cache(out: Path) -> int:
    """Remove the decoded images that runs have kept, also one that was killed, and say how many bytes they took, or 0.

    Raises:
        ConfigError: there is no run in the folder, or the cache holds something else.
        ArtifactError: somebody is at work in the folder, or it cannot be written.
    """
    if not (out / CONFIG).is_file() and not any((out / name).is_dir() for name in (_NEW, _DONE)):
        raise ConfigError(f"{out} is no folder of a run: it holds no {CONFIG}")
    complete(out)
    with locked(out, "what removes a run's cache"), writing_to(out):
        caches = (out / CACHE, out / _NEW / CACHE)
        kept = [path for cache in caches for path in _kept(cache)]
        if foreign := [path.name for path in kept if not is_cache_file(path)]:
            raise ConfigError(
                f"{out / CACHE} holds what no run has kept there ({', '.join(foreign[:3])}): move it away"
            )
        size = sum(path.stat().st_size for path in kept)
        for path in kept:
            path.unlink()
        for cache in caches:
            if cache.is_dir():
                cache.rmdir()
    return size


def _kept(cache: Path) -> list[Path]:
    return sorted(cache.iterdir()) if cache.is_dir() else []


def _move_in(out: Path) -> None:
    """May be cut off anywhere, and called again."""
    done = out / _DONE
    if not done.is_dir():
        return
    for name in _ENTRIES:
        exists = (done / name).exists()
        if exists or (done / f"{name}{_NONE}").exists():
            _remove(out / name)
        if exists:
            (done / name).rename(out / name)
    shutil.rmtree(done)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _check_free(out: Path, config: str, overwrite: bool) -> None:
    others = [name for name in _OTHERS if (out / name).exists()]
    if others:
        raise ConfigError(f"{out} holds an evaluation or a federation ({', '.join(others)}): choose another folder")
    if foreign := [path.name for path in _kept(out / CACHE) if not is_cache_file(path)]:
        raise ConfigError(
            f"{out / CACHE} is no cache of a run, it holds {', '.join(foreign[:3])}, and a run keeps its images under "
            "that name: choose another folder"
        )
    held = [name for name in _ENTRIES if (out / name).exists()]
    if held == [CONFIG] and (out / CONFIG).read_bytes() == config.encode():
        return  # only the file that this run is made from
    if held and not overwrite:
        raise ConfigError(
            f"{out} holds another run ({', '.join(held)}): choose another folder, or replace it with --overwrite "
            "(from Python: overwrite=True)"
        )
