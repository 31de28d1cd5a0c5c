"""The one loop and what wraps tasks, as base classes receive them."""

from __future__ import annotations

from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.group_positives import with_group_positives
from medfedpure.training.loop import train


class LoopTrainer:
    """A `Trainer` by the one loop."""

    train = staticmethod(train)
    against = staticmethod(AdversarialTask)
    gathering = staticmethod(with_group_positives)
