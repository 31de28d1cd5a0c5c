"""Switches that make a chain faster on an accelerator, and change its numbers a little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from medfedpure.core.errors import ConfigError
from medfedpure.core.streams import Backend


@dataclass(frozen=True)
class Acceleration:
    """How a chain computes.

    Set it before `calibrate`: scores move with it, and the threshold must have seen the same ones.

    Attributes:
        autocast: convolutions and matrix products in bfloat16; logits, scores and images stay float32.
        channels_last: convolution weights in the memory format that tensor cores prefer.
        compile: networks through torch.compile; the first batch of every size takes long.
        noise: who draws it: "reference" on the CPU, so that every device sees the same, or "device" where the
            images are; see core/streams.py. Results say which.
    """

    autocast: bool = False
    channels_last: bool = False
    compile: bool = False
    noise: Backend = "reference"

    def __post_init__(self) -> None:
        if self.noise not in ("reference", "device"):
            raise ConfigError(f'noise is drawn by "reference" or "device"; got {self.noise!r}')

    def prepare(self, *parts: nn.Module | None) -> None:
        """Change the memory format of the parts, and compile their networks, in place.

        Raises:
            ConfigError: torch.compile does not work here.
        """
        for part in parts:
            if part is None:
                continue
            if self.channels_last:
                part.to(memory_format=torch.channels_last)
            if self.compile:
                network = getattr(part, "network", part)
                if isinstance(network, nn.Module):
                    _compile(network)

    @contextmanager
    def active(self, device: torch.device) -> Iterator[None]:
        """The block computes as the switches say."""
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            yield


def _compile(network: nn.Module) -> None:
    try:
        network.compile(dynamic=True)
    except RuntimeError as error:
        raise ConfigError(f"torch.compile does not work here ({error}): leave compile=False") from error
