"""Detectors inside detectors: named in a configuration, made once, saved within the outer one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.registry import create, registry
from medfedpure.core.results import State
from medfedpure.core.streams import Streams


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


class Combined(Detector):
    """A detector of several: its flags and requirements are those that all, or any, of them have.

    Attributes:
        centre: `(P,)` float64, what is taken from the scores of the parts.
        spread: `(P,)` float64, what they are divided by.
    """

    needs_fit = True

    centre: Tensor
    spread: Tensor

    def hold(self, detectors: Sequence[Detector]) -> None:
        """Take the parts, at construction."""
        self.parts = nn.ModuleList(detectors)
        self.register_buffer("centre", torch.zeros(len(detectors), dtype=torch.float64), persistent=False)
        self.register_buffer("spread", torch.ones(len(detectors), dtype=torch.float64), persistent=False)
        self.deterministic = all(part.deterministic for part in detectors)
        self.differentiable = all(part.differentiable for part in detectors)
        self.per_image_streams = all(part.per_image_streams for part in detectors)

    def detectors(self) -> list[Detector]:
        """The parts."""
        return [part for part in self.parts if isinstance(part, Detector)]

    @property
    def requires(self) -> frozenset[str]:
        """All that any part requires."""
        return frozenset().union(*(part.requires for part in self.detectors()))

    @abstractmethod
    def leading(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)` int64: which part raised the score of each image."""
        raise NotImplementedError

    def reasons(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> list[str]:
        """Of each image the part that `leading` names, and what that one says: "compose > score_norm".

        Of several parts of one name the number stands behind it, from 0: "compose > compose 1 > score_norm".
        """
        found = [""] * len(images)
        led, parts = self.leading(images, context=context, streams=streams), self.detectors()
        names = [part.name for part in parts]
        for place, part in enumerate(parts):
            rows = (led == place).nonzero().squeeze(1)
            if not len(rows):
                continue
            own = replace(context, logits=None if context.logits is None else context.logits[rows])
            said = part.reasons(images[rows], context=own, streams=streams.child(place).select(rows))
            number = f" {place}" if names.count(part.name) > 1 else ""
            for row, text in zip(rows.tolist(), said, strict=True):
                found[row] = f"{self.name} > {part.name}{number}{text.removeprefix(part.name)}"
        return found

    def fitted_state(self) -> State:
        """The parts' own states under their numbers, centre and spread."""
        inner = packed(self.detectors())
        return State(inner.values, {**inner.tensors, "centre": self.centre, "spread": self.spread})

    def restore(self, state: State) -> None:
        """Give every part its own state back."""
        unpack(state, self.detectors())
        self.centre, self.spread = state.tensors["centre"], state.tensors["spread"]
        self.mark_fitted()
