"""Switches that make a chain faster on an accelerator, and change its numbers a little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from medfedpure.acceleration.compiled import compiling, prepared
from medfedpure.acceleration.precision import full_precision
from medfedpure.core.errors import ConfigError
from medfedpure.core.results import device_of
from medfedpure.core.streams import Backend


@dataclass(frozen=True)
class Acceleration:
    """How a chain computes.

    Set it before `calibrate`: scores move with it, and the threshold must have seen the same ones.

    Attributes:
        autocast: convolutions and matrix products in bfloat16; logits, scores and images stay float32. Without it, on
            CUDA, convolutions of answers are float32 in full, not the TF32 that PyTorch takes by itself; the backward
            pass of an attack is as PyTorch is set.
        channels_last: the classifier's convolution weights in the memory format that tensor cores prefer.
        compile: classifier, noise predictor and steps of the reverse process through torch.compile; on CUDA replayed
            as CUDA graphs. The first batch of every size takes long. See medfedpure/acceleration/compiled.py.
        noise: who draws it: "reference" on the CPU, so that every device sees the same, or "device" where the
            images are; see core/streams.py. Results say which.
    """

    autocast: bool = False
    channels_last: bool = False
    compile: bool = False
    noise: Backend = "reference"

    def __post_init__(self) -> None:
        switches = (self.autocast, self.channels_last, self.compile)
        if not all(isinstance(switch, bool) for switch in switches):
            raise ConfigError(
                f"the switches are True or False; got {switches}: for what suits a device say chain.accelerate('auto') "
                "or Acceleration.auto(device), and chain.accelerate('off') for none"
            )
        if self.noise not in ("reference", "device"):
            raise ConfigError(f'noise is drawn by "reference" or "device"; got {self.noise!r}')

    @classmethod
    def auto(cls, device: torch.device | str) -> Self:
        """What suits a device.

        On CUDA bfloat16 where the card computes in it, compiled networks, noise from the device, channels_last for the
        classifier; elsewhere nothing, for nothing was found there that is faster and answers the same.
        """
        where = torch.device(device)
        if where.type != "cuda":
            return cls()
        halves = torch.cuda.get_device_capability(where) >= (8, 0)
        return cls(autocast=halves, channels_last=True, compile=True, noise="device")

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """The block computes as the switches say."""
        full = device.type == "cuda" and not self.autocast
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=self.autocast),
            compiling(self.compile),
            full_precision(full),
        ):
            yield


Asked = Acceleration | Literal["auto", "off"]


class Accelerable(nn.Module):
    """What a chain computes with: switches that are asked for, or those that suit the device where it is.

    "auto" is the default: on CUDA `Acceleration.auto`, elsewhere nothing. It is asked anew at every use, so that a
    chain that moves to another device computes as suits that one.

    Attributes:
        asked: what `accelerate` was told, for another chain that shall compute alike wherever it is.
    """

    classifier: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.asked: Acceleration | Literal["auto"] = "auto"
        self._laid: list[nn.Parameter] = []

    @property
    def acceleration(self) -> Acceleration:
        """The switches, where the chain is now."""
        return Acceleration.auto(device_of(self)) if self.asked == "auto" else self.asked

    def accelerate(self, acceleration: Asked) -> Self:
        """Compute as the switches say, from now on; calibrate after it. It is not saved with the defence.

        Args:
            acceleration: switches; "auto", those that suit the device; or "off", none.

        Raises:
            ConfigError: another word.
        """
        if acceleration != "auto" and acceleration != "off" and not isinstance(acceleration, Acceleration):
            raise ConfigError(f'an Acceleration, "auto" or "off" is wanted; got {acceleration!r}')
        self.asked = Acceleration() if acceleration == "off" else acceleration
        return self

    @contextmanager
    def computing(self, device: torch.device) -> Iterator[None]:
        """The block computes as the switches say, on images of that device."""
        found = self.acceleration
        if found.channels_last and not self._laid:
            self._laid = laid_out(self.classifier)
        elif self._laid and not found.channels_last:
            for weight in self._laid:
                weight.data = weight.data.contiguous()
            self._laid = []
        with found.active(device):
            yield

    def answering(self) -> nn.Module:
        """The classifier; compiled inside `computing`, where the switches say so."""
        return Answering(self.classifier) if self.acceleration.compile else self.classifier


class Answering(nn.Module):
    """A classifier that is compiled inside `compiling(True)`; mode and attributes are the classifier's."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.training = classifier.training

    def __getattr__(self, name: str) -> Any:
        """What a detector of one classifier looks for, such as its layers."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("classifier"), name)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)` of images `(N, C, H, W)`."""
        return prepared(logits_of, self.classifier, what="the classifier")(images)


def logits_of(classifier: nn.Module, images: Tensor) -> Tensor:
    """What a classifier says of images `(N, C, H, W)`: logits `(N, K)`."""
    found: Tensor = classifier(images)
    return found


def laid_out(network: nn.Module) -> list[nn.Parameter]:
    """Lay the weights of a network's convolutions out as channels_last, in place; those that were not."""
    changed = [
        weight
        for weight in network.parameters()
        if weight.ndim == 4 and not weight.is_contiguous(memory_format=torch.channels_last)
    ]
    for weight in changed:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return changed
