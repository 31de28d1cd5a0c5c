"""Nothing is without a word: plugins, public functions and options are documented, and what the pages show runs."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
import typer
from conftest import SMALL_CONFIGS
from documentation import PAGES, ROOT, Block, blocks, cites, commands, is_documented
from golden import read as read_golden
from test_contracts import Registered

import medfedpure
from medfedpure.cli.app import app
from medfedpure.core import registry as registry_module
from medfedpure.core.registry import BUILTIN, Plugin, create, hookimpl, registry
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.ladder import PRESETS
from medfedpure.testing import tiny_classifier, tiny_dataset

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

PYTHON = [page for page in PAGES if blocks(page, "python", "py")]
SHELL = [page for page in PAGES if blocks(page, "bash", "sh", "shell", "console")]


def small(kind: str, name: str, config: Any = None, **options: Any) -> Any:
    """`create` with the small configuration of the tests where none is given."""
    if not config and not options and not callable(SMALL_CONFIGS.get((kind, name))):
        options = dict(SMALL_CONFIGS.get((kind, name), {}))  # type: ignore[arg-type]
    return create(kind, name, config, **options)


class OfTheTutorial:
    """What the page on writing a detector installs: the class stands in a block above its use."""

    @hookimpl
    def medfedpure_plugins(self) -> list[Plugin]:
        return [Plugin("detector", "blur_shift", "page:BlurShift", "prediction shift under a blur")]


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of a third-party plugin, registered as an installed one would be."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "third_party_detector"))
    module, found = importlib.import_module("laplacian_energy"), registry_module.registry()
    tutorial = OfTheTutorial()
    found.register(module, distribution="laplacian-energy")
    found.register(tutorial, distribution="medfedpure-blur-shift")
    yield
    for registered, name in ((module, "laplacian_energy"), (tutorial, "blur_shift")):
        found.manager.unregister(registered)
        found._records.pop(("detector", name))


EFFORT = {"steps": 2, "eot": 1, "restarts": 1, "draws": 2, "queries": 5}


def stand_ins() -> dict[str, Any]:
    """What the pages speak of without making it: a model, images, a defence, all of them tiny."""
    model, benign, data = tiny_classifier(), tiny_dataset(160, seed=3), tiny_dataset(12, seed=9)
    purifier = create("purifier", "ddpm", {**SMALL_CONFIGS["purifier", "ddpm"]})  # type: ignore[dict-item]
    purifier.fit(benign, context=medfedpure.FitContext(model, model.features))
    detector = create("detector", "feature_squeezing")
    defended = DefendedClassifier(model, detector=detector, purifier=create("purifier", "median")).calibrate(
        benign, 0.1
    )
    attack = create("attack", "pgd_eot", steps=2)
    return {
        "medfedpure": medfedpure,
        "model": model,
        "bare": DefendedClassifier(model, policy="none"),
        "data": data,
        "classifier": model,
        "benign": benign,
        "train_component": data,
        "tune_part": data.select(torch.arange(len(data)) % 3 == 0),
        "test": data,
        "images": data.images,
        "labels": data.labels,
        "stream": [data.images],
        "detector": create("detector", "feature_squeezing"),
        "purifier": purifier,
        "attack": attack,
        "defended": defended,
        "chain": defended,
        "chains": {f"fold_{number}": defended for number in range(2)},
        "streams": Streams.for_batch(0, len(data)),
    }


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_blocks_of_a_page_run(
    page: Path, third_party: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medfedpure.defence.defend.create", small)
    for name, preset in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, dataclasses.replace(preset, **dict.fromkeys(EFFORT, 2)))
    monkeypatch.setattr("medfedpure.defence.certify.certify.__kwdefaults__", _fewer(medfedpure.certify), raising=True)
    monkeypatch.setitem(sys.modules, "page", module := ModuleType("page"))
    vars(module).update(stand_ins())
    for block in blocks(page, "python", "py"):
        if block.text.strip() == (ROOT / "examples" / "quickstart.py").read_text(encoding="utf-8").strip():
            continue  # run as it is by the test of the examples
        _run(block, vars(module))


def _fewer(function: Any) -> dict[str, Any]:
    """The defaults of a function, with small numbers of draws."""
    return {key: 10 if key in ("n0", "n") else value for key, value in (function.__kwdefaults__ or {}).items()}


def _run(block: Block, space: dict[str, Any]) -> None:
    where = f"{block.page.relative_to(ROOT)}:{block.line}"
    try:
        exec(compile(block.text, where, "exec"), space)
    except Exception as error:
        pytest.fail(f"the block at {where} does not run: {error!r}\n{block.text}")


@pytest.mark.parametrize("page", SHELL, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    for block in blocks(page, "bash", "sh", "shell", "console"):
        for words in commands(block.text):
            problem = wrong_with(words)
            assert problem is None, f"{page.relative_to(ROOT)}:{block.line}: `{' '.join(words)}`: {problem}"


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
