"""FedEM (Marfoq et al. 2021, "Federated multi-task learning under a mixture of distributions", arXiv 2108.10252),
and the gate that MedFedPure (arXiv 2511.11625) puts in place of its weights.

Every client draws its data from the same K distributions, in proportions pi of its own. With l_k the loss of expert k,

    E:  q_ik  = pi_k exp(-l_k(x_i, y_i)) / sum_j pi_j exp(-l_j(x_i, y_i))       with the experts that came
    M:  pi_k  = (1/n) sum_i q_ik;   expert_k <- steps on (1/n) sum_i q_ik l_k(x_i, y_i)
    server:  expert_k = sum_c (n_c pi_ck / sum_d n_d pi_dk) expert_k,c

The paper's server takes n_c / n. That presumes steps as small as their gradients, as plain gradient descent makes them.
AdamW moves an expert by full steps at a client that has no use for it, and with n_c / n the experts then stay alike.

With the gate g, pi depends on the image and is learned with the experts, by

    cross-entropy(sum_k g_k(x) softmax_k(x), y)  +  beta ||weights of g||^2  +  gamma entropy(g(x))
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import (
    ClientRound,
    LocalResult,
    PersonalizationStrategy,
    StrategyConfig,
    Tensors,
    Update,
    train_round,
    weighted_mean,
)
from medfedpure.core.registry import create, registry
from medfedpure.core.results import device_of
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.core.task import WrappedTask
from medfedpure.data.augmentation import augment
from medfedpure.models.mixture import Mixture
from medfedpure.training.adversarial import harden
from medfedpure.training.classification import ClassificationTask

_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)\.")
_BATCH = 64


class MixtureConfig(StrategyConfig):
    """How many experts, and what weighs them."""

    experts: int = Field(3, ge=2, description="how many experts all clients share; each is a whole network")
    gate: bool = Field(False, description="weigh the experts for each image by a small network of the client's own")
    gate_width: int = Field(32, ge=1, description="hidden units of the gate")
    beta: float = Field(1e-4, ge=0, description="gate: weight of the squared norm of its weights")
    gamma: float = Field(1e-2, ge=0, description="gate: weight of its mean entropy; more makes it choose one expert")
    weighting: Literal["examples", "responsibilities"] = Field(
        "responsibilities",
        description="a client's part in the mean of an expert: its images times its mixture weight, which the server "
        "then sees; or its images alone, as in the papers, which keeps the weights to the client",
    )

    @model_validator(mode="after")
    def _check_method(self) -> Self:
        if self.adversarial.method == "trades" and not self.gate:
            raise ValueError(
                'adversarial.method "trades" parts the answers of one classifier, and without a gate every expert is '
                'trained by its own: set gate to true, or take "pgd" or "fast"'
            )
        return self


class MixtureOfExperts(PersonalizationStrategy):
    """The experts travel; mixture weights or gate are the client's own and survive rounds. For classifiers only."""

    Config = MixtureConfig

    def network(self, make_model: Callable[[], nn.Module]) -> nn.Module:
        """One module of K copies of `make_model()`; of a classifier plugin's, again one, named `mixture`.

        Raises:
            FederationError: a gate for a module that no classifier plugin built, whose channels are not known.
        """
        config, base = self.config, make_model()
        device = device_of(base)
        if not isinstance(base, ClassifierModel):
            if config.gate:
                raise FederationError(
                    f"a gate needs a model built by a classifier plugin, and {type(base).__name__} is none: "
                    "set gate to false, or build the model by a plugin"
                )
            return Mixture([base, *(make_model() for _ in range(config.experts - 1))]).to(device)
        expert = base.architecture
        architecture = create(
            "classifier",
            "mixture",
            expert=expert.plugin_name or registry().name_of(expert),
            expert_config=expert.config.model_dump(mode="json"),
            experts=config.experts,
            gate=config.gate,
            gate_width=config.gate_width,
        )
        model: ClassifierModel = architecture.create_model(
            in_channels=base.in_channels,
            num_classes=base.num_classes,
            image_size=base.image_size,
            class_names=base.class_names,
        )
        model.origin = base.origin
        for own in mixture_of(model).experts:
            own.load_state_dict(base.network.state_dict())
        return model.to(device)

    def initial_shared(self, make_model: Callable[[], nn.Module], seed: int) -> Tensors:
        """The first expert as `make_model()` gives it, the others drawn anew: equal experts would stay equal.

        Where the model starts from published weights, all experts do, and their heads are drawn anew.

        Raises:
            FederationError: the weights of a module that no plugin built cannot be drawn anew.
        """
        model = self.network(make_model)
        base = make_model()
        first, *others = mixture_of(model).experts
        for place, expert in enumerate(others, start=1):
            expert.load_state_dict(_drawn_anew(base, derive_seed(seed, "expert", place)).state_dict())
            if all(torch.equal(one, two) for one, two in zip(first.parameters(), expert.parameters(), strict=True)):
                raise FederationError(
                    f"no layer of {type(base).__name__} draws new weights in reset_parameters(), so that all experts "
                    "would start and stay equal: build the model by a classifier plugin"
                )
        return self.split(model)[0]

    def is_shared(self, key: str, model: nn.Module) -> bool:
        """The experts travel, the weights and the gate do not."""
        mixture_of(model)
        return _EXPERT.search(key) is not None

    def local_update(self, r: ClientRound) -> LocalResult:
        """One E-step over the client's images and one pass of the M-step; or one pass with the gate.

        Raises:
            FederationError: what is trained is no classifier.
        """
        if not isinstance(r.task, ClassificationTask):
            raise FederationError(
                f"{self.name} trains classifiers, and this part's task is {type(r.task).__name__}: "
                "train it with another strategy, such as 'fedavg' or 'ditto'"
            )
        model = self.personal_model(r)
        mixture = mixture_of(model)
        task: WrappedTask
        if mixture.gate is not None:
            task = GateTask(r.task, self.config.beta, self.config.gamma)
        else:
            responsible = responsibilities(model, self._as_trained(model, r))
            mixture.weights.copy_(responsible.mean(0))
            task = ExpertsTask(r.task, r.train, responsible)
        log = train_round(r, model, task=self.hardened(task, r, objective=r.task))
        metrics = {"train_loss": log.loss}
        if self.reports_weights:
            weights = mixture.weights if mixture.gate is None else _mean_gate(mixture, r.train)
            metrics |= {_weight_name(place): float(weight) for place, weight in enumerate(weights)}
        shared, private = self.split(model)
        return LocalResult(shared, private, len(r.train), metrics)

    @property
    def reports_weights(self) -> bool:
        """Whether the client's mean mixture weights go to the server, as metrics."""
        return bool(self.config.weighting == "responsibilities")

    def aggregate(self, round: int, previous: Tensors, updates: Sequence[Update]) -> Tensors:
        """Each expert's mean over clients.

        Raises:
            FederationError: unusable updates, or updates without the weights that they must report.
        """
        del round
        if self.config.weighting == "examples":
            return weighted_mean(previous, updates)
        reported = {update.client_id: self.reported_weights(update) for update in updates}

        def responsible_for(update: Update, key: str) -> float:
            found = _EXPERT.search(key)
            assert found is not None
            return update.num_examples * reported[update.client_id][int(found[1])]

        return weighted_mean(previous, updates, weight=responsible_for)

    def reported_weights(self, update: Update) -> list[float]:
        """The mixture weights in an update; raises FederationError where they are missing or not a distribution."""
        found = [update.metrics.get(_weight_name(place), -1.0) for place in range(self.config.experts)]
        if min(found) < 0 or abs(sum(found) - 1) > 1e-3:
            raise FederationError(
                f"client {update.client_id} reports the mixture weights {found}; {self.config.experts} numbers are "
                "wanted that are at least 0 and sum to 1: let it use the server's strategy and configuration"
            )
        return found

    def _as_trained(self, model: nn.Module, r: ClientRound) -> list[Batch]:
        """The client's images in order, with their share of adversarial examples, by several steps at any method."""
        device, now = device_of(model), r.window()[0] / r.training.steps
        settings = self.adversarial(r).at(now).model_copy(update={"method": "pgd"})
        seed = derive_seed(r.seed, r.round, "expectation")
        return [
            harden(model, batch.to(device), Streams(seed, batch.ids), settings, r.task)
            for batch in r.train.batches(_BATCH)
        ]


