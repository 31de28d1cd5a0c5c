"""What a part promises whose network can be trained by anyone, alone or across clients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medfedpure.core.streams import Streams
from medfedpure.core.task import FinishesLocally, Task, Trainable
from medfedpure.testing.checking import assert_equal, global_rng_untouched
from medfedpure.testing.components import FittedContract, new_like
from medfedpure.testing.observing import observe
from medfedpure.testing.setting import Setting


class TrainableContract(FittedContract):
    """Selected by the protocol `Trainable`: parts without it skip these tests."""

    def test_networks_repeat(self, unfitted: Any, setting: Setting) -> None:
        """Equal seeds give equal networks at every client; another seed gives another."""
        part = _trainable(unfitted)
        with global_rng_untouched("make_network"):
            one, two, other = (part.make_network(setting.train.image_shape, seed) for seed in (1, 1, 2))
        assert_equal(two.state_dict(), one.state_dict(), "make_network with equal seeds")
        differs = any(not torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
        assert differs, "make_network gives equal weights for different seeds"

    def test_the_task_can_be_learned(self, unfitted: Any, setting: Setting) -> None:
        """A finite scalar loss with gradients, equal for equal streams."""
        part = _trainable(unfitted)
        network, task = part.make_network(setting.train.image_shape, 1), part.task()
        assert isinstance(task, Task), f"task() must return a Task; got {type(task).__name__}"
        batch = setting.train.batch(torch.arange(4))
        with global_rng_untouched("the loss"):
            loss, again = (task.loss(network, batch, Streams(3, batch.ids)) for _ in range(2))
        assert loss.ndim == 0, f"the loss must be a scalar; got shape {tuple(loss.shape)}"
        assert bool(loss.isfinite()), "the loss is not finite"
        assert torch.equal(loss, again), "the loss differs for equal streams: draw from them only"
        loss.backward()
        trained = [weight.grad is not None for weight in network.parameters() if weight.requires_grad]
        assert any(trained), "no weight receives a gradient from the loss"

    def test_adopting_a_network_counts_as_fitting(self, unfitted: Any, setting: Setting) -> None:
        """What a federation trained is taken in by `adopt`."""
        part = _trainable(new_like(unfitted))
        network = part.make_network(setting.train.image_shape, 1)
        adopted = part.adopt(network, setting.train.image_shape)
        assert adopted is part, "adopt must return self"
        if isinstance(adopted, FinishesLocally):
            adopted.finish_fit(setting.train, context=setting.context, seed=1)
        assert adopted.fitted, "adopt must end with mark_fitted(), or finish_fit where there is one"
        for value in observe(adopted, setting).values():
            assert bool(value.isfinite().all()), "an adopted network gives answers that are not finite"


def _trainable(part: Any) -> Any:
    if not isinstance(part, Trainable):
        pytest.skip("not a Trainable: it has no make_network, task and adopt")
    return part
