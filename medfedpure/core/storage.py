"""Folders a person can read: one JSON document, one safetensors file, nothing that can execute.

Integrity: the document carries a digest of itself and of every tensor file, so a truncated or
edited folder is noticed. This protects against accidents, not against a forger.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from medfedpure.core.disk.whole import DOCUMENT as DOCUMENT
from medfedpure.core.disk.whole import atomic_folder as atomic_folder
from medfedpure.core.disk.whole import make_folder
from medfedpure.core.disk.whole import steadily as steadily
from medfedpure.core.disk.whole import write_bytes as write_bytes
from medfedpure.core.errors import ArtifactError

FORMAT = 2
"""Of what is written now. Older ones are read and brought up to date; newer ones are refused."""
_KINDS_OF_FORMAT_1 = {"defense": "defence"}
TENSORS = "tensors.safetensors"


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, readable by a person."""
    write_bytes(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def write_document(folder: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write one document and its tensors into an existing folder, sealed by digests."""
    content: dict[str, Any] = {"format": FORMAT, **document}
    if tensors:
        _check_kinds(tensors)
        data = save_tensors({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
        write_bytes(folder / TENSORS, data)
        content["tensors"] = hashlib.sha256(data).hexdigest()
    content["digest"] = _digest(content)
    write_json(folder / DOCUMENT, content)


def read_document(
    folder: str | Path, *, kind: str | None = None, keys: Iterable[str] = ()
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what `write_document` wrote, all of one save, and check it before anything uses it.

    Args:
        folder: what was saved.
        kind: what the document must be; None takes any.
        keys: what the document must hold.

    Raises:
        ArtifactError: missing, truncated, edited, of another format or kind, or without one of the keys.
    """
    return steadily(folder, lambda: _read_document(Path(folder), kind, keys))


def _read_document(folder: Path, kind: str | None, keys: Iterable[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
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
    if not path.exists():
        raise ArtifactError(f"{folder} is not a folder saved by medfedpure: it holds no {DOCUMENT}")
    content = read_json(path)
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
    if found == 1 and isinstance(content.get("kind"), str):
        content["kind"] = _KINDS_OF_FORMAT_1.get(content["kind"], content["kind"])
    checked: dict[str, Any] = content
    return checked


def read_json(path: Path) -> Any:
    """What a JSON file says.

    Raises:
        ArtifactError: it cannot be read, is no JSON, is nested too deep, or holds a number of thousands of digits.
    """
    try:
        content = json.loads(_bytes_of(path).decode())
        json.dumps(content)  # which gives up a little earlier than reading where it is nested deep
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}): restore it, or save it again") from error
    return content


def _bytes_of(path: Path) -> bytes:
    """All of a file; OSError also where no file stands there: whoever opens a named pipe waits for a writer."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError("it is no file")
    return path.read_bytes()


def _read_tensors(folder: Path, digest: str | None) -> dict[str, Tensor]:
    if digest is None:
        return {}
    path = folder / TENSORS
    try:
        data = _bytes_of(path)
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
    _check_kinds(module.state_dict())
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    problems = [f"missing {key} {shape}" for key, shape in wanted.items() if key not in found]
    problems += [f"unexpected {key} {shape}" for key, shape in found.items() if key not in wanted]
    problems += [
        f"{key} is {found[key]}, not {shape}" for key, shape in wanted.items() if key in found and found[key] != shape
    ]
    problems += [
        f"{key} is {tensors[key].dtype}, not {value.dtype}"
        for key, value in module.state_dict().items()
        if key in found and tensors[key].is_floating_point() != value.is_floating_point()
    ]
    if problems:
        more = f" ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ArtifactError(f"the tensors do not fit {what}: " + "; ".join(problems[:5]) + more)


def _check_kinds(state: Mapping[str, object]) -> None:
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ArtifactError(
                f"{key} is a {type(value).__name__}, and only tensors are saved, so that nothing in a folder can "
                "execute: keep it as a tensor (register_buffer), or return a tensor from get_extra_state"
            )


def layout_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensor names, shapes and dtypes; raises ArtifactError where it keeps anything else."""
    _check_kinds(module.state_dict())
    lines = [f"{key} {tuple(value.shape)} {value.dtype}" for key, value in module.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@contextmanager
def locked(folder: str | Path, what: str) -> Iterator[None]:
    """Hold a folder for this block alone; `.NAME.lock` beside it, which goes with the block, names pid and host.

    A lock is taken over when its process is gone, as long as that ran on this host. Windows has no such locks.

    Args:
        folder: need not exist yet, and may be replaced inside the block.
        what: who holds it, for whoever comes next: "a federated run".

    Raises:
        ArtifactError: somebody else holds it, in another process or in this one; pid and host are named.
    """
    if sys.platform == "win32":
        yield
        return
    folder = Path(os.path.realpath(folder))  # where a link leads to itself, resolve raises
    if not folder.name:
        raise ArtifactError(f"{folder} is the root of all folders: name a place in it for {what}")
    name = os.fsencode(folder.name)
    short = folder.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()
    path = folder.with_name(f".{short}.lock")
    make_folder(path.parent)
    handle = _seize(path, folder, what)
    try:
        yield
    finally:
        if _is_open_as(handle, path):
            path.unlink()
        os.close(handle)


def _seize(path: Path, folder: Path, what: str) -> int:
    """An open, locked file with our name in it; the system frees the lock when this process ends, however it ends."""
    if sys.platform == "win32":
        raise NotImplementedError
    import fcntl

    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise ArtifactError(
                f"{path}, which guards {folder}, cannot be opened ({error.strerror or error}): name another place"
            ) from error
        free: bool | None = True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError:
            free = None  # a file system without locks: what the file says decides
        holder = _holder(handle)
        host = socket.gethostname()
        elsewhere = holder is not None and holder[1] != host
        if free is False or elsewhere or (free is None and holder is not None and _is_alive(holder[0])):
            os.close(handle)
            pid, where, held = holder or ("unknown", host, "another process")
            raise ArtifactError(
                f"{folder} is in use by {held} (pid {pid} on host {where}): wait until it ends, or choose another "
                f"folder; where that process no longer runs, remove {path}"
            )
        if _is_open_as(handle, path):
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps({"pid": os.getpid(), "host": host, "what": what}).encode(), 0)
            return handle
        os.close(handle)  # its holder removed it in between


def _holder(handle: int) -> tuple[int, str, str] | None:
    """Pid, host and purpose in a lock file; None where it holds none."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return max(int(found["pid"]), 1), ascii(str(found["host"]))[1:-1], ascii(str(found["what"]))[1:-1]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True  # another user's
    return True


def _is_open_as(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
