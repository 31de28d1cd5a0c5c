"""A purifier taught by what its classifier reads: guided distillation against an attacker who ignores the purifier.

    min_S  E  | f(S(x')) - f(x) |_1,    x' = x, or x + d with d from PGD on CE( f(x + d), y )

f is the classifier, as it is, and |.|_1 the mean over logits: the loss LGD of Liao et al. 2018, "Defense against
adversarial attacks using high-level representation guided denoiser", arXiv 1712.02976. What is compared are answers and
not pixels, so that S may change what the classifier does not read, and keeps what it does.

**What it is worth.** It restores what a static attack took. Whoever differentiates purifier and classifier finds a
network like any other (Athalye and Carlini 2018, arXiv 1804.03286, against that very defence).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.dataset import Batch
from medfedpure.core.settings import AdversarialTraining
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task
from medfedpure.training.adversarial import harden
from medfedpure.training.classification import ClassificationTask


class GuidedTask(Task):
    """The loss of the module's formula.

    Args:
        plain: how images are varied, and the loss that the attacker maximizes.
        classifier: images `(N, C, H, W)` in [0, 1] to logits `(N, K)`; in eval mode.
        purified: the network that learns and images `(N, C, H, W)`, to cleaned ones.
        settings: share and attack of the bare classifier.
    """

    def __init__(
        self,
        plain: ClassificationTask,
        classifier: nn.Module,
        purified: Callable[[nn.Module, Tensor], Tensor],
        settings: AdversarialTraining,
    ) -> None:
        self.plain, self.classifier, self.purified, self.settings = plain, classifier, purified, settings

    def recipe(self) -> dict[str, Any]:
        """The attack and how images are varied."""
        return {**super().recipe(), "plain": self.plain.recipe(), "adversarial": self.settings.model_dump(mode="json")}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """Mean absolute difference of the logits, scalar."""
        shown = replace(batch, images=self.plain.inputs(model, batch, streams))
        attacked = harden(self.classifier, shown, streams, self.settings, self.plain).images
        with torch.no_grad():
            wanted = self.classifier(shown.images)
        return functional.l1_loss(self.classifier(self.purified(model, attacked)), wanted)
