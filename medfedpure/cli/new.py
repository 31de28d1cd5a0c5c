"""`medfedpure new`: an installable plugin project whose tests pass at once."""

from __future__ import annotations

import keyword
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Annotated

import typer

from medfedpure.cli.shown import Terminal
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import BUILTIN, KINDS, registry

CONTRACTS = {
    "classifier": "ClassifierContract",
    "detector": "DetectorContract",
    "purifier": "PurifierContract",
    "personalization": "PersonalizationContract",
    "attack": "AttackContract",
    "dataset": "DatasetContract",
}
SUMMARIES = {
    "classifier": "a network of two convolution blocks",
    "detector": "high-frequency residual",
    "purifier": "a blend with a blurred copy",
    "personalization": "shared body, private head",
    "attack": "signed gradient steps",
    "dataset": "discs on grey noise",
}


def new(
    kind: Annotated[str, typer.Argument(help=f"What to write: {', '.join(KINDS)}.")],
    name: Annotated[str, typer.Argument(help="How it is called in run files: small letters, digits, underscores.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder of the project; default: ./NAME.")] = None,
) -> None:
    """Write an installable plugin project: pyproject, module, contract test and README."""
    folder = out if out is not None else Path(name)
    written = write_project(kind, name, folder)
    console = Terminal()
    console.say(f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} named {name!r} stands in {folder}:")
    for path in written:
        console.say(f"  {path.relative_to(folder)}")
    check = f"medfedpure check {name} --kind {kind}"
    console.say(f"next: pip install -e '{folder}[test]', then pytest {folder}, or {check}")


def write_project(kind: str, name: str, folder: Path) -> list[Path]:
    """Write the project of a new plugin; the files written.

    Args:
        kind: one of the plugin kinds.
        name: small letters, digits and underscores; not the name of a built-in of that kind.
        folder: new or empty.

    Raises:
        ConfigError: an unknown kind, a name that cannot be used, or a folder that holds something.
    """
    _check(kind, name, folder)
    package = f"medfedpure_{name}"
    words = {
        "kind": kind,
        "name": name,
        "package": package,
        "project": package.replace("_", "-"),
        "module": kind,
        "cls": "".join(part.capitalize() for part in name.split("_") if part),
        "contract": CONTRACTS[kind],
        "summary": SUMMARIES[kind],
        "article": "An" if kind[0] in "aeiou" else "A",
    }
    files = {
        "pyproject.toml": "pyproject",
        "README.md": "readme",
        f"{package}/__init__.py": "package",
        f"{package}/{kind}.py": kind,
        f"tests/test_{name}.py": "test",
    }
    written = []
    for place, template in files.items():
        text = (resources.files("medfedpure.cli") / "templates" / f"{template}.txt").read_text(encoding="utf-8")
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Template(text).substitute(words), encoding="utf-8")
        written.append(path)
    return written


def _check(kind: str, name: str, folder: Path) -> None:
    if kind not in KINDS:
        raise ConfigError(f"no plugin kind is named {kind!r}: use one of {', '.join(KINDS)}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*[a-z0-9]", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot name a plugin: use small letters, digits and underscores, as in my_{kind}")
    taken = [record.distribution for record in registry().plugins(kind) if record.name == name]
    if BUILTIN in taken:
        raise ConfigError(f"a built-in {kind} is named {name!r} already, and cannot be shadowed: choose another name")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder: name a new one with --out")
