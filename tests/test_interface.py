"""What the project promises to outsiders: the names on the page of the interface, where it says that they are.

`interface.txt` records them for a contract version. A name that vanishes fails here until the version counts up.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from documentation import PAGES, ROOT, blocks

import medfedpure
from medfedpure import testing
from medfedpure.core import errors
from medfedpure.testing import CONTRACT_VERSION

PAGE = (ROOT / "docs" / "reference" / "interface.md").read_text(encoding="utf-8")
RECORDED = Path(__file__).with_name("interface.txt")
TEMPLATES = ROOT / "medfedpure" / "cli" / "templates"
OUTSIDE = (ROOT / "examples" / "third_party_detector", ROOT / "examples")


def declared() -> set[str]:
    """Every promised name as "package.module:Name"."""
    found = set()
    for section in PAGE.split("\n## From ")[1:]:
        home = re.match(r"`([\w.]+)`", section)
        assert home is not None
        body = section.split("\n## ")[0]
        for paragraph in body.split("\n\n"):
            inner = re.match(r"`(medfedpure\.[\w.]+)`: ", paragraph)
            names = re.findall(r"`(\w+)`", paragraph)
            if inner is None and not re.match(r"[A-Z][^`]*:\n|And ", paragraph):
                continue
            found |= {f"{inner[1] if inner else home[1]}:{name}" for name in names}
    return found


DECLARED = declared()


@pytest.mark.parametrize("name", sorted(DECLARED))
def test_a_promised_name_is_there(name: str) -> None:
    module, _, attribute = name.partition(":")
    assert hasattr(importlib.import_module(module), attribute), f"{module} no longer has {attribute}"


def test_the_page_promises_all_that_is_public() -> None:
    public = {f"medfedpure:{name}" for name in medfedpure.__all__}
    public |= {f"medfedpure.testing:{name}" for name in testing.__all__}
    assert {name for name in DECLARED if name.startswith(("medfedpure:", "medfedpure.testing:"))} == public


def test_every_error_and_warning_is_public() -> None:
    raised = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert raised <= set(medfedpure.__all__), f"medfedpure lacks {', '.join(sorted(raised - set(medfedpure.__all__)))}"


def test_nothing_promised_has_vanished() -> None:
    version, *names = RECORDED.read_text(encoding="utf-8").split()
    vanished = sorted(set(names) - DECLARED)
    assert int(version) == CONTRACT_VERSION or not vanished, f"record the interface of version {CONTRACT_VERSION} anew"
    assert not vanished, (
        f"{', '.join(vanished)} vanished from the interface: keep them, or count CONTRACT_VERSION up, say so in the "
        f"changelog, and record the names in {RECORDED.name}"
    )
    new = sorted(DECLARED - set(names))
    assert not new, f"add to {RECORDED.name}: {' '.join(new)}"


def test_the_page_says_the_version() -> None:
    assert f"now **{CONTRACT_VERSION}**" in PAGE
    compatibility = (ROOT / "docs" / "reference" / "compatibility.md").read_text(encoding="utf-8")
    assert f"version {CONTRACT_VERSION} (`medfedpure.testing.CONTRACT_VERSION`)" in compatibility


def imported(code: str) -> Iterator[str]:
    """What a source takes from this project, as "package.module:Name"."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "medfedpure":
            yield from (f"{node.module}:{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (f"{alias.name}:" for alias in node.names if alias.name.startswith("medfedpure."))


def sources() -> dict[str, str]:
    """What outsiders write, or start from: examples, and the files of `medfedpure new` with their blanks filled."""
    found = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
        for folder in OUTSIDE
        for path in sorted(folder.rglob("*.py"))
    }
    for path in sorted(TEMPLATES.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        if path.stem not in ("pyproject", "readme"):
            contracts = [name for name in testing.__all__ if name.endswith("Contract")]
            text = text.replace("$contract", contracts[0])
            found[f"templates/{path.name}"] = re.sub(r"\$\{?(\w+)\}?", r"\1", text)
    return found


@pytest.mark.parametrize(("name", "code"), sources().items(), ids=sources())
def test_outsiders_use_nothing_else(name: str, code: str) -> None:
    foreign = [one for one in imported(code) if one not in DECLARED]
    assert not foreign, f"{name} imports {', '.join(foreign)}, which the interface does not promise"


FOR_OUTSIDERS = [page for page in PAGES if page.parent.name in ("how-to", "tutorials")]


@pytest.mark.parametrize("page", FOR_OUTSIDERS, ids=lambda page: page.stem)
def test_the_pages_for_outsiders_use_nothing_else(page: Path) -> None:
    for block in blocks(page, "python", "py"):
        foreign = [one for one in imported(block.text) if one not in DECLARED]
        assert not foreign, f"{page.name}:{block.line} imports {', '.join(foreign)}"


def test_an_import_of_the_inside_is_seen() -> None:
    code = "from medfedpure.training.loop import train\nimport medfedpure.defence.chain\nfrom medfedpure import train\n"
    assert [one for one in imported(code) if one not in DECLARED] == [
        "medfedpure.training.loop:train",
        "medfedpure.defence.chain:",
    ]
