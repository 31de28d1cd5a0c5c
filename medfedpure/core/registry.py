"""The plugin registry: small records with lazy targets, and failures as values.

Nothing here imports torch, and discovery imports no plugin's implementation: a record names its
class as text ("package.module:Class"), which is imported when the plugin is first used.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Any, ClassVar, Protocol, cast

import pluggy

from medfedpure.core.errors import (
    MissingExtraError,
    PluginConflictError,
    PluginError,
    PluginLoadError,
    UnknownPluginError,
    did_you_mean,
)

GROUP = "medfedpure"
BUILTIN = "medfedpure"
STRICT_VARIABLE = "MEDFEDPURE_STRICT_PLUGINS"
BASES: Mapping[str, str] = {
    "classifier": "medfedpure.core.classifier:Classifier",
    "detector": "medfedpure.core.detector:Detector",
    "purifier": "medfedpure.core.purifier:Purifier",
    "personalization": "medfedpure.core.personalization:PersonalizationStrategy",
    "attack": "medfedpure.core.attack:Attack",
    "dataset": "medfedpure.core.dataset:Dataset",
}
KINDS = tuple(BASES)

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@dataclass(frozen=True)
class Plugin:
    """A record that says where a plugin lives.

    Attributes:
        kind: one of `KINDS`.
        name: how configuration files and the command line call it.
        target: "package.module:Class", imported on first use.
        summary: one line for listings.
        extra: the optional dependency group of its distribution that it needs, if any.
        distribution: who registered it; filled in at discovery.
    """

    kind: str
    name: str
    target: str
    summary: str
    extra: str | None = None
    distribution: str = ""


@dataclass(frozen=True)
class PluginFailure:
    """A distribution or a record that could not be taken in, and why."""

    distribution: str
    entry_point: str
    error: Exception

    @property
    def text(self) -> str:
        """The error in words; they are the distribution's, so escape them before you show them."""
        return words_of(self.error)


class OfAKind(Protocol):
    """Whatever says of which plugin kind it is."""

    kind: ClassVar[str]


class HookSpecs:
    """The one hook of the plugin system."""

    @hookspec
    def medfedpure_plugins(self) -> Iterable[Plugin]:  # type: ignore[empty-body]
        """Yield one `Plugin` record for each plugin that a distribution brings."""


