"""Task and the one training loop: alone or in a federation, every trainable part uses both."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import DataError, TrainingError
from medfedpure.core.progress import track
from medfedpure.core.streams import Streams, derive_seed, isolated_rng


class TrainingConfig(Config):
    """How long and how fast to train. Budgets are steps, never seconds, so that results repeat."""

    steps: int = Field(500, ge=1, description="optimizer steps (in a federation: over all rounds)")
    batch_size: int = Field(64, ge=1, description="images a step")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate, reached after the warm-up")
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps with linearly rising learning rate")
    weight_decay: float = Field(1e-4, ge=0, description="decoupled weight decay (AdamW)")
    clip_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the averaged weights; 0 keeps the last weights")


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
                moved = batch.to(_device_of(model))
                total += float(self.loss(model, moved, Streams(derive_seed(seed, "metrics"), batch.ids))) * len(
                    batch.ids
                )
        return {"loss": total / max(len(data), 1)}

    def optimizer(self, parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
        """AdamW unless a task says otherwise."""
        return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


@runtime_checkable
class Trainable(Protocol):
    """A part whose network can be trained by anyone: alone by `fit`, or across clients."""

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A freshly initialized network for images of that (C, H, W)."""

    def task(self) -> Task:
        """What the network learns."""

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained network and count as fitted."""


@dataclass(frozen=True)
class TrainingLog:
    """Mean loss over the last tenth of the steps, and how many steps and images it took."""

    loss: float
    steps: int
    images: int


def train(
    model: nn.Module,
    task: Task,
    data: ImageDataset,
    config: TrainingConfig,
    *,
    seed: int,
    description: str = "training",
    parameters: Sequence[nn.Parameter] | None = None,
    window: tuple[int, int] | None = None,
) -> TrainingLog:
    """Train in place; the model ends in eval mode, with averaged weights if `ema` asks for them.

    Args:
        model: moved nowhere; batches follow its device.
        task: loss and optimizer.
        data: at least one image; batches are always full (they wrap around the end of an epoch).
        config: budget and optimizer settings.
        seed: of the order, the streams and dropout. The global random state is left as it was.
        description: for the progress bar.
        parameters: which to update; by default all that require gradients.
        window: (first, last) step of this call within the schedule of `config.steps`, for a
            federated round; by default the whole schedule.

    Raises:
        DataError: no image.
        TrainingError: the loss is not finite, or the window holds no step.
    """
    if len(data) == 0:
        raise DataError(f"{description}: there is no image to train on")
    first, last = window or (0, config.steps)
    if last <= first:
        raise TrainingError(
            f"{description}: no step falls into it; let training.steps be at least the number of rounds"
        )
    chosen = list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    optimizer = task.optimizer(chosen, config)
    averaged = _Average(model, config.ema) if config.ema else None
    device = _device_of(model)
    history = torch.zeros(last - first, device=device)
    indices = _indices(len(data), config.batch_size, seed)
    model.train()
    with isolated_rng(derive_seed(seed, "global")):
        for place in track(range(last - first), description, last - first):
            batch = data.batch(next(indices)).to(device)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * _schedule(first + place, config)
            loss = task.loss(model, batch, Streams(derive_seed(seed, "step", first + place), batch.ids))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(chosen, config.clip_norm)
            optimizer.step()
            history[place] = loss.detach()
            if averaged is not None:
                averaged.update(model)
    if averaged is not None:
        averaged.copy_to(model)
    model.eval()
    final = float(history[-max(1, len(history) // 10) :].mean())
    if not math.isfinite(final):
        raise TrainingError(f"{description}: the loss is not finite; lower learning_rate ({config.learning_rate:g})")
    return TrainingLog(final, last - first, (last - first) * config.batch_size)


def _schedule(step: int, config: TrainingConfig) -> float:
    """Linear warm-up, then a cosine down to 2 % of the peak."""
    warm = config.warmup * config.steps
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / max(config.steps - warm, 1)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _indices(size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Endless full batches: shuffled epochs laid end to end."""
    generator = torch.Generator()
    generator.manual_seed(derive_seed(seed, "order"))
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        while waiting.numel() < batch_size:
            waiting = torch.cat((waiting, torch.randperm(size, generator=generator)))
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


class _Average:
    """Exponential moving average of the floating tensors of a model, with a debiased start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.tensors = {k: v.detach().clone() for k, v in model.state_dict().items() if v.is_floating_point()}

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        state = model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.tensors.values()), [state[key] for key in self.tensors], 1 - decay)

    def copy_to(self, model: nn.Module) -> None:
        model.load_state_dict(self.tensors, strict=False)
