"""Nothing is without a word: plugins, public functions and options are documented, and what the pages show runs."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from documentation import PAGES, ROOT, SHELL, Block, blocks, cites, commands, is_documented
from golden import read as read_golden
from test_contracts import Registered

import medfedpure
from medfedpure.cli.app import app
from medfedpure.core import registry as registry_module
from medfedpure.core.registry import BUILTIN, KINDS, Plugin, hookimpl, registry

BUILTINS = [record for record in registry().plugins() if record.distribution == BUILTIN]
RECORDS = [name for name in medfedpure.__all__ if dataclasses.is_dataclass(getattr(medfedpure, name))]


def lacks(record: Plugin) -> list[str]:
    """What a registered plugin should have and has not."""
    module = sys.modules.get(record.target.partition(":")[0]) or importlib.import_module(
        record.target.partition(":")[0]
    )
    problems = []
    if record.kind not in {tested.kind for tested in Registered.__subclasses__()}:
        problems.append("no contract test runs over its kind")
    if not is_documented(record.name):
        problems.append(f"no page of the documentation speaks of `{record.name}`")
    if not cites(module.__doc__):
        problems.append("the docstring of its module names no paper: an arXiv number, or authors and year")
    if f"{record.kind}/{record.name}" not in read_golden():
        problems.append("tests/golden.json records no answer of it: run `python tests/golden.py`")
    return problems


@pytest.mark.parametrize("record", BUILTINS, ids=lambda record: f"{record.kind}-{record.name}")
def test_every_plugin_has_a_contract_a_page_a_citation_and_a_record(record: Plugin) -> None:
    problems = lacks(record)
    assert not problems, f"the {record.kind} {record.name!r}: {'; '.join(problems)}"


@pytest.mark.parametrize("name", RECORDS)
def test_public_records_describe_their_fields(name: str) -> None:
    record = getattr(medfedpure, name)
    text = inspect.getdoc(record) or ""
    missing = [field.name for field in dataclasses.fields(record) if field.name not in text.lower() and field.init]
    assert not missing, f"the docstring of medfedpure.{name} does not mention {', '.join(missing)}"


def test_the_checks_above_see_what_is_missing() -> None:
    undocumented = Plugin("detector", "no_such_detector", "planted:GoodDetector", "planted")
    assert len(lacks(undocumented)) == 3, f"page, citation and record are missing; found: {lacks(undocumented)}"
    assert cites("after Nie et al. 2022"), "authors and a year are a citation"
    assert not cites("drawn from seed 2022"), "a bare number is none"


# -- the command line --------------------------------------------------------------------------------------------


def every_command(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, with the words that lead there."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, f"{path} {name}")


COMMANDS = dict(every_command(typer.main.get_command(app), "medfedpure"))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_and_option_has_a_help_text(path: str) -> None:
    command = COMMANDS[path]
    assert command.help, f"`{path}` has no help text"
    written = inspect.get_annotations(inspect.unwrap(command.callback), eval_str=True) if command.callback else {}
    # From the source: click 8.5 drops the help of arguments that typer 0.20 hands over.
    helps = {
        key: next((item.help for item in getattr(kind, "__metadata__", ()) if hasattr(item, "help")), None)
        for key, kind in written.items()
    }
    silent = [p.opts[0] for p in command.params if p.name and not (getattr(p, "help", None) or helps.get(p.name))]
    assert not silent, f"`{path}` does not say what these are: {', '.join(silent)}"


# -- the blocks of the pages -------------------------------------------------------------------------------------

QUICK = tuple(
    ROOT / "docs" / page
    for page in (
        "how-to/watch-for-drift.md",
        "how-to/write-a-detector.md",
        "how-to/write-a-part-that-learns.md",
        "how-to/write-a-purifier.md",
        "how-to/write-a-strategy.md",
        "how-to/write-an-attack.md",
        "reference/attacks.md",
        "tutorials/write-a-detector.md",
    )
)
"""Pages whose Python runs in seconds; all of them, shell included, are run by tests/test_pages.py."""

SHELL_PAGES = [page for page in PAGES if blocks(page, *SHELL)]
FIRST_MODEL = ROOT / "docs" / "first_model.py"


@pytest.fixture(scope="module")
def first_model() -> dict[str, Any]:
    """What the block makes with which many pages begin."""
    made: dict[str, Any] = {"__name__": "page"}
    exec(compile(FIRST_MODEL.read_text(encoding="utf-8"), str(FIRST_MODEL), "exec"), made)
    return made


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Block], None]]:
    """Saves a block as the file that its title names, and registers the plugin in it as an installed one would be."""
    found, known = registry_module.registry(), set(sys.modules)
    registered: list[tuple[object, tuple[str, str]]] = []

    def install(block: Block) -> None:
        path = tmp_path / str(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        classes = re.findall(r"^class (\w+)\(", block.text, re.M)
        if path.stem in KINDS and classes:
            monkeypatch.syspath_prepend(str(path.parents[1]))
            package = path.parent.name
            name = package.removeprefix("medfedpure_")
            record = Plugin(path.stem, name, f"{package}.{path.stem}:{classes[-1]}", "of a page")
            holder = type("Holder", (), {"medfedpure_plugins": hookimpl(lambda self: [record])})()
            found.register(holder, distribution=package)
            registered.append((holder, (path.stem, name)))

    yield install
    for holder, key in registered:
        found.manager.unregister(holder)
        found._records.pop(key)
    for name in set(sys.modules) - known:
        if name.partition(".")[0].startswith("medfedpure_") or name.partition(".")[0] == "laplacian_energy":
            del sys.modules[name]


@pytest.mark.filterwarnings("ignore::medfedpure.core.errors.WeakDefenceWarning")
@pytest.mark.parametrize("page", QUICK, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_blocks_of_a_page_run(
    page: Path,
    first_model: dict[str, Any],
    installed: Callable[[Block], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page, "python"):
        if block.title:
            installed(block)
        elif block.text.strip() == FIRST_MODEL.read_text(encoding="utf-8").strip():
            space |= {**first_model, "model": copy.deepcopy(first_model["model"])}
        else:
            _run(block, space)


def _run(block: Block, space: dict[str, Any]) -> None:
    try:
        exec(compile(block.text, block.where, "exec"), space)
    except Exception as error:
        pytest.fail(f"the block at {block.where} does not run: {error!r}\n{block.text}")


@pytest.mark.parametrize("page", SHELL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for block in blocks(page, *SHELL):
        for words in commands(block.text):
            problem = wrong_with(words)
            assert problem is None, f"{block.where}: `{' '.join(words)}`: {problem}"


def wrong_with(words: list[str]) -> str | None:
    """Why a command line of a page cannot be run, or None; only what is ours is looked at."""
    program = words[0].rsplit("/", 1)[-1]
    if program == "medfedpure":
        try:
            _parse(typer.main.get_command(app), words[1:])
        except click.ClickException as error:
            return error.format_message()
    elif program == "make":
        targets = (ROOT / "Makefile").read_text(encoding="utf-8")
        missing = [word for word in words[1:] if "=" not in word and f"\n{word}:" not in targets]
        return f"no target {missing}" if missing else None
    elif program.startswith("python") and len(words) > 1:
        return _wrong_with_python(words[1:])
    elif program == "pip":
        places = [word.partition("[")[0] for word in words if word.startswith("./")]
        missing = [place for place in places if not (ROOT / place).exists()]
        return f"no folder {missing}" if missing else None
    return None


def _wrong_with_python(words: list[str]) -> str | None:
    if words[0] == "-m" and words[1].startswith("benchmarks."):
        path = ROOT / f"{words[1].replace('.', '/')}.py"
        if path.with_suffix("").is_dir():
            path = path.with_suffix("") / "__main__.py"
    elif words[0].startswith("examples/"):
        path = ROOT / words[0]
    else:
        return None
    if not path.is_file():
        return f"there is no {path.relative_to(ROOT)}"
    text = "".join(source.read_text(encoding="utf-8") for source in path.parent.glob("*.py"))
    unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in text]
    return f"{path.relative_to(ROOT)} knows no option {unknown}" if unknown else None


def _parse(command: click.Command, words: list[str]) -> None:
    """Parse as the command line would, and run nothing."""
    if "--help" in words:
        words = words[: words.index("--help")]
    name = command.name or "medfedpure"
    context = click.Context(command, info_name=name, resilient_parsing=False)
    if isinstance(command, click.Group):
        if not words:
            return
        inner = command.get_command(context, words[0])
        if inner is None:
            raise click.UsageError(f"no command {words[0]!r}; there are {', '.join(command.list_commands(context))}")
        _parse(inner, words[1:])
        return
    command.make_context(name, list(words), parent=context)


def test_a_wrong_command_is_seen() -> None:
    assert wrong_with(["medfedpure", "demo", "--no-such-option"]) is not None
    assert wrong_with(["medfedpure", "no-such-command"]) is not None
    assert wrong_with(["make", "no-such-target"]) is not None
    assert wrong_with(["python", "-m", "benchmarks.no_such_module"]) is not None
    assert wrong_with(["medfedpure", "plugins", "detector", "mae"]) is None