def mixture_of(model: nn.Module) -> Mixture:
    """The mixture in what `network` gave; raises FederationError for any other module."""
    found = next((part for part in model.modules() if isinstance(part, Mixture)), None)
    if found is None:
        raise FederationError(f"{type(model).__name__} is no mixture: pass what the strategy's network() returns")
    return found


def responsibilities(model: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """q `(n, K)` of all images: how probably each expert's distribution is where image and label came from."""
    mixture, rows = mixture_of(model), []
    model.eval()
    with torch.no_grad():
        for batch in batches:
            labels = batch.labels[:, None, None].expand(-1, len(mixture.experts), 1)
            likelihood = mixture.log_probabilities(batch.images).gather(2, labels)[:, :, 0]
            rows.append((mixture.log_weights(batch.images) + likelihood).softmax(1))
    return torch.cat(rows)


class ExpertsTask(WrappedTask):
    """The M-step: each image's loss at each expert, weighted by that expert's responsibility for it.

    Args:
        inner: gives augmentation and label smoothing.
        data: the images to which the responsibilities belong.
        responsible: q `(n, K)`, in the order of the data; held still.
    """

    def __init__(self, inner: ClassificationTask, data: ImageDataset, responsible: Tensor) -> None:
        super().__init__(inner)
        self.classification = inner
        self.ids, order = data.ids.sort()
        self.responsible = responsible[order.to(responsible.device)]

    @property
    def classifies(self) -> bool:
        """No: it asks the experts, each for its own answer."""
        return False

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """(1/N) sum_i sum_k q_ik l_k(x_i, y_i)."""
        images = augment(batch.images, self.classification.augmentation, streams) if model.training else batch.images
        logits = mixture_of(model).log_probabilities(images)
        smoothing = self.classification.label_smoothing
        labels = batch.labels[:, None].expand(logits.shape[:2])
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
        )
        place = torch.searchsorted(self.ids, batch.ids).to(self.responsible.device)
        return (self.responsible[place] * losses.view(logits.shape[:2])).sum(1).mean()


