"""The reference holds every public object, every option and every figure; and public docstrings give shapes."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
import torch
from documentation import ROOT

import medfedpure
from medfedpure import testing
from medfedpure.core.config import Config
from medfedpure.core.registry import BUILTIN, KINDS, Plugin, registry

PAGES = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs" / "reference").glob("*.md"))}
SHOWN = {target for text in PAGES.values() for target in re.findall(r"^::: ([\w.]+)$", text, re.M)}
FILES = ("medfedpure.job.config", "medfedpure.job.federate_config")
"""What a user writes as TOML."""
BUILTINS = [record for record in registry().plugins() if record.distribution == BUILTIN]


def load_hook() -> ModuleType:
    """The hook of mkdocs, which stands beside the pages and not in a package."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules["generate"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load_hook()


# -- every public object is shown --------------------------------------------------------------------------------


def modules(*packages: str) -> list[ModuleType]:
    """All modules of packages that are public as a whole."""
    found = [(name, importlib.import_module(name).__path__) for name in packages]
    return [
        importlib.import_module(inner.name) for name, path in found for inner in pkgutil.iter_modules(path, f"{name}.")
    ]


def own(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """The public functions, classes and methods that a module defines; properties as their functions."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            yield name, value
            for key, part in vars(value).items():
                inner = getattr(part, "fget", None) or getattr(part, "func", None) or getattr(part, "__func__", part)
                if inspect.isfunction(inner) and not key.startswith("_"):
                    yield f"{name}.{key}", getattr(value, key) if inspect.isfunction(part) else inner


def hidden(module: ModuleType) -> list[str]:
    """What of a public module the reference leaves out: mkdocstrings shows nothing that has no docstring."""
    missing = [] if module.__name__ in SHOWN else [f"no page of the reference has `::: {module.__name__}`"]
    return missing + [
        f"{name} has no docstring, so it is not shown" for name, value in own(module) if not value.__doc__
    ]


ROOMS = ("core", "data", "defence", "evaluation", "federation", "figures", "training")
MODULES = modules(*(f"medfedpure.{room}" for room in ROOMS))
HOMES = medfedpure._PUBLIC | {
    name: getattr(getattr(testing, name), "__module__", testing.__name__) for name in testing.__all__
}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.removeprefix("medfedpure."))
def test_the_reference_shows_all_of_a_public_module(module: ModuleType) -> None:
    problems = hidden(module)
    assert not problems, f"{module.__name__}: {'; '.join(problems)}"


@pytest.mark.parametrize("name", HOMES)
def test_the_reference_shows_every_public_name(name: str) -> None:
    home = HOMES[name]
    assert {home, f"{home}.{name}"} & SHOWN, f"no page of the reference shows {name}: add `::: {home}` to one"


def test_a_hidden_object_is_seen() -> None:
    module = ModuleType("medfedpure.core.planted")
    exec("def silent(): pass\nclass Loud:\n    'Says.'\n    def mute(self): pass\n", module.__dict__)
    for value in (module.silent, module.Loud):
        value.__module__ = module.__name__
    assert len(hidden(module)) == 3, f"the module, silent and Loud.mute are hidden; found: {hidden(module)}"


# -- docstrings give shapes ---------------------------------------------------------------------------------------

TENSOR = re.compile(r"(?<!Mapping\[str, )(?<!dict\[str, )(?<![\w.])(?:torch\.)?Tensor\b")
SHAPE = re.compile(r"\([NMn](?:,| \*)|scalar|any shape")
BY_NAME = {"create": {"config"}}
"""Parameters that a docstring speaks of in other words."""


def unsaid(function: Any, base: str = "") -> list[str]:
    """What the docstring of a public function, or of the method that it overrides, leaves out."""
    text = (inspect.getdoc(function) or "") + base
    written = inspect.get_annotations(function)
    if not TENSOR.search(" ".join(str(kind) for kind in written.values())) or SHAPE.search(text):
        return []
    return ["it takes or gives tensors, and its docstring has no shape such as (N, C, H, W), nor says scalar"]


def unmentioned(function: Any) -> list[str]:
    """Parameters that the docstring of a function does not mention."""
    text = (inspect.getdoc(function) or "").lower()
    known = BY_NAME.get(function.__name__, set())
    names = [p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.VAR_KEYWORD]
    return [f"its docstring does not mention {name}" for name in names if name not in text and name not in known]


def inherited(module: ModuleType, name: str) -> str:
    """What the docstrings of the methods say that this one overrides."""
    owner, _, method = name.rpartition(".")
    bases = vars(module)[owner].__mro__[1:] if owner else ()
    return " ".join(inspect.getdoc(vars(base)[method]) or "" for base in bases if method in vars(base))


FUNCTIONS = [
    pytest.param(module, name, value, id=f"{module.__name__.removeprefix('medfedpure.')}.{name}")
    for module in MODULES
    for name, value in own(module)
    if not inspect.isclass(value)
]


@pytest.mark.parametrize(("module", "name", "function"), FUNCTIONS)
def test_public_functions_give_shapes(module: ModuleType, name: str, function: Any) -> None:
    problems = unsaid(function, inherited(module, name))
    assert not problems, f"{module.__name__}.{name}: {'; '.join(problems)}"


@pytest.mark.parametrize("name", [n for n in medfedpure.__all__ if inspect.isfunction(getattr(medfedpure, n))])
def test_public_functions_say_what_they_take(name: str) -> None:
    problems = unmentioned(getattr(medfedpure, name))
    assert not problems, f"medfedpure.{name}: {'; '.join(problems)}"


def test_a_silent_docstring_is_seen() -> None:
    def silent(images: torch.Tensor, seed: int) -> torch.Tensor:
        """Does something with images."""
        return images

    def gives(seed: int) -> torch.Tensor:
        """Noise by seed."""
        return torch.zeros(seed)

    def named(tensors: dict[str, torch.Tensor]) -> None:
        """Tensors by name have no shape."""

    assert len(unsaid(silent)) == 1, "a shape is missing"
    assert len(unsaid(gives)) == 1, "the shape of what it gives is missing"
    assert not unsaid(named), "a state is a dictionary of any shapes"
    assert unmentioned(silent) == ["its docstring does not mention seed"]


# -- the generated pages --------------------------------------------------------------------------------------------


def lacking(record: Plugin, text: str) -> list[str]:
    """What the generated section of a plugin lacks."""
    cls = registry().load(record.kind, record.name)
    start = text.find(f"{{ #{record.kind}-{record.name} }}")
    if start < 0:
        return ["it has no section"]
    section = text[start : start + 1 + (text[start + 1 :] + "\n## ").index("\n## ")]
    problems = (
        [] if re.search(r"^    \S", section, re.M) or record.kind in ("classifier", "dataset") else ["no formula"]
    )
    for option in generate.options_of(cls.Config.model_json_schema()):
        row = re.search(rf"\| `{re.escape(option.name)}` \|(.*)", section)
        if row is None or not all(row[1].split("|")[place].strip() for place in (0, 1, 2)):
            problems.append(f"option {option.name} lacks a row, its values, a default or a description")
    return problems if "**Measured.** " in section else [*problems, "it says neither a figure nor that there is none"]


GENERATED = {kind: generate.plugins(kind) for kind in KINDS}


@pytest.mark.parametrize("record", BUILTINS, ids=lambda record: f"{record.kind}-{record.name}")
def test_every_plugin_has_a_section_in_the_reference(record: Plugin) -> None:
    assert any(f"<!-- plugins: {record.kind} -->" in text for text in PAGES.values()), f"no page lists {record.kind}s"
    problems = lacking(record, GENERATED[record.kind])
    assert not problems, f"the {record.kind} {record.name!r}: {'; '.join(problems)}"


def test_a_lacking_section_is_seen() -> None:
    record = registry().get("detector", "mae")
    text = GENERATED["detector"]
    assert lacking(record, "") == ["it has no section"]
    assert len(lacking(record, re.sub(r"^\| `noise` .*$|\*\*Measured\.\*\*", "", text, flags=re.M))) == 2
    assert "no formula" in lacking(record, re.sub(r"^    .*$", "", text, flags=re.M))


class Inner(Config):
    """A section."""

    share: float = 0.5


class Planted(Config):
    """Options of all sorts."""

    inner: Inner = Inner()
    given: int
    names: tuple[str, ...] = ("a", "b")
    free: dict[str, Any] = {}


def test_options_are_read_from_the_model() -> None:
    found = {option.name: option for option in generate.options_of(Planted.model_json_schema())}
    assert list(found) == ["inner.share", "given", "names", "free"], "sections become dotted names"
    assert (found["inner.share"].type, found["inner.share"].default) == ("number", "0.5")
    assert (found["given"].type, found["given"].default) == ("integer", "required")
    assert (found["names"].type, found["free"].default) == ("list of texts", "{}")
    steps = next(o for o in generate.options_of(registry().load("attack", "pgd").Config.model_json_schema()))
    assert steps.range == '"linf", "l2"', f"choices are given in full; got {steps.range!r}"


def test_docstrings_become_markdown() -> None:
    text = generate.prose("After A (arXiv 2205.07460), t* and t*:\n\n    t* = a * b\n")
    assert text == "After A ([arXiv 2205.07460](https://arxiv.org/abs/2205.07460)), t\\* and t\\*:\n\n    t* = a * b\n"


def test_figures_are_read_from_the_page_with_their_command(tmp_path: Path) -> None:
    (tmp_path / "reference").mkdir()
    entry = '[detector.mae]\npage = "page.md"\nafter = "## Now"\nwords = "AUROC {}."\npattern = "^. mae . ([0-9.]+)"'
    (tmp_path / "reference" / "measured.toml").write_text(entry, encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(
        "| mae | 0.5 |\n```bash\nmeasure --all   # slowly\n```\n## Now\n\n| mae | 0.75 |\n", encoding="utf-8"
    )
    figure = generate.measured("detector", "mae", tmp_path)
    assert figure.startswith("AUROC 0.75. See [there](../page.md)"), figure
    assert figure.endswith("```bash\nmeasure --all\n```"), figure
    assert "No figure" in generate.measured("detector", "none", tmp_path), "what was not measured is said"
    page.write_text("## Now\n| mae | 0.75 |\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no command stands above"):
        generate.measured("detector", "mae", tmp_path)
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="does not show the figure"):
        generate.measured("detector", "mae", tmp_path)


MODELS = {
    f"{module.__name__}.{name}": value
    for module in (*MODULES, *map(importlib.import_module, FILES))
    for name, value in own(module)
    if inspect.isclass(value) and issubclass(value, Config) and value.model_fields
}
INSIDE = {"StrategyConfig", "ComponentConfig"}
"""Shown in the tables of those that derive from it."""


def unlisted(name: str, pages: str) -> bool:
    """Whether no page shows the options of a configuration, on its own or as a section of another."""
    shown = [MODELS[target] for target in re.findall(r"<!-- options: ([\w.]+) -->", pages)]
    return not any(name == owner.__name__ or name in owner.model_json_schema().get("$defs", {}) for owner in shown)


@pytest.mark.parametrize("target", MODELS)
def test_the_options_of_every_public_configuration_are_shown(target: str) -> None:
    name = MODELS[target].__name__
    assert name in INSIDE or not unlisted(name, "".join(PAGES.values())), f"no page has `<!-- options: {target} -->`"


def test_unlisted_options_are_seen() -> None:
    assert unlisted("TrainingConfig", "nothing")
    assert not unlisted("TrainingConfig", "<!-- options: medfedpure.job.config.RunConfig -->"), "it is a section"


COMMANDS = generate.commands()
EVERY = dict(generate.every_command(generate.application(), "medfedpure"))


def undocumented(command: click.Command, path: str, text: str) -> list[str]:
    """Options and arguments of a command that its section in a text does not explain."""
    section = (text + "\n## ").partition(f"## {path}\n")[2].partition("\n## ")[0]
    shown = {
        name.strip("`,") for row in re.findall(r"^\| (.+?) \|.*\| \S.* \|$", section, re.M) for name in row.split()
    }
    wanted = [p.name.upper() if isinstance(p, click.Argument) else p.opts[0] for p in command.params if p.name]
    return [name for name in wanted if name not in {"--help", "--install-completion", "--show-completion", *shown}]


@pytest.mark.parametrize(("path", "command"), EVERY.items())
def test_every_option_stands_in_the_reference(path: str, command: click.Command) -> None:
    assert "<!-- commands -->" in PAGES[ROOT / "docs" / "reference" / "commands.md"], "no page lists the commands"
    missing = undocumented(command, path, COMMANDS)
    assert not missing, f"the reference does not explain {', '.join(missing)} of `{path}`"


def test_an_undocumented_option_is_seen() -> None:
    demo = EVERY["medfedpure demo"]
    assert undocumented(demo, "medfedpure demo", COMMANDS.replace("| `--seed` |", "| `--sed` |")) == ["--seed"]
    silent = re.sub(r"(\| `--quiet` \|.*?\|) .*? \|", r"\1  |", COMMANDS)
    assert undocumented(demo, "medfedpure demo", silent) == ["--quiet"], "a row without words explains nothing"
