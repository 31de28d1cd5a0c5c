"""A second set of BatchNorm layers in a model while it is trained, and what else such a training remembers.

Two sets of images whose statistics differ are each normalized by their own (Xie et al. 2020, "Adversarial examples
improve image recognition", arXiv 1911.09665; Han et al. 2021, "Advancing diagnostic performance and clinical usability
of neural networks via adversarial training and dual batch normalization", Nature Communications 12, 4315):

    y = a_s (x - mean_s) / sqrt(var_s + e) + b_s,    s the set that the pass is routed through

The model's own layers are one set, and stay. The other begins as their copy, exists while `installed` does, and is then
put down in `beside(model)`: a training of the same model that follows goes on with it, and nothing that saves or sends
the model sees it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medfedpure.core.task import beside

_SECOND, _FLAG = "second", "several_steps_wanted"


class SecondSet:
    """What a model has beside its own tensors while it is trained.

    Args:
        model: BatchNorm layers are known by their type.
        doubled: whether there is a second set; otherwise there is the flag alone.

    Attributes:
        layers: by name, the model's own BatchNorm layers.
    """

    def __init__(self, model: nn.Module, doubled: bool) -> None:
        self.model = model
        found = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
        self.layers: dict[str, _BatchNorm] = found if doubled else {}
        for layer in self.layers.values():
            layer.add_module(_SECOND, copy.deepcopy(layer))
            # A bound method is copied with its layer, should somebody copy the model.
            layer.forward = MethodType(_routed, layer)  # type: ignore[method-assign]
            layer.takes_second = False  # type: ignore[assignment]
        # On the CPU, where reading it at every step waits for nothing.
        model.register_buffer(_FLAG, torch.zeros((), dtype=torch.int64))
        known, state = beside(model), self._state()
        if known.keys() == state.keys():
            for key, value in known.items():
                state[key].copy_(value)

    @property
    def several_steps(self) -> bool:
        """Whether one step was found to be too few; it stays so."""
        return bool(self.model.get_buffer(_FLAG))

    @several_steps.setter
    def several_steps(self, found: bool) -> None:
        self.model.get_buffer(_FLAG).fill_(int(found))

    @contextmanager
    def routed(self, second: bool) -> Iterator[None]:
        """Inside the block every pass goes through the second set, or through the model's own."""
        before = [(layer, layer.takes_second) for layer in self.layers.values()]
        for layer, _ in before:
            layer.takes_second = second  # type: ignore[assignment]
        try:
            yield
        finally:
            for layer, was in before:
                layer.takes_second = was

    def followers(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Those of the second set whose own are among the parameters."""
        wanted = {id(parameter) for parameter in parameters}
        return [
            other
            for layer in self.layers.values()
            for own, other in ((layer.weight, _second(layer).weight), (layer.bias, _second(layer).bias))
            if id(own) in wanted
        ]

    def removed(self, held: dict[str, Tensor]) -> None:
        """Leave the model with its own tensors.

        Args:
            held: what is put back into the second set first.
        """
        state = self._state()
        for key, value in held.items():
            state[key].copy_(value)
        known = beside(self.model)
        known.clear()
        known.update({key: value.detach().cpu().clone() for key, value in state.items()})
        for layer in self.layers.values():
            _bare(layer)
        delattr(self.model, _FLAG)

    def still(self, parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """Copies of the buffers of layers that the parameters are to leave as they are."""
        wanted = {id(parameter) for parameter in parameters}
        return {
            f"{name}.{key}": buffer.clone()
            for name, layer in self.layers.items()
            if layer.weight is not None and id(layer.weight) not in wanted
            for key, buffer in _second(layer).named_buffers()
        }

    def _state(self) -> dict[str, Tensor]:
        state = {
            f"{name}.{key}": value
            for name, layer in self.layers.items()
            for key, value in _second(layer).state_dict().items()
        }
        return {**state, _FLAG: self.model.get_buffer(_FLAG)}


def _routed(layer: Any, images: Tensor) -> Tensor:
    answer: Tensor = _second(layer)(images) if layer.takes_second else type(layer).forward(layer, images)
    return answer


def _second(layer: nn.Module) -> Any:
    return layer.get_submodule(_SECOND)


@contextmanager
def installed(
    model: nn.Module, parameters: Sequence[nn.Parameter], *, doubled: bool
) -> Iterator[tuple[SecondSet, Sequence[nn.Parameter]]]:
    """Inside the block the model has what a `SecondSet` adds; gives it, and all parameters that are to be updated.

    A layer whose own weights are not among the parameters is left as it is: its second weights and statistics, too.
    """
    added = SecondSet(model, doubled)
    held = added.still(parameters)
    try:
        yield added, [*parameters, *added.followers(parameters)]
    finally:
        added.removed(held)


def as_saved(model: nn.Module) -> nn.Module:
    """The model itself; inside `installed` a copy that has its own tensors alone, and so can be saved and loaded."""
    if _FLAG not in dict(model.named_buffers(recurse=False)):
        return model
    found = copy.deepcopy(model)
    for layer in found.modules():
        if hasattr(layer, "takes_second"):
            _bare(layer)
    delattr(found, _FLAG)
    return found


def _bare(layer: nn.Module) -> None:
    for added in ("forward", "takes_second", _SECOND):
        delattr(layer, added)


@contextmanager
def statistics_untouched(model: nn.Module) -> Iterator[None]:
    """Inside the block BatchNorm normalizes as its mode says and moves no running statistics."""
    tracking = [layer for layer in model.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
