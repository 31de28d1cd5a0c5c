"""What a trainable part is: its task (loss, metrics, optimizer), its network, and who trains it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.results import device_of
from medfedpure.core.settings import AdversarialTraining, GroupPositives, TrainingConfig
from medfedpure.core.streams import Streams, derive_seed


class Task(ABC):
    """What one trainable part learns: a loss, and metrics to watch."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The scalar to minimize on one batch; all noise comes from `streams`."""

    def metrics(self, model: nn.Module, data: ImageDataset, *, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
        """Figures of an evaluation; by default the mean loss."""
        total = 0.0
        with torch.no_grad():
            for batch in data.batches(batch_size):
                moved = batch.to(device_of(model))
                total += float(self.loss(model, moved, Streams(derive_seed(seed, "metrics"), batch.ids))) * len(
                    batch.ids
                )
        return {"loss": total / max(len(data), 1)}

    def worth(self, figures: Mapping[str, float]) -> tuple[float, ...]:
        """What decides which weights are best: of two `metrics` the one whose first number that differs is higher."""
        return (-figures["loss"],)

    def recipe(self) -> dict[str, Any]:
        """What decides the loss, as plain values: a checkpoint goes on only where they are the same."""
        return {"task": type(self).__name__}

    def sampler(self) -> BatchSampler | None:
        """Which images each batch holds; None leaves it to `TrainingConfig.sampling`."""
        return None

    def optimizer(self, parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
        """AdamW unless a task says otherwise; without `config.decay_all`, what has one dimension does not decay."""
        # On CUDA torch chooses for itself; False would forbid what it chooses.
        fused = True if all(parameter.device.type == "cpu" for parameter in parameters) else None
        options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, "fused": fused}
        if config.decay_all:
            return torch.optim.AdamW(parameters, **options)
        groups: list[dict[str, Any]] = [
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2]},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, **options)

    @property
    def classifies(self) -> bool:
        """Whether the loss asks the model itself, once, for logits `(N, K)` of `inputs`."""
        return False

    def inputs(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The images `(N, C, H, W)` of a batch as the loss shows them to the model: augmented, where it trains."""
        del model, streams
        return batch.images

    def around(
        self, model: nn.Module, parameters: Sequence[nn.Parameter]
    ) -> AbstractContextManager[Sequence[nn.Parameter]]:
        """Surrounds a training; inside it a model may have more tensors, and after it only its own.

        Args:
            model: what is trained.
            parameters: those of it to update; the block receives all that are to be updated.
        """
        del model
        return _given(parameters)

    def at(self, step: int, steps: int) -> None:
        """Told before each step where it lies in the whole schedule, 0 <= step < steps; by default it forgets it."""
        del step, steps


def beside(model: nn.Module) -> dict[str, Tensor]:
    """What trainings put down beside a model for those that follow; it is no part of its state, and may be changed."""
    kept: dict[str, Tensor] = vars(model).setdefault("_beside_it", {})
    return kept


@contextmanager
def _given(parameters: Sequence[nn.Parameter]) -> Iterator[Sequence[nn.Parameter]]:
    yield parameters


class WrappedTask(Task):
    """Another task with something changed about its loss; all else is the other's.

    Args:
        inner: what gives metrics and optimizer, and the loss that a subclass starts from.
    """

    def __init__(self, inner: Task) -> None:
        self.inner = inner

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The inner task's."""
        return self.inner.loss(model, batch, streams)

    def metrics(self, model: nn.Module, data: ImageDataset, *, batch_size: int = 64, seed: int = 0) -> dict[str, float]:
        """The inner task's."""
        return self.inner.metrics(model, data, batch_size=batch_size, seed=seed)

    def recipe(self) -> dict[str, Any]:
        """The wrapper's name around the inner recipe; a subclass adds its settings."""
        return {"task": type(self).__name__, "inner": self.inner.recipe()}

    def sampler(self) -> BatchSampler | None:
        """The inner task's."""
        return self.inner.sampler()

    def optimizer(self, parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
        """The inner task's."""
        return self.inner.optimizer(parameters, config)

    def worth(self, figures: Mapping[str, float]) -> tuple[float, ...]:
        """The inner task's."""
        return self.inner.worth(figures)

    @property
    def classifies(self) -> bool:
        """The inner task's; a subclass whose loss asks the model otherwise says False."""
        return self.inner.classifies

    def inputs(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The inner task's."""
        return self.inner.inputs(model, batch, streams)

    def around(
        self, model: nn.Module, parameters: Sequence[nn.Parameter]
    ) -> AbstractContextManager[Sequence[nn.Parameter]]:
        """The inner task's."""
        return self.inner.around(model, parameters)

    def at(self, step: int, steps: int) -> None:
        """The inner task is told."""
        self.inner.at(step, steps)


class BatchSampler(Protocol):
    """Which images each step sees; derive from it and write `batches`. It holds no data, so it can be used again."""

    @abstractmethod
    def batches(self, data: ImageDataset, batch_size: int, seed: int) -> Iterator[Tensor]:
        """Positions `(M,)` int64 in the data, batch by batch without end.

        M may differ from batch to batch, and from `batch_size`, which is what to aim at. An empty batch is a step too:
        the learning rate moves on, and `Step` says what happens. All is drawn from `seed`, so equal arguments give
        equal batches; a training that goes on draws those of the steps behind it again.
        """

    def recipe(self) -> dict[str, Any]:
        """What decides the batches, as plain values; a sampler with settings adds them."""
        return {"sampler": type(self).__name__}


class Step(Protocol):
    """How one batch changes the weights; derive from it and write `__call__`."""

    @abstractmethod
    def __call__(
        self,
        model: nn.Module,
        task: Task,
        batch: Batch,
        streams: Streams,
        *,
        optimizer: torch.optim.Optimizer,
        parameters: Sequence[nn.Parameter],
        config: TrainingConfig,
    ) -> Tensor:
        """Loss, gradients, clipping, and the optimizer's step; the loss, scalar and detached.

        Args:
            model: in training mode, on the device of the batch.
            task: gives the loss.
            batch: (N, C, H, W) images; N may be 0 where the sampler says so. The loss of an empty batch is not looked
                at, and what it does to the weights is the step's to say: the default leaves them as they are, a
                private one would add its noise.
            streams: of these images at this step; its seed is the step's own.
            optimizer: of `parameters`, with its learning rate set for this step.
            parameters: those to update.
            config: `clip_norm`, `precision` and `batch_size`, the size of a batch that was aimed at.
        """

    def recipe(self) -> dict[str, Any]:
        """What decides the update, as plain values; a step with settings adds them."""
        return {"step": type(self).__name__}


@runtime_checkable
class Trainable(Protocol):
    """A part whose network can be trained by anyone: alone by `fit`, or across clients."""

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A freshly initialized network for images of that (C, H, W)."""

    def task(self) -> Task:
        """What the network learns."""

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained network and count as fitted."""


@runtime_checkable
class FinishesLocally(Protocol):
    """A trainable part that, after `adopt`, still learns something from each client's own benign images."""

    def finish_fit(self, data: ImageDataset, *, context: Any, seed: int = 0) -> Self:
        """Learn what the network alone does not say, such as statistics of its scores; then it is fitted."""


class Trainer(Protocol):
    """The machinery of training as it is handed to whoever trains: `training/` implements it."""

    def train(
        self,
        model: nn.Module,
        task: Task,
        data: ImageDataset,
        config: TrainingConfig,
        *,
        seed: int,
        description: str = "training",
        parameters: Sequence[nn.Parameter] | None = None,
        window: tuple[int, int] | None = None,
        sampler: BatchSampler | None = None,
        step: Step | None = None,
    ) -> TrainingLog:
        """Train a model in place; see `medfedpure.train`."""

    def against(self, task: Task, settings: AdversarialTraining, objective: Task) -> Task:
        """The task on batches with their share of adversarial examples, crafted on the objective's loss."""

    def gathering(self, task: Task, settings: GroupPositives, data: ImageDataset, *, balanced: bool = False) -> Task:
        """The task that also pulls images of one group of the data together; balanced: classes drawn equally often."""


@dataclass(frozen=True)
class TrainingLog:
    """Mean loss over the last tenth of the steps that saw images, and how many steps and images it took.

    `validation` is the loss on validation images of the weights that were kept as the best; None without them.
    """

    loss: float
    steps: int
    images: int
    validation: float | None = None
