"""The one loop and its adversarial tasks, as base classes receive them."""

from __future__ import annotations

from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.loop import train


class LoopTrainer:
    """A `Trainer` by the one loop."""

    train = staticmethod(train)
    against = staticmethod(AdversarialTask)
