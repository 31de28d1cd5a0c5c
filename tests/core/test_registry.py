"""The registry: what is found, what is refused, and what the errors say.

Outsiders are dist-info folders and modules written to a temporary folder on sys.path, so that
discovery goes through the real entry points with nothing installed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medfedpure.core import registry as registry_module
from medfedpure.core.detector import Detector
from medfedpure.core.errors import (
    MissingExtraError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    UnknownPluginError,
)
from medfedpure.core.registry import BUILTIN, KINDS, STRICT_VARIABLE, Plugin, Registry
from medfedpure.plugins import medfedpure_plugins

Outsider = Callable[..., None]

DETECTOR = """
from medfedpure import Detector


class Constant(Detector):
    def score(self, images, *, context, streams):
        return images.new_zeros(len(images))
"""


def hook(*records: str) -> str:
    """The text of a module that registers records; each is the arguments of one `Plugin`."""
    listed = "".join(f"    yield Plugin({record})\n" for record in records)
    return f"from medfedpure import Plugin, hookimpl\n\n\n@hookimpl\ndef medfedpure_plugins():\n{listed}"


@pytest.fixture
def outsider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Outsider]:
    """Write a distribution of that name, with those modules; the first one is its entry point."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(STRICT_VARIABLE, raising=False)
    before = set(sys.modules)

    def write(name: str, **modules: str) -> None:
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[medfedpure]\nmain = {next(iter(modules))}\n")

    yield write
    for module in set(sys.modules) - before:
        if (tmp_path / f"{module}.py").exists():
            del sys.modules[module]


def test_discovery_lists_every_builtin() -> None:
    found = {(record.kind, record.name): record for record in Registry.discover().plugins()}
    for record in medfedpure_plugins():
        listed = found.get((record.kind, record.name))
        assert listed is not None, f"the {record.kind} {record.name!r} is not found through the entry point"
        assert listed.distribution == BUILTIN, f"{record.name!r} came from {listed.distribution!r}"
        assert listed.target == record.target, f"{record.name!r} leads to {listed.target!r}"
    assert {record.kind for record in medfedpure_plugins()} == set(KINDS), "a kind has no built-in"


def test_discovery_imports_no_implementation() -> None:
    code = (
        "import json, sys\n"
        "from medfedpure.core.registry import registry\n"
        "count = len(registry().plugins())\n"
        "print(json.dumps([count, sorted(sys.modules)]))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, modules = json.loads(answer.stdout)
    loaded = set(modules)
    assert count >= len(list(medfedpure_plugins())), "plugins are missing in a fresh process"
    assert not loaded & {"torch", "numpy", "flwr", "timm", "diffusers"}, "listing plugins loads a heavy library"
    targets = {record.target.partition(":")[0] for record in medfedpure_plugins()}
    assert not loaded & targets, f"listing plugins imports {sorted(loaded & targets)}"


def test_an_outsider_is_listed_and_created_by_name(outsider: Outsider) -> None:
    outsider(
        "good-dist", good_hook=hook("'detector', 'constant', 'good_code:Constant', 'always 0'"), good_code=DETECTOR
    )
    registry = Registry.discover()
    record = registry.get("detector", "constant")
    assert (record.distribution, record.summary) == ("good-dist", "always 0"), f"wrong record: {record}"
    assert "good_code" not in sys.modules, "discovery imported the implementation"
    detector = registry.create("detector", "constant")
    assert isinstance(detector, Detector), f"created a {type(detector).__name__}"
    assert detector.name == "constant", f"the detector calls itself {detector.name!r}"
    assert registry.name_of(detector) == "constant", "a saved folder could not name it"


def test_plugins_are_sorted_and_filtered_by_kind(outsider: Outsider) -> None:
    outsider("sorted-dist", sorted_hook=hook("'purifier', 'aaa', 'm:C', ''", "'attack', 'zzz', 'm:C', ''"))
    registry = Registry.discover()
    everything = [(KINDS.index(record.kind), record.name) for record in registry.plugins()]
    assert everything == sorted(everything), "listings are not sorted by kind and name"
    purifiers = [record.name for record in registry.plugins("purifier")]
    assert purifiers[0] == "aaa", f"not sorted by name: {purifiers}"
    assert "zzz" not in purifiers, "an attack is listed as a purifier"


def test_a_broken_outsider_is_a_listed_failure(outsider: Outsider) -> None:
    outsider("broken-dist", broken_hook="raise RuntimeError('boom')")
    registry = Registry.discover()
    failure = next(f for f in registry.failures if f.distribution == "broken-dist")
    assert isinstance(failure.error, RuntimeError), f"the failure holds {failure.error!r}"
    assert str(failure.error) == "boom", f"the failure says {failure.error}"
    assert failure.entry_point == "main = broken_hook", f"the failure names {failure.entry_point!r}"
    assert registry.get("purifier", "median").distribution == BUILTIN, "a broken outsider took a built-in along"
    with pytest.raises(UnknownPluginError, match="Broken plugins: broken-dist"):
        registry.get("detector", "of_the_broken")


def test_the_strict_variable_raises_the_failure(outsider: Outsider, monkeypatch: pytest.MonkeyPatch) -> None:
    outsider("broken-dist", broken_hook="raise RuntimeError('boom')")
    monkeypatch.setenv(STRICT_VARIABLE, "1")
    with pytest.raises(RuntimeError, match="boom"):
        Registry.discover()
    monkeypatch.setenv(STRICT_VARIABLE, "0")
    assert Registry.discover().failures, "the value 0 must not be strict"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x = 1", "has no function medfedpure_plugins"),
        (hook("'detectr', 'a', 'm:C', ''"), "kind 'detectr'; the kinds are classifier, detector"),
        (hook("'detector', 'a', 'm.C', ''"), "target 'm.C'; 'package.module:Class' is wanted"),
        (hook("'detector', 'a', 'm:C', ''", "'detector', 'a', 'm:D', ''"), "registers the detector 'a' twice"),
        (
            hook().replace("():", "():\n    return ['detector a m:C']"),
            "yielded 'detector a m:C'; Plugin records are wanted",
        ),
    ],
    ids=["no hook", "unknown kind", "no class", "twice", "no record"],
)
def test_a_malformed_registration_says_what_is_wrong(outsider: Outsider, text: str, complaint: str) -> None:
    outsider("odd-dist", odd_hook=text)
    failures = [f.error for f in Registry.discover().failures if f.distribution == "odd-dist"]
    assert len(failures) == 1, f"one failure was expected: {failures}"
    assert isinstance(failures[0], PluginError), f"not a PluginError: {failures[0]!r}"
    assert complaint in str(failures[0]), f"the text does not help: {failures[0]}"


