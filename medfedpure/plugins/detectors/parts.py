"""Detectors inside detectors: named in a configuration, made once, saved within the outer one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import Field

from medfedpure.core.config import Config
from medfedpure.core.detector import Detector
from medfedpure.core.registry import create, registry
from medfedpure.core.results import State


class PartConfig(Config):
    """One detector by name."""

    plugin: str = Field(description="registered name")
    config: dict[str, Any] = Field(default_factory=dict, description="its configuration")


Part = TypeVar("Part", bound=PartConfig)


def made(part: PartConfig) -> Detector:
    """A new instance, not fitted."""
    detector: Detector = create("detector", part.plugin, part.config)
    return detector


def spelled(part: Part, detector: Detector) -> Part:
    """The same with all defaults spelled out, so that a saved one stays what it was when a default changes."""
    return part.model_copy(update={"config": detector.config.model_dump(mode="json")})


def upgraded(part: Mapping[str, Any], format: int) -> Mapping[str, Any]:
    """A part's configuration as saved in that format, brought up to date by its own plugin."""
    return {**part, "config": registry().load("detector", part["plugin"]).upgrade(part.get("config", {}), format)}


def packed(detectors: Sequence[Detector]) -> State:
    """The states of all, under their numbers."""
    states = [part.fitted_state() for part in detectors]
    tensors = {f"{place}.{key}": value for place, s in enumerate(states) for key, value in s.tensors.items()}
    return State({str(place): dict(state.values) for place, state in enumerate(states)}, tensors)


def unpack(state: State, detectors: Sequence[Detector]) -> None:
    """Give each its own state back."""
    for place, part in enumerate(detectors):
        head = f"{place}."
        own = {key.removeprefix(head): value for key, value in state.tensors.items() if key.startswith(head)}
        part.restore(State(state.values[str(place)], own))
        part.mark_fitted()
