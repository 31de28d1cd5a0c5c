"""Which installed plugin a command means, and with what configuration."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from medfedpure.core.errors import ConfigError, UnknownPluginError
from medfedpure.core.registry import KINDS, Plugin, registry

Name = Annotated[str, typer.Argument(help="The plugin's registered name: see `medfedpure plugins`.")]
Kind = Annotated[str | None, typer.Option("--kind", help=f"{', '.join(KINDS)}; needed where two kinds share the name.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="A TOML file with the plugin's options; default: its own defaults.")
]


def find(name: str, kind: str | None) -> Plugin:
    """The record of a name, its kind guessed where only one has it.

    Raises:
        UnknownPluginError: no kind has it, or several have.
    """
    if kind is not None:
        return registry().get(kind, name)
    found = [record for record in registry().plugins() if record.name == name]
    kinds = sorted({record.kind for record in found})
    if len(kinds) == 1:
        return registry().get(kinds[0], name)
    if kinds:
        raise UnknownPluginError(
            f"{name!r} names a plugin of several kinds: choose with --kind {' or --kind '.join(kinds)}"
        )
    names = sorted({record.name for record in registry().plugins()})
    broken = "".join(
        f" {failure.distribution} is installed but broken: {failure.text}." for failure in registry().failures
    )
    raise UnknownPluginError(
        f"no plugin is named {name!r}; installed: {', '.join(names)}.{broken} A project of yours must be "
        "installed first: pip install -e FOLDER"
    )


def read_config(path: Path | None) -> dict[str, Any]:
    """The options of a TOML file; none without a file.

    Raises:
        ConfigError: a file that is not there, or no TOML.
    """
    if path is None:
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file {path}: --config takes a TOML file with the plugin's options") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as TOML: {error}") from error
