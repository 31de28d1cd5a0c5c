"""Component: configuration, fitted state, and saving as a folder a person can read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from medfedpure.core import registry as registry_module
from medfedpure.core import storage
from medfedpure.core.config import Config as BaseConfig
from medfedpure.core.errors import ArtifactError, MedFedPureError, NotFittedError, UnknownPluginError
from medfedpure.core.results import State


class Component:
    """Base of every plugin kind.

    A subclass may declare a `Config` (pydantic, frozen) and, when it is fitted, two methods:
    `fitted_state()`, which returns what `fit` learned, and `restore(state)`, which takes it back.

    Flags are set by a class, and may be computed by an instance whose configuration decides.

    Attributes:
        kind: the plugin kind, set by each base class.
        deterministic: equal inputs give equal outputs whatever the seed.
        differentiable: gradients flow from output to input images.
        per_image_streams: all randomness comes from `Streams`; False for adapters to foreign
            libraries that use global generators (they seed and restore them under a lock).
        needs_fit: refuses to work before `fit` or `load`.
    """

    kind: ClassVar[str] = ""
    Config: ClassVar[type[BaseConfig]] = BaseConfig
    deterministic: bool = False
    differentiable: bool = False
    per_image_streams: bool = True
    needs_fit: bool = False

    def __init__(self, config: BaseConfig | Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        self.config: Any = type(self).Config.parse(config, **options)
        self.plugin_name: str | None = None
        self._fitted = False

    @property
    def name(self) -> str:
        """The registered name, or the class name when it is not registered."""
        if self.plugin_name is not None:
            return self.plugin_name
        try:
            return registry_module.registry().name_of(self)
        except UnknownPluginError:
            return type(self).__name__

    @property
    def fitted(self) -> bool:
        """Whether it may be used: `fit` or `load` has run, or it needs neither."""
        return self._fitted or not self.needs_fit

    def mark_fitted(self) -> Self:
        """To be called at the end of `fit`."""
        self._fitted = True
        return self

    def check_fitted(self) -> None:
        """Raise NotFittedError unless fitted."""
        if not self.fitted:
            raise NotFittedError(f"the {self.kind} {self.name!r} is not fitted: call fit(...) or load a saved one")

    def fitted_state(self) -> State:
        """What `fit` learned; empty for a component that needs no fit."""
        return State()

    def restore(self, state: State) -> None:
        """Take back what `fitted_state` returned; raises ArtifactError when it does not fit."""
        if state.values or state.tensors:
            raise ArtifactError(f"the {self.kind} {self.name!r} holds no fitted state, but the folder does")

    def save(self, folder: str | Path) -> None:
        """Write configuration and fitted state as JSON and safetensors.

        Raises:
            ArtifactError: the folder exists and was not written by medfedpure.
            UnknownPluginError: the class is not registered, so no other process could find it.
        """
        name = self.plugin_name or registry_module.registry().name_of(self)
        record = registry_module.registry().get(self.kind, name)
        state = self.fitted_state() if self.fitted else State()
        document = {
            "kind": self.kind,
            "plugin": name,
            "distribution": record.distribution,
            "config": self.config.model_dump(mode="json"),
            "fitted": self.fitted,
            "values": dict(state.values),
        }
        with storage.atomic_folder(folder) as work:
            storage.write_document(work, document, state.tensors)

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """A configuration as saved in that format, in the terms of this version's `Config`; by default as it is.

        Args:
            config: what `save` wrote.
            format: 1 or more; see docs/reference/files.md for what each changed.
        """
        del format
        return config

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a folder that `save` wrote; on a base class the plugin is found by its name.

        Raises:
            ArtifactError: truncated, edited, foreign, or of another kind or plugin.
        """
        document, tensors = storage.read_document(
            folder, kind=cls.kind or None, keys=("kind", "plugin", "config", "fitted", "values")
        )
        check_types(document, {"kind": str, "plugin": str, "config": dict, "fitted": bool, "values": dict}, str(folder))
        kind, name = document["kind"], document["plugin"]
        known = registry_module.registry().load(kind, name)
        component = registry_module.create(kind, name, known.upgrade(document["config"], document["format"]))
        if not isinstance(component, cls):
            raise ArtifactError(f"{folder} holds a {type(component).__name__}; a {cls.__name__} was wanted")
        if document["fitted"]:
            try:
                component.restore(State(document["values"], tensors))
            except MedFedPureError:
                raise
            except Exception as error:
                raise ArtifactError(f"{folder} cannot be restored as {component.name!r}: {error!r}") from error
            component.mark_fitted()
        return component


def check_types(document: Mapping[str, Any], wanted: Mapping[str, type], where: str) -> None:
    """Raise ArtifactError unless the values of a saved document have these types: whole numbers are no truth values."""
    wrong = [
        f"{key} is {type(document[key]).__name__}, not {kind.__name__}"
        for key, kind in wanted.items()
        if not isinstance(document[key], kind) or (kind is int and isinstance(document[key], bool))
    ]
    if wrong:
        raise ArtifactError(f"{where} was not saved by medfedpure, or was edited: {'; '.join(wrong)}")