def test_a_refused_plugin_is_forgotten() -> None:
    registry, plugin = Registry.discover(), type("Late", (), {})()
    with pytest.raises(PluginError, match="has no function"):
        registry.register(plugin, distribution="late-dist")
    assert not registry.manager.is_registered(plugin), "the manager keeps what was refused"


def test_a_clash_between_outsiders_names_both(outsider: Outsider) -> None:
    outsider(
        "alpha-dist", alpha_hook=hook("'detector', 'same', 'alpha:A', ''", "'detector', 'only_alpha', 'alpha:A', ''")
    )
    outsider("beta-dist", beta_hook=hook("'detector', 'same', 'beta:B', ''"))
    registry = Registry.discover()
    with pytest.raises(PluginConflictError, match="alpha-dist and beta-dist: uninstall one"):
        registry.get("detector", "same")
    owners = [record.distribution for record in registry.plugins("detector") if record.name == "same"]
    assert owners == ["alpha-dist", "beta-dist"], f"a listing must show both: {owners}"
    assert registry.get("detector", "only_alpha").distribution == "alpha-dist", "a clash spoilt another name"


def test_one_name_may_serve_several_kinds(outsider: Outsider) -> None:
    outsider("kinds-dist", kinds_hook=hook("'detector', 'median', 'm:C', ''"))
    registry = Registry.discover()
    assert registry.get("detector", "median").distribution == "kinds-dist", "the detector is hidden by the purifier"
    assert registry.get("purifier", "median").distribution == BUILTIN, "the purifier is hidden by the detector"


def test_a_builtin_cannot_be_shadowed(outsider: Outsider) -> None:
    outsider("aaa-shadow", shadow_hook=hook("'purifier', 'harmless', 'm:C', ''", "'purifier', 'median', 'm:C', ''"))
    registry = Registry.discover()
    assert registry.get("purifier", "median").distribution == BUILTIN, "an outsider replaced a built-in"
    error = next(f.error for f in registry.failures if f.distribution == "aaa-shadow")
    assert isinstance(error, PluginConflictError), f"the failure holds {error!r}"
    assert "aaa-shadow registers a purifier named 'median', which medfedpure already does" in str(error), str(error)
    assert "harmless" not in [r.name for r in registry.plugins("purifier")], "half a refused distribution came in"


