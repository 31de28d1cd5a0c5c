"""The pages as a reader meets them: each stands alone, says what it leaves out, and (slow) runs from top to bottom."""

from __future__ import annotations

import builtins
import dis
import importlib
import re
from collections import Counter
from pathlib import Path
from types import CodeType

import pytest
from documentation import PAGES, REASONS, ROOT, blocks
from pages import read

NOT_RUN = {
    "CONTRIBUTING.md": {"tests": 1},
    "docs/explanation/measured.md": {"benchmark": 1, "own data": 1},
    "docs/explanation/flagship.md": {"benchmark": 2},
    "docs/explanation/performance.md": {"benchmark": 1},
    "docs/explanation/weather.md": {"benchmark": 1, "tests": 1},
    "docs/how-to/containers.md": {"not installed": 5},
    "docs/how-to/choose-a-detector.md": {"own data": 6},
    "docs/how-to/choose-a-purifier.md": {"own data": 4, "benchmark": 2},
    "docs/how-to/choose-a-recipe.md": {"benchmark": 1},
    "docs/how-to/choose-a-strategy.md": {"benchmark": 2, "tests": 1},
    "docs/how-to/evaluate-a-defence.md": {"benchmark": 1},
    "docs/how-to/hospital.md": {"network": 1, "own data": 1},
    "docs/how-to/install.md": {"install": 3},
    "docs/how-to/many-files.md": {"benchmark": 1},
    "docs/how-to/more-from-few-images.md": {"benchmark": 1},
    "docs/how-to/real-federation.md": {"network": 1},
    "docs/how-to/read-new-scans.md": {"own data": 1},
    "docs/how-to/real-mri.md": {"own data": 1},
    "docs/how-to/serve.md": {"network": 2},
    "docs/reference/attacks.md": {"benchmark": 1},
    "docs/reference/compatibility.md": {"tests": 1},
    "docs/results.md": {"benchmark": 1},
}
"""How many blocks of a page nobody runs here, by reason: what is added stands here as well, and is seen in a review."""

RUN = [page for page in PAGES if any(block.runs for block in blocks(page))]


def named(page: Path) -> str:
    """A page as it is called here."""
    return str(page.relative_to(ROOT))


def test_what_is_not_run_is_listed_here() -> None:
    found = {named(page): Counter(block.reason for block in blocks(page) if block.reason) for page in PAGES}
    assert {page: dict(reasons) for page, reasons in found.items() if reasons} == NOT_RUN, "see NOT_RUN, and REASONS"
    assert {reason for reasons in NOT_RUN.values() for reason in reasons} <= REASONS.keys(), "no such reason"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_fence_is_seen(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    fences = sum(line.lstrip().startswith("```") for line in text.splitlines())
    assert fences == 2 * len(blocks(page)), f"{named(page)}: a fence without a language, or one that is not closed"
    assert len(re.findall(r"^\s*<!-- not run:", text, re.M)) == sum(
        block.reason is not None for block in blocks(page)
    ), f"{named(page)}: a comment `not run` stands right above its fence"


def names(code: CodeType) -> tuple[set[str], set[str]]:
    """What code reads from its surroundings, and what it makes there."""
    read, made = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_NAME", "LOAD_GLOBAL"):
            read.add(step.argval)
        elif step.opname in ("STORE_NAME", "STORE_GLOBAL"):
            made.add(step.argval)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            its_own = names(inner)
            read |= its_own[0] - its_own[1]
    return read, made


@pytest.mark.parametrize("page", RUN, ids=named)
def test_a_page_uses_what_it_made(page: Path) -> None:
    always = {*dir(builtins), "__name__", "__module__", "__qualname__", "__annotations__"}
    known: set[str] = set()
    for block in blocks(page, "python"):
        read, made = names(compile(block.text, block.where, "exec"))
        there = always if block.title else always | known  # a file of its own sees nothing of the page
        missing = sorted(read - there - made)
        assert not missing, f"{block.where} uses {', '.join(missing)}, which no block above it made"
        known |= set() if block.title else made


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_what_a_page_imports_is_there(page: Path) -> None:
    for block in blocks(page, "python"):
        for step in dis.get_instructions(compile(block.text, block.where, "exec")):
            if step.opname == "IMPORT_NAME" and step.argval.partition(".")[0] == "medfedpure":
                module = importlib.import_module(step.argval)
            elif step.opname == "IMPORT_FROM" and module is not None:
                assert hasattr(module, step.argval), f"{block.where}: {module.__name__} has no {step.argval}"
            elif step.opname == "IMPORT_NAME":
                module = None


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent == ROOT], ids=named)
def test_links_outside_the_site_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            assert (ROOT / path).exists(), f"{named(page)} links to {target}, which is not there"
            assert not anchor or anchor in anchors(ROOT / path), f"{named(page)}: no heading of {path} is #{anchor}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=named)
def test_a_page_runs_from_top_to_bottom(page: Path) -> None:
    last = read(page)[-1]
    assert last.right, f"{last.block.where} does not run:\n{last.block.text}\n{last.output[-3000:]}"