class Registry:
    """What is installed, by kind and name."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(GROUP)
        self.manager.add_hookspecs(HookSpecs)
        self.failures: list[PluginFailure] = []
        self._records: dict[tuple[str, str], list[Plugin]] = {}

    @classmethod
    def discover(cls, *, strict: bool | None = None) -> Registry:
        """Read every entry point of the group `medfedpure`.

        Args:
            strict: raise the first failure instead of listing it; by default the environment
                variable MEDFEDPURE_STRICT_PLUGINS decides.
        """
        if strict is None:
            strict = os.environ.get(STRICT_VARIABLE, "") not in ("", "0")
        registry = cls()
        points = _entry_points(registry.failures)
        if strict and registry.failures:
            raise registry.failures[0].error
        for point in sorted(points, key=lambda p: (_owner(p) != BUILTIN, _owner(p), p.name)):
            try:
                registry.register(point.load(), distribution=_owner(point))
            except BaseException as error:  # a module that calls sys.exit() when it is imported is broken too
                failure = error if isinstance(error, Exception) else PluginLoadError(f"it raised {words_of(error)}")
                if strict:
                    raise failure from error.__cause__
                registry.failures.append(PluginFailure(_owner(point), f"{point.name} = {point.value}", failure))
        return registry

    def register(self, plugin: object, *, distribution: str) -> None:
        """Take in the records that a module or object with the hook yields.

        Raises:
            PluginError: no hook, a record of the wrong type or kind, the name of a built-in, or one name
                twice; then nothing of it is taken in.
        """
        self.manager.register(plugin)
        try:
            records = self._yielded(plugin, distribution)
        except BaseException:
            self.manager.unregister(plugin)
            raise
        for record in records:
            self._records.setdefault((record.kind, record.name), []).append(record)

    def _yielded(self, plugin: object, distribution: str) -> list[Plugin]:
        implementations = [i for i in self.manager.hook.medfedpure_plugins.get_hookimpls() if i.plugin is plugin]
        if not implementations:
            raise PluginError(f"{plugin!r} has no function medfedpure_plugins marked with medfedpure.hookimpl")
        yielded = [record for i in implementations for record in cast("Iterable[object]", i.function())]
        records = [self._checked(record, distribution) for record in yielded]
        seen: set[tuple[str, str]] = {(r.kind, r.name) for r in self.plugins() if r.distribution == distribution}
        for record in records:
            if (record.kind, record.name) in seen:
                raise PluginConflictError(f"{distribution} registers the {record.kind} {record.name!r} twice")
            seen.add((record.kind, record.name))
        return records

    def _checked(self, record: object, distribution: str) -> Plugin:
        if not isinstance(record, Plugin):
            raise PluginError(f"medfedpure_plugins of {distribution} yielded {record!r}; Plugin records are wanted")
        texts = (record.kind, record.name, record.target, record.summary, record.extra or "")
        if not all(isinstance(text, str) for text in texts) or not record.name.strip():
            raise PluginError(f"{record!r} of {distribution} is no record: text is wanted in each field, and a name")
        if record.kind not in KINDS:
            raise PluginError(f"{record.name!r} has kind {record.kind!r}; the kinds are {', '.join(KINDS)}")
        if ":" not in record.target:
            raise PluginError(f"{record.name!r} has target {record.target!r}; 'package.module:Class' is wanted")
        for other in self._records.get((record.kind, record.name), []):
            if BUILTIN in (other.distribution, distribution):
                raise PluginConflictError(
                    f"{distribution} registers a {record.kind} named {record.name!r}, which {other.distribution} "
                    "already does: a built-in cannot be shadowed, so choose another name"
                )
        return replace(record, distribution=distribution)

    def plugins(self, kind: str | None = None) -> list[Plugin]:
        """Every record, or those of one kind, sorted by kind and name."""
        if kind is not None:
            _check_kind(kind)
        order = {name: place for place, name in enumerate(KINDS)}
        found = [record for records in self._records.values() for record in records if kind in (None, record.kind)]
        return sorted(found, key=lambda record: (order[record.kind], record.name))

    def get(self, kind: str, name: str) -> Plugin:
        """The record of that kind and name.

        Raises:
            UnknownPluginError: there is none; the nearest name and all installed ones are listed.
            PluginConflictError: two distributions register it.
        """
        _check_kind(kind)
        if not isinstance(name, str):
            raise UnknownPluginError(f"no {kind} is named {name!r}: a name is text")
        records = self._records.get((kind, name), [])
        if len(records) > 1:
            owners = " and ".join(record.distribution for record in records)
            raise PluginConflictError(f"the {kind} {name!r} is registered by {owners}: uninstall one of them")
        if records:
            return records[0]
        names = [record.name for record in self.plugins(kind)]
        broken = f" Broken plugins: {', '.join(f.distribution for f in self.failures)}." if self.failures else ""
        raise UnknownPluginError(
            f"no {kind} is named {name!r}.{did_you_mean(name, names)} Installed: {', '.join(names)}.{broken}"
        )

    def load(self, kind: str, name: str) -> type[Any]:
        """Import the class behind a name.

        Raises:
            MissingExtraError: an optional dependency is not installed; the text says which to install.
            PluginLoadError: the target cannot be imported or is no class of that kind.
        """
        record = self.get(kind, name)
        try:
            target = _import(record.target)
        except BaseException as error:
            if record.extra is not None and _is_missing_dependency(error, record):
                raise MissingExtraError(
                    f"the {kind} {name!r} needs an optional dependency ({error}): "
                    f"pip install '{record.distribution}[{record.extra}]'"
                ) from error
            who = f"the {kind} {name!r} of {record.distribution}"
            said = words_of(error)
            if "torchvision::" in said:  # what one of its own operators says that is not there
                said += (
                    ": torch and torchvision are of different builds, install both together from one index "
                    "(docs/how-to/install.md)"
                )
            raise PluginLoadError(f"{who} cannot be imported: {said}") from error
        base = _import(BASES[kind])
        if not (isinstance(target, type) and issubclass(target, base)):
            raise PluginLoadError(f"{record.target} is registered as a {kind} but does not derive from {base.__name__}")
        found: type[Any] = target
        return found

    def create(self, kind: str, name: str, config: Any = None, **options: Any) -> Any:
        """Build a component by name from a configuration (instance, mapping or keywords)."""
        component = self.load(kind, name)(config, **options)
        component.plugin_name = name
        return component

    def name_of(self, component: OfAKind) -> str:
        """The registered name of a component's class.

        Raises:
            UnknownPluginError: its class is not registered, so a saved folder could not name it.
        """
        cls = type(component)
        target = f"{cls.__module__}:{cls.__qualname__}"
        for record in self.plugins(component.kind):
            if record.target == target:
                return record.name
        raise UnknownPluginError(
            f"{target} is not registered as a {component.kind}, so it cannot be saved by name: "
            f"register it under the entry-point group {GROUP!r}"
        )


@functools.cache
def registry() -> Registry:
    """The registry of this process, discovered once."""
    return Registry.discover()


def create(kind: str, name: str, config: Any = None, **options: Any) -> Any:
    """Build an installed plugin by kind and name: `create("detector", "mae", training={"steps": 500})`."""
    return registry().create(kind, name, config, **options)


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise UnknownPluginError(f"no plugin kind is named {kind!r}; the kinds are {', '.join(KINDS)}")


def words_of(error: BaseException) -> str:
    """Type and text of an error that is not ours, which may even fail to say what it is."""
    try:
        return repr(error)
    except Exception:
        return type(error).__name__


def _entry_points(failures: list[PluginFailure]) -> list[EntryPoint]:
    """Ours of all distributions; where the list of one is damaged, that one is a failure."""
    try:
        return list(entry_points(group=GROUP))
    except Exception:
        found = []
        for one in distributions():
            try:
                found += [point for point in one.entry_points if point.group == GROUP]
            except Exception as error:
                failures.append(PluginFailure(_name(one), "entry_points.txt", error))
        return found


def _owner(point: EntryPoint) -> str:
    return "unknown" if point.dist is None else _name(point.dist)


def _name(distribution: Distribution) -> str:
    """Of a distribution whose metadata may be damaged."""
    try:
        return str(distribution.name or "unknown")
    except Exception:
        return "unknown"


def _is_missing_dependency(error: BaseException, record: Plugin) -> bool:
    """Whether an import failed outside the plugin's own package and this one: those no extra would mend."""
    own = {record.target.partition(":")[0].partition(".")[0], BUILTIN}
    return isinstance(error, ImportError) and (error.name or "").partition(".")[0] not in own


def _import(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
