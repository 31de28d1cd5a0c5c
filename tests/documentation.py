"""What the documentation holds: its pages, the blocks in them, and what commands they show.

A fence with a title is a file that the reader saves under that name. A comment right above a fence says why nobody
runs it here: `<!-- not run: hours -->`, with one of REASONS.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELL = ("bash", "sh", "shell", "console")
REASONS = {
    "benchmark": "it measures, for minutes to hours, what its page says of it",
    "own data": "it reads images that the reader has and this repository does not",
    "install": "it fills an environment from a package index: the runner brings one",
    "tests": "it runs the tests, of which this is one",
    "network": "it serves, or asks a server, until somebody stops it",
    "not installed": "it needs a package that no extra brings",
}
_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n"
    r"(?P<text>.*?)^(?P=indent)```$",
    re.S | re.M,
)
_TITLE = re.compile(r'\btitle="([^"]+)"')
_SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.M)
CITATION = re.compile(r"\b\d{4}\.\d{4,5}\b|[A-Z][\w-]+(?: and [A-Z][\w-]+| et al\.)?,? \(?(?:19|20)\d\d\b")
"""An arXiv number, or authors and a year."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        page: where it stands.
        line: of its fence, from 1.
        language: the word behind the fence.
        text: its content, files that it includes filled in.
        title: the file that the reader saves it as; None = it is run.
        reason: why it is not run, one of REASONS; None = it is.
    """

    page: Path
    line: int
    language: str
    text: str
    title: str | None = None
    reason: str | None = None

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def runs(self) -> bool:
        """Whether a reader runs it, and the runner too."""
        return self.language in ("python", *SHELL) and self.title is None and self.reason is None


def blocks(page: Path, *languages: str) -> list[Block]:
    """The blocks of a page in these languages, by default in all, in the order in which they stand."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _BLOCK.finditer(text):
        if not languages or match["language"] in languages:
            content = textwrap.dedent(match["text"])
            content = _SNIPPET.sub(lambda m: (ROOT / m[1]).read_text(encoding="utf-8").rstrip("\n"), content)
            title = _TITLE.search(match["options"])
            line = text[: match.start("indent")].count("\n") + 1
            found.append(Block(page, line, match["language"], content, title and title[1], match["reason"]))
    return found


def in_a_clone(page: Path) -> bool:
    """Whether a reader of this page stands in the root of a clone: what it runs lies there."""
    shown = [block.text for block in blocks(page, *SHELL)]
    return page.parent == ROOT or any(re.search(r"\bmake |\bexamples/|-m benchmarks\.|'\.\[", text) for text in shown)


def commands(text: str) -> list[list[str]]:
    """The words of every command of a shell block, without comments and settings of variables."""
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|\|\||;|\|", line.partition(" #")[0]):
            words = shlex.split(part, comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def is_documented(name: str, pages: tuple[Path, ...] = PAGES) -> bool:
    """Whether a plugin's name stands on a page, set as code."""
    return any(f"`{name}`" in page.read_text(encoding="utf-8") for page in pages)


def cites(docstring: str | None) -> bool:
    """Whether a module's docstring names a paper."""
    return CITATION.search(docstring or "") is not None
