"""Which device a configuration or a command may name."""

from __future__ import annotations

import torch

from medfedpure.core.errors import ConfigError


def check_device(name: str) -> None:
    """Raise ConfigError, which says what there is, unless tensors can be computed on the device here."""
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"the device {name!r} cannot be used: there are cpu, cuda, cuda:0 (and cuda:1, ...) and mps, and of these "
            f"{', '.join(usable_devices())} here ({reason})"
        ) from error


def usable_devices() -> list[str]:
    """What a device may be called on this machine."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{place}" for place in range(torch.cuda.device_count()))]
    return found + (["mps"] if torch.backends.mps.is_available() else [])