def test_an_unknown_name_suggests_the_nearest() -> None:
    registry = Registry()
    registry.register(sys.modules["medfedpure.plugins"], distribution=BUILTIN)
    with pytest.raises(UnknownPluginError) as caught:
        registry.get("detector", "mea")
    installed = ", ".join(record.name for record in registry.plugins("detector"))
    assert str(caught.value) == f"no detector is named 'mea'. Did you mean 'mae'? Installed: {installed}."
    assert isinstance(caught.value, LookupError), "a caller may catch LookupError"
    with pytest.raises(UnknownPluginError, match="Did you mean 'mae'"):
        registry.get("detector", "MAE")
    with pytest.raises(UnknownPluginError) as caught:
        registry.get("detector", "something_else_entirely")
    assert "Did you mean" not in str(caught.value), f"a far-fetched guess: {caught.value}"


def test_an_unknown_kind_lists_the_kinds() -> None:
    for call in (lambda r: r.get("detectors", "mae"), lambda r: r.plugins("detectors"), lambda r: r.load("x", "mae")):
        with pytest.raises(UnknownPluginError, match="the kinds are classifier, detector, purifier"):
            call(Registry())


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("no_such_module_here:C", "No module named 'no_such_module_here'"),
        ("faulty_code:Constant", "division by zero"),
        ("good_code:NoSuchClass", "has no attribute 'NoSuchClass'"),
        ("good_code:__name__", "does not derive from Detector"),
        ("medfedpure.plugins.purifiers.median:Median", "does not derive from Detector"),
    ],
    ids=["no module", "module fails", "no class", "not a class", "another kind"],
)
def test_a_target_that_cannot_be_used_is_a_load_error(outsider: Outsider, target: str, complaint: str) -> None:
    record = f"'detector', 'faulty', '{target}', ''"
    outsider("faulty-dist", faulty_hook=hook(record), faulty_code="1 / 0", good_code=DETECTOR)
    registry = Registry.discover()
    assert registry.get("detector", "faulty").target == target, "a record is listed before its target is imported"
    with pytest.raises(PluginLoadError) as caught:
        registry.load("detector", "faulty")
    assert complaint in str(caught.value), f"the text does not help: {caught.value}"
    assert not isinstance(caught.value, MissingExtraError), "no extra would mend this"


@pytest.mark.parametrize("statement", ["import not_installed_anywhere", "from not_installed_anywhere.deep import x"])
def test_a_missing_extra_says_what_to_install(outsider: Outsider, statement: str) -> None:
    record = "'detector', 'needy', 'needy_code:Constant', '', extra='gpu'"
    outsider("needy-dist", needy_hook=hook(record), needy_code=statement + DETECTOR)
    with pytest.raises(MissingExtraError) as caught:
        Registry.discover().load("detector", "needy")
    assert "the detector 'needy' needs an optional dependency" in str(caught.value), str(caught.value)
    assert "not_installed_anywhere" in str(caught.value), "the missing module is not named"
    assert str(caught.value).endswith("pip install 'needy-dist[gpu]'"), f"no command to install it: {caught.value}"


@pytest.mark.parametrize("statement", ["from medfedpure.core.config import NoSuchName", "import needy_code.missing"])
def test_a_fault_of_ones_own_is_not_a_missing_extra(outsider: Outsider, statement: str) -> None:
    record = "'detector', 'needy', 'needy_code:Constant', '', extra='gpu'"
    outsider("needy-dist", needy_hook=hook(record), needy_code=f"{statement}\n{DETECTOR}")
    with pytest.raises(PluginLoadError) as caught:
        Registry.discover().load("detector", "needy")
    assert not isinstance(caught.value, MissingExtraError), f"installing an extra would not help: {caught.value}"


def test_builds_that_do_not_fit_each_other_say_what_to_do(outsider: Outsider) -> None:
    record = "'detector', 'needy', 'needy_code:Constant', '', extra='gpu'"
    statement = "raise RuntimeError('operator torchvision::nms does not exist')"
    outsider("needy-dist", needy_hook=hook(record), needy_code=f"{statement}\n{DETECTOR}")
    with pytest.raises(PluginLoadError, match="install both together from one index"):
        Registry.discover().load("detector", "needy")


def test_an_unregistered_class_has_no_name() -> None:
    class Homeless(Detector):
        def score(self, images, *, context, streams):  # type: ignore[no-untyped-def]
            return images.new_zeros(len(images))

    with pytest.raises(UnknownPluginError, match="register it under the entry-point group 'medfedpure'"):
        Registry.discover().name_of(Homeless())


def test_records_are_frozen_and_carry_no_class() -> None:
    record = Plugin("detector", "a", "m:C", "text")
    with pytest.raises(AttributeError):
        record.name = "b"  # type: ignore[misc]
    assert all(isinstance(r.target, str) for r in medfedpure_plugins()), "a record holds a class, not its address"


def test_the_registry_of_the_process_is_discovered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = registry_module.registry()
    monkeypatch.setattr(registry_module, "entry_points", lambda **_: pytest.fail("discovered again"))
    assert registry_module.registry() is first, "each call discovers anew"
