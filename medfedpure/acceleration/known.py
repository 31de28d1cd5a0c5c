"""What the host knows of tensors on a device, so that nobody waits for the device to tell it once more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_known = WeakTensorKeyDictionary()


def remember(tensor: Tensor, values: Tensor) -> Tensor:
    """A tensor of any shape; as long as it lives, these are known to be its values on the CPU."""
    if tensor.device.type != "cpu":
        _known[tensor] = values
    return tensor


def on_host(tensor: Tensor) -> Tensor | None:
    """The values of a tensor of any shape on the CPU, without its gradient; None where only its device knows them."""
    if tensor.device.type == "cpu":
        return tensor.detach()
    found: Tensor | None = _known.get(tensor)
    return found


def picked(tensor: Tensor, places: Tensor) -> Tensor:
    """Rows `(M, ...)` of a tensor at places `(M,)` int64 on the CPU; of them is known what was known of all."""
    found, known = tensor[places.to(tensor.device, non_blocking=True)], on_host(tensor)
    return found if known is None else remember(found, known[places])


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors `(N, ...)` one after the other; of all is known what was known of each."""
    found, known = torch.cat(list(tensors)), [part for part in map(on_host, tensors) if part is not None]
    return found if len(known) < len(tensors) else remember(found, torch.cat(known))
