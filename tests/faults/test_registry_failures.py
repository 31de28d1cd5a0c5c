"""Distributions that misbehave while they are discovered: every one is listed, none ends a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from medfedpure.core.errors import PluginError, PluginLoadError, UnknownPluginError
from medfedpure.core.registry import STRICT_VARIABLE, Plugin, Registry, hookimpl

HOOK = "from medfedpure import Plugin, hookimpl\n\n@hookimpl\ndef medfedpure_plugins():\n    yield "
GOOD = HOOK + "Plugin('detector', 'well_behaved', 'good_code:C', 'fine')\n"
HOSTILE = {
    "exits": "raise SystemExit(3)",
    "stops": "raise KeyboardInterrupt",
    "closes": "raise GeneratorExit",
    "own base": "class Odd(BaseException):\n    pass\nraise Odd",
    "exits while listing": HOOK.replace("yield ", "raise SystemExit"),
    "markup": "raise ValueError('[/x] [bold]')",
    "escapes": "raise ValueError('\\x1b]0;title\\x07 \\x9b2J')",
    "cannot be shown": "class Odd(Exception):\n    def __repr__(self): 1 / 0\n    __str__ = __repr__\nraise Odd",
    "name is a number": HOOK + "Plugin('detector', 3, 'a:B', 'x')\n",
    "name is nothing": HOOK + "Plugin('detector', None, 'a:B', 'x')\n",
    "name is empty": HOOK + "Plugin('detector', ' ', 'a:B', 'x')\n",
    "name is a list": HOOK + "Plugin('detector', ['a'], 'a:B', 'x')\n",
    "kind is a list": HOOK + "Plugin(['detector'], 'a', 'a:B', 'x')\n",
    "target is a class": HOOK + "Plugin('detector', 'a', int, 'x')\n",
    "summary is a number": HOOK + "Plugin('detector', 'a', 'a:B', 7)\n",
    "extra is a number": HOOK + "Plugin('detector', 'a', 'a:B', 'x', extra=7)\n",
    "yields a record of records": HOOK + "[Plugin('detector', 'a', 'a:B', 'x')]\n",
}


def distribution(folder: Path, name: str, text: str, metadata: str | None = None) -> None:
    """A module and its dist-info, whose entry point it is."""
    module = name.replace("-", "_")
    (folder / f"{module}.py").write_text(text, encoding="utf-8")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(metadata or f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[medfedpure]\nmain = {module}\n")


@pytest.mark.parametrize("fault", HOSTILE)
def test_b10_a_plugin_that_misbehaves_is_a_listed_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """B10: what it raises on import or while it lists its plugins is a value; the others are there."""
    name = f"hostile-{list(HOSTILE).index(fault)}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(STRICT_VARIABLE, raising=False)
    distribution(tmp_path, name, HOSTILE[fault])
    distribution(tmp_path, f"well-behaved-{name}", GOOD)
    found = Registry.discover()
    assert found.get("detector", "well_behaved").summary == "fine"
    assert [failure.distribution for failure in found.failures] == [name], found.failures
    assert isinstance(found.failures[0].error, Exception)
    assert found.failures[0].text, "a failure must say what it is"
    with pytest.raises(UnknownPluginError, match=name):
        found.get("detector", "nonsense")
    with pytest.raises(Exception):  # noqa: B017
        Registry.discover(strict=True)


@pytest.mark.parametrize("command", [["plugins"], ["plugins", "--json"], ["bench", "nonsense"], ["info"], ["--help"]])
def test_b10_no_command_ends_by_a_hostile_plugin(tmp_path: Path, command: list[str]) -> None:
    """B10: all of them at once, in a process of its own; nothing that they say reaches the terminal as it is."""
    for number, text in enumerate(HOSTILE.values()):
        distribution(tmp_path, f"hostile-{number}", text)
    named = HOOK + "Plugin('purifier', 'a[/x]', 'a:B', '\\x1b[2J [/bold] text\\x07')\n"
    distribution(tmp_path, "odd-names", named)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "COLUMNS": "120"}
    environment.pop(STRICT_VARIABLE, None)
    done = subprocess.run(
        [sys.executable, "-m", "medfedpure", *command], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == (1 if "nonsense" in command else 0), done.stderr
    assert "Traceback" not in done.stderr
    for character in "\x1b\x9b\x07":
        assert character not in done.stdout + done.stderr, f"{character!r} reached the terminal"
    if command == ["plugins"]:
        said = done.stdout + done.stderr
        assert "[/x] [bold]" in said, "the error's own text is lost"
        assert r"\x1b]0;title\x07" in said
        assert "a[/x]" in said
        assert r"\x1b[2J [/bold] text\x07" in said
        assert "SystemExit" in said
        assert "KeyboardInterrupt" in said
    if "--json" in command:
        assert len(json.loads(done.stdout)["failures"]) == len(HOSTILE)


def test_b10_a_distribution_without_a_name_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """B10: metadata that was damaged by a broken installation end nothing either."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(STRICT_VARIABLE, raising=False)
    distribution(tmp_path, "nameless", "raise ValueError('oh')", metadata="Metadata-Version: 2.1\n")
    distribution(tmp_path, "good-beside-nameless", GOOD)
    (tmp_path / "torn-1.0.dist-info").mkdir()
    (tmp_path / "torn-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torn\n")
    (tmp_path / "torn-1.0.dist-info" / "entry_points.txt").write_text("[medfedpure]\nno equals sign\n")
    found = Registry.discover()
    assert found.get("detector", "well_behaved").distribution == "good-beside-nameless"
    assert found.get("detector", "mahalanobis"), "the built-ins are gone"
    assert len(found.failures) == 2, found.failures


@pytest.mark.parametrize("ending", ["SystemExit", "KeyboardInterrupt", "GeneratorExit"])
def test_b10_a_target_that_ends_the_process_is_a_load_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    """B10: the same when the implementation itself is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    module = f"ends_by_{ending.lower()}"
    (tmp_path / f"{module}.py").write_text(f"raise {ending}\n")

    class Hook:
        @hookimpl
        def medfedpure_plugins(self) -> list[Plugin]:
            return [Plugin("detector", "ending", f"{module}:C", "x")]

    registry = Registry()
    registry.register(Hook(), distribution="some")
    with pytest.raises(PluginLoadError, match=ending):
        registry.load("detector", "ending")


@pytest.mark.parametrize("name", [3, None, ["a"], {"a": 1}])
def test_b10_what_is_no_text_names_no_plugin(name: object) -> None:
    """B10: nor does a name in a saved document that is none."""
    with pytest.raises(UnknownPluginError, match="named"):
        Registry.discover().get("detector", name)  # type: ignore[arg-type]
    with pytest.raises(PluginError):
        Registry.discover().get(name, "mae")  # type: ignore[arg-type]
