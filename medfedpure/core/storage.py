"""Folders a person can read: one JSON document, one safetensors file, nothing that can execute.

Integrity: the document carries a digest of itself and of every tensor file, so a truncated or
edited folder is noticed. This protects against accidents, not against a forger.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from medfedpure.core.errors import ArtifactError

FORMAT = 2
"""Of what is written now. Older ones are read and brought up to date; newer ones are refused."""
_KINDS_OF_FORMAT_1 = {"defense": "defence"}
DOCUMENT = "medfedpure.json"
TENSORS = "tensors.safetensors"


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Write a folder under a temporary name; it takes its place only when the block succeeds.

    An existing folder is replaced only when medfedpure wrote it.
    """
    target = Path(folder)
    if target.exists() and not (target / DOCUMENT).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise ArtifactError(f"{target} exists and was not written by medfedpure: choose another folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
        work.chmod(0o755)
        if target.exists():
            old = work.with_name(work.name + ".old")
            target.rename(old)
            try:
                work.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file under a temporary name, flush it to disk, then rename it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, readable by a person."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def write_document(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write one document and its tensors into an existing folder, sealed by digests."""
    content: dict[str, Any] = {"format": FORMAT, **document}
    if tensors:
        data = save_tensors({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
        write_bytes(folder / TENSORS, data)
        content["tensors"] = hashlib.sha256(data).hexdigest()
    content["digest"] = _digest(content)
    write_json(folder / DOCUMENT, content)


def read_document(
    folder: str | Path, *, kind: str | None = None, keys: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_document` wrote, and check it before anything uses it.

    Args:
        folder: what was saved.
        kind: what the document must be; None takes any.
        keys: what the document must hold.

    Raises:
        ArtifactError: missing, truncated, edited, of another format or kind, or without one of the keys.
    """
    folder = Path(folder)
    content = read_document_only(folder)
    if kind is not None and content.get("kind") != kind:
        raise ArtifactError(f"{folder} holds a {content.get('kind')!r}; a {kind!r} was wanted")
    lacking = [key for key in keys if key not in content]
    if lacking:
        raise ArtifactError(f"{folder / DOCUMENT} lacks {', '.join(lacking)}: save the folder again")
    return content, _read_tensors(folder, content.get("tensors"))


def read_document_only(folder: Path) -> dict[str, Any]:
    """The checked JSON document of a folder, without its tensors."""
    path = folder / DOCUMENT
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not a folder saved by medfedpure: it holds no {DOCUMENT}") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): save the folder again") from error
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if type(found) is not int or not found >= 1:
        raise ArtifactError(f"{path} has format {found!r}; this version reads formats 1 to {FORMAT}")
    if found > FORMAT:
        raise ArtifactError(
            f"{path} has format {found}, that of a later medfedpure; this version reads formats 1 to {FORMAT}: "
            "upgrade medfedpure, or save the folder again with this version"
        )
    if content.get("digest") != _digest(content):
        raise ArtifactError(f"{path} was edited or damaged after it was saved (its digest does not match)")
    if found == 1:
        content["kind"] = _KINDS_OF_FORMAT_1.get(content.get("kind"), content.get("kind"))
    checked: dict[str, Any] = content
    return checked


def _read_tensors(folder: Path, digest: str | None) -> dict[str, Tensor]:
    if digest is None:
        return {}
    path = folder / TENSORS
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read ({error}): save the folder again") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ArtifactError(f"{path} is truncated, edited or foreign (its SHA-256 does not match {DOCUMENT})")
    try:
        return dict(load_tensors(data))
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file: {error}") from error


def _digest(content: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load_strictly(module: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load tensors into a module; every difference in keys or shapes is listed, none is ignored.

    Raises:
        ArtifactError: missing, unexpected or differently shaped tensors.
    """
    check_tensors(module, tensors, what)
    module.load_state_dict(dict(tensors), strict=True)


def check_tensors(module: torch.nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ArtifactError unless the tensors have the keys and shapes of the module's own."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = [f"missing {key} {shape}" for key, shape in wanted.items() if key not in found]
    problems += [f"unexpected {key} {shape}" for key, shape in found.items() if key not in wanted]
    problems += [
        f"{key} is {found[key]}, not {shape}" for key, shape in wanted.items() if key in found and found[key] != shape
    ]
    if problems:
        more = f" ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(f"the tensors do not fit {what}: " + "; ".join(problems[:5]) + more)


def layout_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensor names, shapes and dtypes."""
    lines = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in module.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
