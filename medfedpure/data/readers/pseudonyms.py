"""Who an image is of, without saying it: a keyed hash (HMAC-SHA256, Krawczyk et al. 1997, RFC 2104) of an identifier.

Patient numbers are few and easily listed, so a hash without a key is undone by hashing them all. With the key the
same list undoes this one too: the key is as secret as the numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from medfedpure.core.errors import DataError
from medfedpure.data.readers.folders import what_else

_LEAST, _MOST = 16, 4096


class Pseudonyms:
    """Names for identifiers under one key, which no method and no `repr` tells.

    Args:
        key: at least 16 bytes; None draws a fresh one, so that two readings cannot be compared.

    Raises:
        DataError: the key is too short.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < _LEAST:
            raise DataError(f"a key of at least {_LEAST} bytes is wanted; got {len(key)}: draw one at random")
        self._key = secrets.token_bytes(32) if key is None else bytes(key)

    @classmethod
    def from_file(cls, path: Path) -> Pseudonyms:
        """Under the key that a file holds; one that is missing is drawn and written, readable by its owner only.

        Raises:
            DataError: the file cannot be read or written, or is no key of 16 to 4096 bytes.
        """
        path = path.expanduser()
        try:
            if not path.exists():
                _draw(path)
            if other := what_else(path):
                raise DataError(f"the key {path} is {other}; a file of {_LEAST} or more random bytes is wanted")
            with path.open("rb") as stream:
                key = stream.read(_MOST + 1)
        except OSError as error:
            raise DataError(f"the key {path} cannot be read or written: {error.strerror}") from error
        if not _LEAST <= len(key) <= _MOST:
            raise DataError(f"the key {path} holds {min(len(key), _MOST + 1)} bytes; {_LEAST} to {_MOST} are wanted")
        return cls(key)

    def of(self, *identifiers: str) -> str:
        """32 hexadecimal digits for one identifier, or for several of which each lies within the one before."""
        told = b"".join(len(text).to_bytes(8, "big") + text for text in (one.encode() for one in identifiers))
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()[:32]


def _draw(path: Path) -> None:
    """A new key at a path, whole or not at all; where another process was faster, its key stays."""
    made = path.with_name(f".{secrets.token_hex(8)}.key")
    try:
        _write_key(made)
        try:
            os.link(made, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            _write_key(path)
    finally:
        made.unlink(missing_ok=True)


def _write_key(path: Path) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secrets.token_bytes(32))


def number_of(pseudonym: str) -> int:
    """A pseudonym as a group: a whole number of 63 bits, equal wherever the key is."""
    return int(pseudonym[:16], 16) >> 1
