"""What the reference says of plugins and commands, written from the code whenever the site is built (a mkdocs hook).

A page asks for it with a comment on a line of its own: `<!-- plugins: detector -->`, `<!-- commands -->`, or
`<!-- options: package.module.Config -->` for the options of one pydantic model.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import typer

from medfedpure.core.registry import BUILTIN, Plugin, registry

DOCS = Path(__file__).parent
MARKER = re.compile(r"^<!-- (?:plugins: (?P<kind>\w+)|options: (?P<model>[\w.]+)|commands) -->$", re.M)
FLAGS = {
    "deterministic": ("deterministic", "random, from its seed"),
    "differentiable": ("gradients reach the images", None),
    "needs_fit": ("must be fitted", None),
    "per_image_streams": (None, "uses global random generators under a lock"),
}
"""What a flag says when it is true, and when it is not."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page: fills in what its markers ask for."""
    return MARKER.sub(_generated, markdown)


def _generated(found: re.Match[str]) -> str:
    if found["kind"]:
        return plugins(found["kind"])
    return options_table(found["model"]) if found["model"] else commands()


# -- plugins -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Option:
    """One option of a configuration, in words."""

    name: str
    type: str
    default: str
    range: str
    description: str


def plugins(kind: str) -> str:
    """A section for each built-in of a kind."""
    found = [record for record in registry().plugins(kind) if record.distribution == BUILTIN]
    return "\n\n".join(section(record) for record in sorted(found, key=lambda record: record.name))


def section(record: Plugin) -> str:
    """Name, paper and formula, promises, options, figure and class of one plugin."""
    cls = registry().load(record.kind, record.name)
    options = tables(cls.Config)
    target = record.target.replace(":", ".")
    parts = [
        f"## {record.name} {{ #{record.kind}-{record.name} }}",
        f"*{record.summary}*",
        prose(inspect.getdoc(importlib.import_module(cls.__module__)) or ""),
        facts(record, cls),
        "**Configuration**" if options else "No options.",
        options,
        f"**Measured.** {measured(record.kind, record.name)}",
        f"::: {target}\n    options:\n      heading_level: 4\n      show_root_full_path: false",
    ]
    return "\n\n".join(part for part in parts if part)


def options_table(target: str) -> str:
    """The options of a pydantic model, given as package.module.Class."""
    module, _, name = target.rpartition(".")
    return tables(getattr(importlib.import_module(module), name))


def tables(model: Any) -> str:
    """All options of a pydantic model, those of its sections folded; nothing where it has none."""
    options = list(options_of(model.model_json_schema()))
    sections = dict.fromkeys(option.name.rpartition(".")[0] for option in options)
    return "\n\n".join(_section(part, options) for part in sorted(sections))


def _section(part: str, options: list[Option]) -> str:
    """The options of one section; those below the top fold away."""
    mine = [option for option in options if option.name.rpartition(".")[0] == part]
    text = table(
        ("option", "values", "default", "what it is"),
        [(f"`{o.name}`", f"{o.type} {o.range}".strip(), _default_cell(o.default), o.description) for o in mine],
    )
    folded = f'??? note "{part}: {len(mine)} options"\n\n' + "\n".join(f"    {line}" for line in text.splitlines())
    return folded if part else text


def _default_cell(text: str) -> str:
    """As code, unless it is so long that it has to wrap."""
    return f"`{text}`" if len(text) <= 28 else text


def prose(text: str) -> str:
    """A docstring as Markdown: its indented formulas are code, its stars are stars, its arXiv numbers are links."""
    text = re.sub(r"^(?! {4}).*$", lambda line: line[0].replace("*", r"\*"), text, flags=re.M)
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def facts(record: Plugin, cls: Any) -> str:
    """What its flags promise, and what must be installed."""
    said = [words[not getattr(cls, flag)] for flag, words in FLAGS.items()]
    if record.kind in ("personalization", "dataset", "classifier"):
        said = []  # gradients and seeds are not what one asks of these
    if record.extra:
        said.append(f"needs `pip install 'medfedpure[{record.extra}]'`")
    promises = "; ".join(text for text in said if text)
    return promises[:1].upper() + promises[1:] + "." if promises else ""


def options_of(schema: Mapping[str, Any]) -> Iterator[Option]:
    """Every option of a pydantic model's schema; sections are flattened into dotted names."""
    definitions = schema.get("$defs", {})

    def walk(part: Mapping[str, Any], prefix: str, defaults: Mapping[str, Any] | None) -> Iterator[Option]:
        for name, field in part.get("properties", {}).items():
            default = (defaults or {}).get(name, field.get("default"))
            inner = _resolve(field, definitions)
            if "properties" in inner:
                yield from walk(inner, f"{prefix}{name}.", default)
                continue
            required = name in part.get("required", ()) and name not in (defaults or {})
            default = {} if default is None and inner.get("type") == "object" else default
            shown = "required" if required else _value(default)
            yield Option(prefix + name, _type(inner, definitions), shown, _range(inner), field.get("description", ""))

    return walk(schema, "", None)


