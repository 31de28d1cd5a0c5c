"""How one batch changes the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import Batch
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Step, Task


class GradientStep(Step):
    """One gradient of the batch's loss, clipped to `clip_norm`; an empty batch changes nothing."""

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
        """The scalar loss on (N, C, H, W) images, detached; 0 of none."""
        if len(batch.ids) == 0:
            return batch.images.new_zeros(())
        with autocast(config, batch.images.device):
            loss = task.loss(model, batch, streams)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        return loss.detach()


def autocast(config: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    """The precision in which a loss is computed; gradients and weights are float32 whatever it is."""
    if config.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
