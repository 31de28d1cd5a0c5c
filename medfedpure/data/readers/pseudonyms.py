"""Who an image is of, without saying it: a keyed hash (HMAC-SHA256, Krawczyk et al. 1997, RFC 2104) of an identifier.

Patient numbers are few and easily listed, so a hash without a key is undone by hashing them all. With the key the
same list undoes this one too: the key is as secret as the numbers.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from medfedpure.core.disk.secret import LEAST, key_in
from medfedpure.core.errors import ArtifactError, DataError
from medfedpure.data.readers.folders import what_else


class Pseudonyms:
    """Names for identifiers under one key, which no method and no `repr` tells.

    Args:
        key: at least 16 bytes; None draws a fresh one, so that two readings cannot be compared.

    Raises:
        DataError: the key is too short.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) < LEAST:
            raise DataError(f"a key of at least {LEAST} bytes is wanted; got {len(key)}: draw one at random")
        self._key = secrets.token_bytes(32) if key is None else bytes(key)

    @classmethod
    def from_file(cls, path: Path) -> Pseudonyms:
        """Under the key that a file holds; one that is missing is drawn and written, readable by its owner only.

        Raises:
            DataError: the file cannot be read or written, can be read by others, or is no key of 16 to 4096 bytes.
        """
        path = path.expanduser()
        if other := what_else(path):
            raise DataError(f"the key {path} is {other}; a file of {LEAST} or more random bytes is wanted")
        try:
            return cls(key_in(path))
        except ArtifactError as error:
            raise DataError(f"the key {error}") from error

    def of(self, *identifiers: str) -> str:
        """32 hexadecimal digits for one identifier, or for several of which each lies within the one before."""
        told = b"".join(len(text).to_bytes(8, "big") + text for text in (one.encode() for one in identifiers))
        return hmac.new(self._key, told, hashlib.sha256).hexdigest()[:32]


def number_of(pseudonym: str) -> int:
    """A pseudonym as a group: a whole number of 63 bits, equal wherever the key is."""
    return int(pseudonym[:16], 16) >> 1
