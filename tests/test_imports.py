"""What a fresh process loads: nothing heavy before it is needed, and nothing foreign in core."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medfedpure

HEAVY = {"torch", "numpy", "flwr", "timm", "diffusers"}
CORE_MAY_IMPORT = {"medfedpure", "torch", "pydantic", "pluggy", "safetensors"}

COMMAND = """
import runpy
sys.argv = ["medfedpure", *sys.argv[1:]]
try:
    runpy.run_module("medfedpure", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    status = stop.code
"""


def fresh(code: str, *arguments: str) -> tuple[int | None, str, set[str]]:
    """Run code in a fresh process: its `status`, what it printed, and all modules loaded at its end."""
    program = f"import json, sys\nstatus = 0\n{code}\nprint()\nprint(json.dumps([status, sorted(sys.modules)]))"
    answer = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    )
    assert answer.returncode == 0, f"the process failed:\n{answer.stdout}\n{answer.stderr}"
    printed, _, last = answer.stdout.rstrip("\n").rpartition("\n")
    status, modules = json.loads(last)
    return status, printed, set(modules)


def test_importing_the_package_loads_nothing_heavy() -> None:
    _, _, loaded = fresh("import medfedpure; medfedpure.__version__; dir(medfedpure)")
    assert "medfedpure" in loaded, "the measurement is broken"
    assert not loaded & HEAVY, f"import medfedpure loads {sorted(loaded & HEAVY)}"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "plugins"),
        (["plugins"], "median"),
        (["plugins", "purifier"], "median"),
        (["plugins", "--help"], "plugins"),
    ],
    ids=["help", "plugins", "plugins of a kind", "plugins help"],
)
def test_the_command_line_loads_nothing_heavy(arguments: list[str], expected: str) -> None:
    status, printed, loaded = fresh(COMMAND, *arguments)
    assert status in (0, None), f"medfedpure {' '.join(arguments)} ended with {status}:\n{printed}"
    assert expected in printed, f"{expected!r} is not shown:\n{printed}"
    assert not loaded & HEAVY, f"medfedpure {' '.join(arguments)} loads {sorted(loaded & HEAVY)}"


def test_every_public_name_is_there() -> None:
    for name in medfedpure.__all__:
        assert getattr(medfedpure, name) is not None, f"medfedpure.{name} is listed but empty"
    assert set(medfedpure.__all__) == set(dir(medfedpure)), "dir() and __all__ disagree"
    with pytest.raises(AttributeError, match="has no attribute 'no_such_name'"):
        _ = medfedpure.no_such_name


def test_core_imports_its_few_dependencies_only() -> None:
    core = Path(medfedpure.__file__).parent / "core"
    for path in sorted(core.glob("*.py")):
        foreign = imported(path) - CORE_MAY_IMPORT - sys.stdlib_module_names
        assert not foreign, f"core/{path.name} imports {sorted(foreign)}"


def imported(path: Path) -> set[str]:
    """Top-level names of everything a source file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
