"""What a verdict is: of each image one class, or none. Whoever reads logits as a decision asks here.

And how a model is lent to whoever asks it, and what is noticed of its answers, so that no number without meaning is
silent.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType, MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_classes, check_facts, check_logits, facts_about
from medfedpure.core.errors import MissingRequirementError

ABSTAINED = -1
"""Stands for a class where a defence refuses to say one."""


def verdicts(logits: Tensor) -> Tensor:
    """The class of each image, `(N,)` int64, from logits `(N, K)`: the largest, of equal ones the first."""
    return logits.argmax(1)


@torch.no_grad()
def verdicts_of(model: Callable[[Tensor], Tensor], images: Tensor, *, batch_size: int = 64) -> Tensor:
    """What a classifier says of images `(N, C, H, W)`, `(N,)` int64, so many at a time.

    It is read in eval mode, where it is a module.

    Raises:
        InputError: its answers are no logits `(N, K)`, or not finite.
    """
    found, bad = [], []
    with as_they_answer(*[model] if isinstance(model, nn.Module) else []):
        for part in images.split(batch_size) if len(images) else ():
            logits = model(part)
            check_logits(logits, len(part))
            found.append(verdicts(logits))
            bad.append(facts_about(logits)[0])
    if not found:
        return torch.empty(0, dtype=torch.int64, device=images.device)
    check_facts(float(torch.stack(bad).sum()), 0, len(images))
    return torch.cat(found)


def fooled(found: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """`(N,)` bool: verdicts `(N,)` other than the labels `(N,)`; with targets `(N,)`, those that reach them."""
    return found != labels if targets is None else found == targets


@contextmanager
def as_they_answer(*modules: nn.Module) -> Iterator[None]:
    """Every submodule in eval mode inside the block; after it each one's own mode and buffers are as before.

    Blocks may be nested, and entered by several threads at once: the last one out restores what the first one found.
    """
    parts = list(dict.fromkeys(part for module in modules for part in module.modules()))
    with _lock:
        for part in parts:
            found = _lent.get(part)
            if found is None:
                found = _lent[part] = _Lent(part.training, _buffers_at_risk(part))
            found.borrowers += 1
            if part.training:
                part.training = False
    try:
        yield
    finally:
        with _lock:
            for part in parts:
                found = _lent[part]
                found.borrowers -= 1
                if not found.borrowers:
                    _lent.pop(part).give_back(part)


@dataclass
class _Kept:
    """A buffer, its version when it was lent, and what it held."""

    tensor: Tensor
    version: int | None
    values: Tensor

    @classmethod
    def of(cls, tensor: Tensor) -> _Kept:
        # Tensors made in inference mode count no versions.
        return cls(tensor, None if tensor.is_inference() else tensor._version, tensor.detach().clone())

    def changed(self) -> bool:
        return self.version is None or self.tensor._version != self.version


@dataclass
class _Lent:
    """How a module was before the first block."""

    training: bool
    buffers: dict[str, _Kept]
    borrowers: int = 0

    def give_back(self, part: nn.Module) -> None:
        if part.training is not self.training:
            part.training = self.training
        for name, kept in self.buffers.items():
            if kept.changed():
                with torch.inference_mode(kept.version is None), torch.no_grad():
                    kept.tensor.copy_(kept.values)
            if getattr(part, name, None) is not kept.tensor:
                setattr(part, name, kept.tensor)


_lock = threading.RLock()
_lent: dict[nn.Module, _Lent] = {}


def _buffers_at_risk(part: nn.Module) -> dict[str, _Kept]:
    """Those of modules that are not torch's own layers: of these, none writes to a buffer in eval mode."""
    if type(part).__module__.startswith(("torch.nn.modules.", "medfedpure.")):
        return {}
    return {name: _Kept.of(tensor) for name, tensor in part.named_buffers(recurse=False)}


@contextmanager
def without_parameter_gradients(module: nn.Module) -> Iterator[None]:
    """No gradients for parameters inside the block: an attacker needs those of images only."""
    active = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in active:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in active:
            parameter.requires_grad_(True)


Uses = Literal["gradients", "logits", "verdicts"]
"""What an attack takes from a model's answers: gradients of them, their values, or the largest alone."""


class Watch:
    """What one call of an attack notices of the answers that it gets; counts stay on the device until `notes`.

    Args:
        uses: what the attack takes from answers.
        highest: the highest class among its labels and targets.
        name: of the view.
    """

    def __init__(self, uses: Uses, highest: int, name: str) -> None:
        self.uses = uses
        self.highest = highest
        self.name = name
        self._first = True
        self._said: list[str] = []
        self._saturated: Tensor | None = None
        self._blind: Tensor | None = None

    def see(self, logits: Tensor, images: Tensor) -> None:
        """Look at an answer `(N, K)`, and at what connects it to its images.

        Raises:
            InputError: classes that the model does not have, or an answer that is not finite.
            MissingRequirementError: there is no gradient, and the attack needs one.
        """
        asked = torch.is_grad_enabled() and images.requires_grad
        if asked and not logits.requires_grad and self.uses == "gradients":
            raise MissingRequirementError(without_gradient(self.name))
        # Whoever takes no gradients waits for the device at every answer anyway.
        if len(images) and (self._first or self.uses != "gradients"):
            check_classes(0, self.highest, logits.shape[1])
            check_logits(logits, len(images), values=True, told=self._first and self.uses != "verdicts")
            self._first = False

    def say(self, note: str) -> None:
        """A sentence for the result."""
        self._said.append(note)

    def saturation(self, found: Tensor) -> None:
        """Of a loss at some images, `(N,)` bool: where it saturated, and another was raised."""
        found = found.detach().any()
        self._saturated = found if self._saturated is None else self._saturated | found

    def slopes(self, gradient: Tensor, fooled: Tensor) -> None:
        """A gradient `(N, C, H, W)` that was followed, and which images `(N,)` bool are fooled already."""
        still = ~fooled
        zero = still & (gradient.flatten(1) == 0).all(1)
        found = torch.stack((zero.sum(), still.sum()))
        self._blind = found if self._blind is None else self._blind + found

    def notes(self) -> list[str]:
        """Sentences that must stand beside the attack's numbers."""
        found = list(self._said)
        if self._saturated is not None and bool(self._saturated):
            found.append("cross-entropy saturates (a probability rounds to 1): the margin of logits was raised there")
        zero, asked = (0, 0) if self._blind is None else self._blind.tolist()
        if zero:
            found.append(
                f"the gradient was zero at {zero / asked:.0%} of looks at images not fooled: it is blind there"
            )
        return found


def without_gradient(name: str) -> str:
    """What to say of a view by that name whose answers have no gradient."""
    return (
        f"the view {name!r} has no gradient: nothing connects its answer to the images. Attack it without "
        "gradients (square), or look where it is detached"
    )


def modules_behind(*functions: Callable[..., Any] | None) -> list[nn.Module]:
    """The modules that functions run, as far as they can be told: owners of methods, and what functions close over."""
    return list(dict.fromkeys(part for function in functions for part in _behind(function, set())))


def _behind(found: Any, seen: set[int]) -> Iterator[nn.Module]:
    if isinstance(found, nn.Module):
        yield found
    elif isinstance(found, MethodType):
        yield from _behind(found.__self__, seen)
    elif isinstance(found, FunctionType) and id(found) not in seen:
        seen.add(id(found))
        for cell in found.__closure__ or ():
            try:
                inner = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            yield from _behind(inner, seen)
        for name in found.__code__.co_names:
            if isinstance(found.__globals__.get(name), nn.Module):
                yield found.__globals__[name]
