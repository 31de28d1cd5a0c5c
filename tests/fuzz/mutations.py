"""Bytes made wrong by chance drawn from a seed: where a text is JSON its values, else bits, pieces and lengths."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from typing import Any

WORDS = (
    *(
        b"",
        b"\0",
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\x7f\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\n",
        b"\r\n",
        b",",
        b'"',
    ),
    *(b"\x1b[2J", b"../", b"NaN", b"1e999", b"-1", b"9" * 400, b"[" * 2000, b'{"a":' * 500, b"DICM", b"n+1\0"),
    *(b"\xfe\xff\0\xe0", b"\xfe\xff\xdd\xe0", b"SQ\0\0", b"UN\0\0\xff\xff\xff\xff", b"\x1f\x8b\x08", b"PK\x03\x04"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.0, 1e308, float("nan")),
    *(
        float("inf"),
        "",
        "x",
        "../../x",
        "\0",
        "\x1b[2J",
        "\ud800",
        "9" * 5000,
        "x" * 5000,
        [],
        {},
        [[]],
        [None],
        {"": {}},
    ),
)


def mutated(content: bytes, chance: random.Random, longest: int = 2**16) -> bytes:
    """One to four changes of a file's content, at most `longest` bytes of it."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        kind = chance.random()
        told = _json(content) if kind < 0.7 else None
        if told is not None:
            content = json.dumps(_with_another_value(told, chance)).encode(errors="surrogatepass")
        elif content.startswith(b"\x1f\x8b") and kind < 0.5:
            content = _repacked(content, chance)
        else:
            content = _with_other_bytes(content, chance)
    return content[:longest]


def _json(content: bytes) -> Any:
    try:
        return json.loads(content) if content[:1] in (b"{", b"[") else None
    except (ValueError, RecursionError):
        return None


def _repacked(content: bytes, chance: random.Random) -> bytes:
    """What is inside a gzip file, changed, and packed again: its check sum is right."""
    try:
        inside = gzip.decompress(content)
    except (OSError, EOFError, ValueError, zlib.error):
        return _with_other_bytes(content, chance)
    return gzip.compress(_with_other_bytes(inside, chance), 1)


def _with_other_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    # Heads decide most, and are short: half of the changes happen there.
    reach = len(changed) if chance.random() < 0.5 else min(len(changed), 400)
    place = chance.randrange(reach + 1)
    match chance.randrange(6):
        case 0:
            changed[place : place + 1] = bytes([chance.randrange(256)])
        case 1:
            if place < len(changed):
                changed[place] ^= 1 << chance.randrange(8)
        case 2:
            word = chance.choice(WORDS)
            changed[place : place + len(word)] = word
        case 3:
            changed[place:place] = chance.choice(WORDS)
        case 4:
            del changed[place : place + chance.choice((1, 2, 4, 64, len(changed)))]
        case 5:
            length = chance.choice((1, 8, 64, 512))
            changed[place:place] = changed[chance.randrange(reach + 1) :][:length]
    return bytes(changed)


def _with_another_value(told: Any, chance: random.Random) -> Any:
    """A document with one value, anywhere in it, replaced, left out, or put under another name."""
    if not isinstance(told, dict | list) or not told or chance.random() < 0.15:
        return chance.choice(VALUES)
    place = chance.choice(list(told) if isinstance(told, dict) else range(len(told)))
    changed: Any = dict(told) if isinstance(told, dict) else list(told)
    if chance.random() < 0.15:
        del changed[place]
    elif isinstance(changed, dict) and chance.random() < 0.1:
        changed[str(chance.choice(VALUES))[:100]] = changed.pop(place)
    else:
        changed[place] = _with_another_value(told[place], chance)
    return changed
