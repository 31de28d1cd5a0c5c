"""Two clients' linear models, and what plain torch formulas say of them: the reference for every update rule.

The model is softmax(W x + b) on 1x2 images; one round is a few full-batch steps of plain gradient descent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.personalization import ClientRound, LocalResult, PersonalizationStrategy, Tensors, Update
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.trainer import LoopTrainer

RATE, STEPS, TOLERANCE = 0.5, 4, 1e-6
SIZES = {"north": 12, "south": 4}


class PlainDescent(ClassificationTask):
    """Cross-entropy without augmentation, by gradient descent without momentum."""

    def __init__(self) -> None:
        super().__init__(Augmentation(flip=False, shift=0))

    def optimizer(self, parameters: Sequence[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=config.learning_rate)


class Linear(nn.Module):
    """A body that is one matrix, a head that is an affine map; between them BatchNorm where asked for."""

    def __init__(self, normalized: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(2, 2, bias=False)
        self.norm = nn.BatchNorm1d(2) if normalized else nn.Identity()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.body.weight.copy_(torch.tensor([[1.0, 0.2], [-0.3, 0.8]]))
            self.head.weight.copy_(torch.tensor([[0.4, -0.5], [-0.1, 0.6]]))
            self.head.bias.copy_(torch.tensor([0.1, -0.1]))

    def head_keys(self) -> frozenset[str]:
        return frozenset({"head.weight", "head.bias"})

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.body(images.flatten(1))))
        return logits


WEIGHTS = ("body.weight", "head.weight", "head.bias")


def two_clients() -> dict[str, ImageDataset]:
    """Two clients of different size whose labels follow different rules."""
    generator = torch.Generator().manual_seed(3)
    made = {}
    for place, (name, size) in enumerate(SIZES.items()):
        pixels = torch.randint(0, 256, (size, 1, 1, 2), dtype=torch.uint8, generator=generator)
        labels = (pixels[:, 0, 0, place] > 127).long()
        made[name] = ImageDataset(pixels, labels, torch.arange(size), ("no", "yes"))
    return made


def client_round(
    strategy: PersonalizationStrategy,
    data: ImageDataset,
    name: str,
    *,
    number: int = 1,
    shared: Tensors | None = None,
    private: Tensors | None = None,
    make_model: Callable[[], nn.Module] = Linear,
) -> ClientRound:
    """Round `number` of 2, STEPS steps long, each over all images of the client."""
    return ClientRound(
        round=number,
        rounds=2,
        client_id=name,
        shared=strategy.initial_shared(make_model, 0) if shared is None else shared,
        private=private or {},
        make_model=make_model,
        train=data,
        validation=None,
        config=strategy.client_config(number, name, []),
        seed=5,
        task=PlainDescent(),
        training=TrainingConfig(
            steps=2 * STEPS, batch_size=len(data), learning_rate=RATE, warmup=0, weight_decay=0, clip_norm=1e6
        ),
        trainer=LoopTrainer(),
    )


@dataclass(frozen=True)
class TwoRounds:
    """What two rounds of both clients left behind."""

    shared: Tensors
    results: Mapping[str, LocalResult]
    models: Mapping[str, nn.Module]


def run(
    strategy: PersonalizationStrategy,
    clients: Mapping[str, ImageDataset],
    rounds: int = 2,
    make_model: Callable[[], nn.Module] = Linear,
) -> TwoRounds:
    """Rounds of both clients, as a federation has them."""
    shared = strategy.initial_shared(make_model, 0)
    private: dict[str, Tensors] = {name: {} for name in clients}
    done: dict[str, LocalResult] = {}
    for number in range(1, rounds + 1):
        for name, data in clients.items():
            r = client_round(
                strategy,
                data,
                name,
                number=number,
                shared=shared,
                private=private[name],
                make_model=make_model,
            )
            done[name] = strategy.local_update(r)
            private[name] = done[name].private
        updates = [Update(name, d.shared, d.num_examples, d.metrics) for name, d in done.items()]
        shared = strategy.aggregate(number, shared, updates)
    models = {
        name: strategy.personal_model(
            client_round(
                strategy, data, name, number=rounds, shared=shared, private=private[name], make_model=make_model
            )
        )
        for name, data in clients.items()
    }
    return TwoRounds(shared, done, models)


# -- the reference: weights as a plain dictionary, gradients of the formula of the loss ---------------------------


def start() -> Tensors:
    return {key: value.detach().clone() for key, value in Linear().state_dict().items()}


def rates(number: int) -> list[float]:
    """The cosine from 1 down to 2 % of the peak, without a warm-up, over both rounds."""
    places = torch.arange(STEPS * (number - 1), STEPS * number, dtype=torch.float64)
    return (RATE * (0.02 + 0.49 * (1 + torch.cos(torch.pi * places / (2 * STEPS))))).tolist()


def losses_of(w: Tensors, x: Tensor, labels: Tensor) -> Tensor:
    """-log softmax_y(W_h W_b x + b) of flat images `(N, 2)`."""
    logits = x @ w["body.weight"].T @ w["head.weight"].T + w["head.bias"]
    return logits.logsumexp(1) - logits.gather(1, labels[:, None])[:, 0]


def losses(w: Tensors, data: ImageDataset) -> Tensor:
    """-log softmax_y(W_h W_b x + b) of each image."""
    return losses_of(w, data.pixels.float().flatten(1) / 255, data.labels)


def descend(
    w: Tensors, loss: Callable[[Tensors], Tensor], steps: Sequence[float], keys: Sequence[str] = WEIGHTS
) -> Tensors:
    """w <- w - rate * gradient, for some of the weights."""
    for rate in steps:
        free = {key: w[key].clone().requires_grad_(True) for key in keys}
        gradients = torch.autograd.grad(loss({**w, **free}), list(free.values()))
        w = {**w, **{key: w[key] - rate * g for key, g in zip(keys, gradients, strict=True)}}
    return w


def mean(parts: Mapping[str, Tensors], keys: Sequence[str]) -> Tensors:
    """(12 north + 4 south) / 16."""
    return {key: 0.75 * parts["north"][key] + 0.25 * parts["south"][key] for key in keys}


def pull(w: Tensors, anchor: Tensors, strength: float) -> Tensor:
    total = torch.zeros(())
    for key in WEIGHTS:
        total = total + ((w[key] - anchor[key]) ** 2).sum()
    return strength / 2 * total


def assert_agree(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for key, value in wanted.items():
        torch.testing.assert_close(
            found[key], value, rtol=0, atol=TOLERANCE, msg=lambda text, key=key: f"{key}: {text}"
        )