class GateTask(WrappedTask):
    """Cross-entropy of the mixture + beta ||weights of the gate||^2 + gamma entropy(gate), entropy in nats."""

    def __init__(self, inner: ClassificationTask, beta: float, gamma: float) -> None:
        super().__init__(inner)
        self.beta, self.gamma = beta, gamma

    def recipe(self) -> dict[str, Any]:
        """With beta and gamma."""
        return {**super().recipe(), "beta": self.beta, "gamma": self.gamma}

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """The three terms; the entropy is that of the augmented images' gates."""
        mixture = mixture_of(model)
        assert mixture.gate is not None
        seen: list[Tensor] = []
        handle = mixture.gate.register_forward_hook(lambda *passed: seen.append(passed[2].log_softmax(1)))
        try:
            loss = super().loss(model, batch, streams)
        finally:
            handle.remove()
        entropy = -(seen[0].exp() * seen[0]).sum(1).mean()
        for weight in mixture.gate.parameters():
            loss = loss + self.beta * weight.square().sum()
        return loss + self.gamma * entropy


def _drawn_anew(base: nn.Module, seed: int) -> nn.Module:
    """A network as `base`, its weights drawn from the seed."""
    if isinstance(base, ClassifierModel):
        shape: dict[str, Any] = {
            "in_channels": base.in_channels,
            "num_classes": base.num_classes,
            "image_size": base.image_size,
        }
        drawn = base.architecture.create_model(**shape, class_names=base.class_names, seed=seed, weights=None).network
        if base.origin is not None:
            own = base.architecture.unfilled_keys(base.network)
            published = {key: value for key, value in base.network.state_dict().items() if key not in own}
            drawn.load_state_dict(published, strict=False)
        return drawn
    with isolated_rng(seed):
        for part in base.modules():
            reset: Callable[[], None] | None = getattr(part, "reset_parameters", None)
            if reset is not None:
                reset()
    return base


def _mean_gate(mixture: Mixture, data: ImageDataset) -> Tensor:
    device = device_of(mixture)
    with torch.no_grad():
        gates = [mixture.log_weights(batch.images.to(device)).exp() for batch in data.batches(_BATCH)]
    return torch.cat(gates).mean(0)


def _weight_name(place: int) -> str:
    return f"mixture_weight_{place}"
