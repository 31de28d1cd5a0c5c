"""Personalization strategies: what travels, what stays, how a client trains. No Flower type here."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medfedpure.core.component import Component
from medfedpure.core.config import Config as BaseConfig
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import FederationError
from medfedpure.core.settings import AdversarialTraining, GroupPositives, TrainingConfig
from medfedpure.core.streams import derive_seed
from medfedpure.core.task import Task, Trainer, TrainingLog, beside

Tensors = dict[str, Tensor]
Scalar = int | float | str | bool
_BESIDE = "beside the model."
_MOST_EXAMPLES = 2**53  # beyond it, float64 has no place for the next one


@dataclass(frozen=True)
class ClientRound:
    """All that a strategy sees at a client.

    Attributes:
        round: 1 ... rounds.
        rounds: how many there will be.
        client_id: a stable name.
        shared: the tensors that came from the server.
        private: what this client kept from its last participation; {} at the first.
        make_model: a new network, equal at every client and in every round.
        train: this client's training images.
        validation: this client's held-out images, or None.
        config: what the server sent along.
        seed: of this client and round.
        task: loss, metrics and optimizer.
        training: budget over all rounds.
        trainer: who trains; `train_round` asks it.
    """

    round: int
    rounds: int
    client_id: str
    shared: Tensors
    private: Tensors
    make_model: Callable[[], nn.Module]
    train: ImageDataset
    validation: ImageDataset | None
    config: Mapping[str, Scalar]
    seed: int
    task: Task
    training: TrainingConfig
    trainer: Trainer

    def window(self) -> tuple[int, int]:
        """The first and last step of this round within the schedule of all rounds."""
        steps = self.training.steps
        return steps * (self.round - 1) // self.rounds, steps * self.round // self.rounds


@dataclass(frozen=True)
class LocalResult:
    """What a client returns.

    Attributes:
        shared: the tensors that travel.
        private: those that stay on the client's disk.
        num_examples: images that it trained on: its weight in the mean.
        metrics: plain numbers for the server.
    """

    shared: Tensors
    private: Tensors
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Update:
    """One client's contribution as the server sees it.

    Attributes:
        client_id: a stable name.
        shared: the tensors that came.
        num_examples: images that it says it trained on.
        metrics: plain numbers.
    """

    client_id: str
    shared: Tensors
    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class StrategyConfig(BaseConfig):
    """What every strategy can do; a strategy with settings of its own derives from it."""

    adversarial: AdversarialTraining = Field(
        AdversarialTraining(), description="train on adversarial examples; off while its share is 0"
    )
    group_positives: GroupPositives = Field(
        GroupPositives(), description="pull images of one group together; off while its weight is 0"
    )


class PersonalizationStrategy(Component):
    """One method to write: `is_shared`; the others have defaults for one model trained in one pass.

    Attributes:
        federated: whether anything travels at all; False for the anchor of purely local training.
    """

    kind: ClassVar[str] = "personalization"
    Config: ClassVar[type[BaseConfig]] = StrategyConfig
    federated: ClassVar[bool] = True

    @abstractmethod
    def is_shared(self, key: str, model: nn.Module) -> bool:
        """Whether this state_dict key of `network(...)` travels to the server; a pure function.

        Only floating tensors ever travel: integer buffers stay private whatever this says.
        """
        raise NotImplementedError

    def network(self, make_model: Callable[[], nn.Module]) -> nn.Module:
        """What a client trains, evaluates and exports: by default `make_model()` itself.

        A strategy that needs more than one copy of the architecture, or parts beside it, returns them as one
        module here; its initial weights must follow from those of `make_model()` alone. For a bundle to rebuild
        it, a ClassifierModel must stay one, of a registered architecture.
        """
        return make_model()

    def local_update(self, r: ClientRound) -> LocalResult:
        """Train one round: merge what came with what was kept, one pass, split again."""
        model = self.personal_model(r)
        log = train_round(r, model, task=self.hardened(r.task, r))
        shared, private = self.split(model)
        return LocalResult(shared, private, len(r.train), {"train_loss": log.loss})

    def initial_shared(self, make_model: Callable[[], nn.Module], seed: int) -> Tensors:
        """What the server starts from."""
        del seed
        return self.split(self.network(make_model))[0]

    def client_config(self, round: int, client_id: str, history: Sequence[Mapping[str, float]]) -> Mapping[str, Scalar]:
        """Scalars to send along with the shared tensors."""
        del round, client_id, history
        return {}

    def aggregate(self, round: int, previous: Tensors, updates: Sequence[Update]) -> Tensors:
        """The new shared tensors: by default the mean weighted by the number of examples."""
        del round
        return weighted_mean(previous, updates)

    def personal_model(self, r: ClientRound) -> nn.Module:
        """The client's model: evaluated, and put into the defence chain; the same object."""
        return load_merged(self.network(r.make_model), {**r.private, **r.shared})

    def adversarial(self, r: ClientRound) -> AdversarialTraining:
        """How this client trains on adversarial examples in this round; by default as configured."""
        del r
        configured: AdversarialTraining = getattr(self.config, "adversarial", AdversarialTraining())
        return configured

    def hardened(self, task: Task, r: ClientRound, *, objective: Task | None = None) -> Task:
        """The task with what the configuration adds: group positives, and around them adversarial examples.

        Args:
            task: what is learned; it is returned as it is where nothing is added.
            r: the round.
            objective: the task whose loss the attacker maximizes; by default the same.
        """
        settings, learned = self.adversarial(r), task
        positives: GroupPositives = getattr(self.config, "group_positives", GroupPositives())
        if positives.weight:
            learned = r.trainer.gathering(task, positives, r.train, balanced=r.training.sampling == "balanced")
        return r.trainer.against(learned, settings, objective or task) if settings.share else learned

    def split(self, model: nn.Module) -> tuple[Tensors, Tensors]:
        """The state of a model as (shared, private): disjoint, together complete; private is what lies beside it."""
        shared: Tensors = {}
        private = kept_beside(model)
        for key, value in model.state_dict().items():
            travels = value.is_floating_point() and self.is_shared(key, model)
            (shared if travels else private)[key] = value.detach().cpu().clone()
        return shared, private


