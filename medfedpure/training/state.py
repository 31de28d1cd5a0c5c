"""What a training holds between two steps: weights, their average, the best so far, the optimizer.

It is written to disk as JSON and safetensors, so that a training that was cut off continues where it
was, with the same result as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medfedpure.core.errors import ArtifactError
from medfedpure.core.results import device_of
from medfedpure.core.storage import (
    DOCUMENT,
    atomic_folder,
    layout_hash,
    load_strictly,
    read_document,
    write_document,
)


class WeightAverage:
    """Exponential moving average of the floating tensors of a model, with a debiased start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = _floating(model)

    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        state = model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.tensors.values()), [state[key] for key in self.tensors], 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        """Give the model the averaged weights."""
        model.load_state_dict(self.tensors, strict=False)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Inside the block the model has the averaged weights."""
        own = _floating(model)
        self.copy_to(model)
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)


class Best:
    """The best weights so far by what a task holds for best, their loss, and how many checks have passed since."""

    def __init__(self) -> None:
        self.worth: tuple[float, ...] | None = None
        self.loss: float | None = None
        self.waited = 0
        self.tensors: dict[str, Tensor] = {}

    def offer(self, worth: Sequence[float], loss: float, model: nn.Module) -> None:
        """Keep the model's weights if they are worth more; with a number that is not finite they never are."""
        numbers = tuple(worth)
        if all(map(math.isfinite, numbers)) and (self.worth is None or numbers > self.worth):
            self.worth, self.loss, self.waited, self.tensors = numbers, loss, 0, _floating(model)
        else:
            self.waited += 1


def _floating(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items() if v.is_floating_point()}


class TrainingState:
    """Everything that changes while a model is trained.

    Attributes:
        done: steps taken.
        history: `(steps,)`, the loss of each.
        sizes: `(steps,)` int64 on the CPU, the images that each saw.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None, steps: int
    ) -> None:
        self.model, self.optimizer, self.average = model, optimizer, average
        self.best = Best()
        self.done = 0
        self.history = torch.zeros(steps, device=device_of(model))
        self.sizes = torch.zeros(steps, dtype=torch.int64)

    def save(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Write everything, replacing what an earlier `save` wrote there; never half."""
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in self.best.tensors.items()}
        if self.average is not None:
            tensors |= {f"average.{key}": value for key, value in self.average.tensors.items()}
        for place, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{key}": torch.as_tensor(value) for key, value in state.items()}
        tensors |= {"history": self.history, "sizes": self.sizes, "random": torch.get_rng_state()}
        if self.history.is_cuda:
            tensors["random_cuda"] = torch.cuda.get_rng_state(self.history.device)
        document = {
            "kind": "training",
            "recipe": dict(recipe),
            "layout": layout_hash(self.model),
            "done": self.done,
            "updates": 0 if self.average is None else self.average.updates,
            "best": None if self.best.worth is None else [*self.best.worth, self.best.loss],
            "waited": self.best.waited,
        }
        with atomic_folder(folder) as work:
            write_document(work, document, tensors)

    def load(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        """Take back what `save` wrote, with the global random state of that step; nothing where nothing is.

        Raises:
            ArtifactError: it is damaged, or of another training.
        """
        if not (folder / DOCUMENT).exists():
            return
        found, tensors = read_document(folder, kind="training", keys=("recipe", "layout", "done"))
        other = [key for key, value in recipe.items() if found["recipe"].get(key) != value]
        if other or found["layout"] != layout_hash(self.model):
            raise ArtifactError(
                f"{folder} holds the checkpoint of another training (it differs in "
                f"{', '.join(other) or 'the network'}): choose another folder, or delete this one to start afresh"
            )
        load_strictly(self.model, _section(tensors, "model"), "the model of the checkpoint")
        self.best.tensors = _section(tensors, "best")
        self.best.waited = found["waited"]
        if found["best"] is not None:
            *worth, self.best.loss = found["best"]
            self.best.worth = tuple(worth)
        if self.average is not None:
            self.average.updates = found["updates"]
            for key, value in _section(tensors, "average").items():
                self.average.tensors[key].copy_(value)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _section(tensors, "optimizer").items():
            place, name = key.split(".", 1)
            state.setdefault(int(place), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.history.copy_(tensors["history"])
        self.sizes.copy_(tensors["sizes"])
        torch.set_rng_state(tensors["random"])
        if self.history.is_cuda:
            torch.cuda.set_rng_state(tensors["random_cuda"], self.history.device)
        self.done = found["done"]


def _section(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    head = f"{name}."
    return {key.removeprefix(head): value for key, value in tensors.items() if key.startswith(head)}