def _resolve(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in field:
        return definitions[field["$ref"].rpartition("/")[2]]
    return field


def _type(field: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    field = _resolve(field, definitions)
    if "anyOf" in field:
        return " or ".join(_type(one, definitions) for one in field["anyOf"])
    if field.get("type") == "array":
        inner = field.get("items") or (field.get("prefixItems") or [{}])[0]
        return f"list of {_type(inner, definitions)}s"
    words = {"string": "text", "null": "none", "object": "table"}
    given = field.get("enum", [field["const"]] if "const" in field else ())
    kind = field.get("type") or ("integer" if given and all(isinstance(one, int) for one in given) else "string")
    return words.get(kind, kind)


def _range(field: Mapping[str, Any]) -> str:
    if "anyOf" in field:
        return "; ".join(text for text in (_range(one) for one in field["anyOf"]) if text)
    if "enum" in field or "const" in field:
        return ", ".join(_value(value) for value in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        size = {"minItems": field.get("minItems"), "maxItems": field.get("maxItems")}
        held = _range(field.get("items") or {})
        words = "" if size["minItems"] is None else f"at least {size['minItems']}"
        words = f"{size['minItems']} of them" if None not in size.values() and len(set(size.values())) == 1 else words
        return "; ".join(text for text in (words, held and f"each {held}") if text)
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {field[key]:g}" for key, sign in signs.items() if key in field)


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table, or nothing where there are no rows."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines) if rows else ""


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


# -- figures -----------------------------------------------------------------------------------------------------


def measured(kind: str, name: str, folder: Path = DOCS) -> str:
    """One figure of a plugin, read from the page that shows it, with the command above it there.

    Raises:
        ValueError: the page does not show that figure any more, or no command stands above it.
    """
    entry = tomllib.loads((folder / "reference" / "measured.toml").read_text(encoding="utf-8")).get(kind, {}).get(name)
    if entry is None:
        return "No figure of this one is published here yet."
    page = folder / entry["page"]
    text = page.read_text(encoding="utf-8")
    above, _, below = text.partition(entry["after"])
    found = re.search(entry["pattern"], below, re.M)
    if found is None:
        raise ValueError(f"{page.name} does not show the figure of the {kind} {name!r} any more: {entry['pattern']}")
    shown = re.findall(r"^```bash\n(.*?)^```", above + below[: found.start()], re.S | re.M)
    if not shown:
        raise ValueError(f"no command stands above the figure of the {kind} {name!r} in {page.name}")
    words = entry["words"].format(*(group.strip() for group in found.groups()))
    command = " ".join(shown[-1].partition(" #")[0].replace("\\\n", " ").split())
    return f"{words} See [there](../{entry['page']}); measured by\n\n```bash\n{command}\n```"


# -- commands ----------------------------------------------------------------------------------------------------


def commands() -> str:
    """A section for each command, with all its options."""
    parts = []
    for path, command in every_command(application(), "medfedpure"):
        rows = [
            (f"`{_names(option)}`", _default(option), help_of(command, option))
            for option in command.params
            if option.name != "help" and not {"--install-completion", "--show-completion"} & set(option.opts)
        ]
        text = " ".join((command.help or "").split())
        parts += [f"## {path}", text, table(("option", "default", "what it is"), rows)]
    return "\n\n".join(part for part in parts if part)


def application() -> click.Command:
    """The command line as click sees it."""
    from medfedpure.cli.app import app

    return typer.main.get_command(app)


def every_command(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, with the words that lead there."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from every_command(inner, f"{path} {name}")


def help_of(command: click.Command, option: click.Parameter) -> str:
    """The help text of an option or argument, from the source where click has dropped it, as 8.5 does."""
    if getattr(option, "help", None):
        return str(option.help)  # type: ignore[attr-defined]
    written = inspect.get_annotations(inspect.unwrap(command.callback), eval_str=True) if command.callback else {}
    said = (getattr(item, "help", None) for item in getattr(written.get(option.name or ""), "__metadata__", ()))
    return next((text for text in said if text), "")


def _names(option: click.Parameter) -> str:
    if isinstance(option, click.Argument):
        return (option.name or "").upper()
    return ", ".join((*option.opts, *option.secondary_opts))


def _default(option: click.Parameter) -> str:
    if option.required:
        return "required"
    value = option.default
    return "" if value is None or callable(value) or value is False else f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(on_page_markdown(sys.stdin.read()))