def in_batchnorm(key: str, model: nn.Module) -> bool:
    """Whether a state_dict key belongs to a BatchNorm layer, known by its type and not by its name."""
    place, _, _ = key.rpartition(".")
    return any(name == place for name, layer in model.named_modules() if isinstance(layer, _BatchNorm))


def kept_beside(model: nn.Module) -> Tensors:
    """What trainings put down beside a model, by names that `load_merged` knows: a client's own, and never shared."""
    return {_BESIDE + key: value.clone() for key, value in beside(model).items()}


def load_merged(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Load tensors over a model's own, which stay where none is given; the model, in eval mode.

    What `kept_beside` gave is put beside it again, for the next training.

    Raises:
        FederationError: a name that the model does not have, or a tensor of another shape.
    """
    kept = {key: value for key, value in tensors.items() if key.startswith(_BESIDE)}
    beside(model).update({key.removeprefix(_BESIDE): value for key, value in kept.items()})
    state = model.state_dict()
    merged = {**state, **{key: value for key, value in tensors.items() if key not in kept}}
    unknown = sorted(merged.keys() - state.keys())
    if unknown:
        raise FederationError(f"tensors that this model does not have: {', '.join(unknown[:5])}")
    wrong = [key for key in state if merged[key].shape != state[key].shape]
    if wrong:
        raise FederationError(f"tensors of another shape than this model's: {', '.join(wrong[:5])}")
    model.load_state_dict(merged, strict=True)
    return model.eval()


def train_round(
    r: ClientRound,
    model: nn.Module,
    parameters: Sequence[nn.Parameter] | None = None,
    *,
    task: Task | None = None,
    window: tuple[int, int] | None = None,
    phase: str = "",
) -> TrainingLog:
    """One round of the ordinary loop on a client's own images.

    Args:
        r: the round.
        model: trained in place.
        parameters: which to update; by default all that require gradients.
        task: by default that of the round.
        window: first and last step; by default all of this round's.
        phase: a name for one of several passes of a round, which then draws its own order of images.
    """
    return r.trainer.train(
        model,
        task or r.task,
        r.train,
        r.training,
        seed=derive_seed(r.seed, r.round, phase) if phase else derive_seed(r.seed, r.round),
        description=f"round {r.round}/{r.rounds}, {r.client_id}" + (f", {phase}" if phase else ""),
        parameters=parameters,
        window=window or r.window(),
    )


def weighted_mean(
    previous: Tensors, updates: Sequence[Update], *, weight: Callable[[Update, str], float] | None = None
) -> Tensors:
    """Mean over clients, summed in float64 in the order of client names.

    Args:
        previous: what the clients started from.
        updates: what they sent.
        weight: of one client's tensor of that name, at least 0; by default the client's number of examples.
            A tensor to which all give weight 0 stays as it was.

    Raises:
        FederationError: no update, keys or shapes that differ from the previous ones, tensors that are
            not floating or not finite, a number of examples that is no whole number from 1, or a weight that is
            negative or not finite.
    """
    if not updates:
        raise FederationError("no client sent an update")
    ordered = sorted(updates, key=lambda update: update.client_id)
    for update in ordered:
        if update.shared.keys() != previous.keys():
            different = sorted(update.shared.keys() ^ previous.keys())
            raise FederationError(
                f"client {update.client_id} sent other tensors than wanted: {', '.join(different[:5])}"
            )
        count = update.num_examples
        if not isinstance(count, Integral) or isinstance(count, bool) or not 1 <= count <= _MOST_EXAMPLES:
            raise FederationError(
                f"client {update.client_id} counts {count!r} examples; a whole number from 1 is wanted"
            )
        for key, before in previous.items():
            problem = _problem(update.shared[key], before)
            if problem:
                raise FederationError(f"client {update.client_id} sent a tensor {key} that is {problem}")
    result: Tensors = {}
    for key, before in previous.items():
        weights = [float(update.num_examples if weight is None else weight(update, key)) for update in ordered]
        for update, own in zip(ordered, weights, strict=True):
            if not 0 <= own < math.inf:
                raise FederationError(
                    f"client {update.client_id} weighs {own} in {key}; a finite number from 0 is wanted"
                )
        total = sum(weights)
        if total <= 0:
            result[key] = before.clone()
            continue
        summed = torch.zeros(before.shape, dtype=torch.float64)
        for update, share in zip(ordered, weights, strict=True):
            summed += update.shared[key].to(torch.float64) * (share / total)
        result[key] = summed.to(before.dtype)
    return result


def _problem(value: Tensor, before: Tensor) -> str:
    """Why a tensor cannot be averaged; "" where it can."""
    if value.shape != before.shape:
        return f"of shape {tuple(value.shape)}"
    if not value.is_floating_point():
        return f"of type {value.dtype}"
    return "" if bool(value.isfinite().all()) else "not finite"
