"""The page on which a scan is dropped: one file, whose own script and style alone may run."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files


@cache
def page() -> tuple[str, str]:
    """The page, and the content security policy under which it works: what stands in it, and this server, alone."""
    text = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    style, script = (_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)) for tag in ("style", "script"))
    rules = {
        "default-src": "'none'",
        "script-src": script,
        "style-src": style,
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text, "; ".join(f"{key} {value}" for key, value in rules.items())


def _hash(blocks: list[str]) -> str:
    digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
