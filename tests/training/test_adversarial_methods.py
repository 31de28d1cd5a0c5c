"""The methods of adversarial training: what each is at its limits, what it leaves alone, and that it can be resumed."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from adversarial_training import (
    BUDGET,
    DATA,
    HALF,
    METHODS,
    PLAIN,
    VARIED,
    against,
    batch,
    in_training,
    network,
    same,
    trained,
)
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.dataset import Batch
from medfedpure.core.errors import ConfigError, TrainingError
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.testing.checking import assert_equal, module_unchanged, unchanged
from medfedpure.training.adversarial import AdversarialTask, against_weights
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.crafting import SameDraws, perturb
from medfedpure.training.loop import train

# -- limits, at which a method is another one ---------------------------------------------------------------------


@pytest.mark.parametrize("inner", [PLAIN, VARIED])
def test_trades_with_beta_zero_is_plain_training(inner: ClassificationTask) -> None:
    assert_equal(trained(against(HALF, inner, method="trades", beta=0)), trained(inner), "beta 0")


@pytest.mark.parametrize("method", ["pgd", "trades"])
def test_awp_with_gamma_zero_is_training_without(method: str) -> None:
    without = trained(against(HALF, VARIED, method=method))
    assert_equal(trained(against(HALF, VARIED, method=method, awp=0, awp_start=0.3)), without, "gamma 0")
    assert not same(trained(against(HALF, VARIED, method=method, awp=0.02)), without), "gamma does nothing"


@pytest.mark.parametrize("method", ["pgd", "fast", "trades"])
def test_an_eps_of_zero_is_plain_training(method: str) -> None:
    plain = trained(VARIED)
    assert_equal(trained(against(HALF, VARIED, method=method, eps=0, awp=0.01)), plain, "eps 0")
    early = TrainingConfig.parse(BUDGET, steps=12)
    zero = against(HALF, VARIED, method=method, eps_zero=0.5, eps_full=1)
    first_half = {"budget": early, "window": (0, 6)}
    assert_equal(trained(zero, **first_half), trained(VARIED, **first_half), "before eps_zero")
    assert not same(trained(zero, early), trained(VARIED, early)), "eps stays 0 for ever"


@pytest.mark.parametrize("method", ["pgd", "fast", "trades"])
def test_what_is_learned_differs_from_the_augmented_images_by_all_of_eps(method: str) -> None:
    turned = ClassificationTask(Augmentation(rotation=45, stretch=0.3, shift=4))
    settings = AdversarialTraining(share=1, eps=0.03, step=0.03, steps=2, method=method)
    task, model = against(settings, turned), network().train()
    given, streams = batch()
    seen: list[Tensor] = []
    with in_training(task, model):
        first = next(model.children())
        handle = first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        task.loss(model, given, streams)
        handle.remove()
    assert model.training
    shown = turned.inputs(model, given, streams)
    attacked = seen[-1][-len(shown) :]
    inside = (shown > 0.05) & (shown < 0.95)
    gap = (attacked - shown).abs()
    assert float(gap.max()) <= 0.03 + 1e-6
    assert float((gap[inside] > 0.029).float().mean()) > 0.5, "turned after the attack, a perturbation is smoothed"


def test_two_sets_of_a_model_without_batchnorm_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(TrainingError, match="Sequential has none"):
        train(model, against(HALF, normalization="dual"), DATA, BUDGET, seed=0)


def test_awp_where_nothing_can_be_moved_is_plain_adversarial_training() -> None:
    found = []
    for awp in (0.0, 0.05):
        model = network()
        biases = [parameter for parameter in model.parameters() if parameter.ndim < 2]
        train(model, against(HALF, awp=awp), DATA, BUDGET, seed=0, parameters=biases)
        found.append(model.state_dict())
    assert_equal(*found, "awp of biases")


def test_the_schedule_of_eps() -> None:
    rising = AdversarialTraining(eps=0.04, eps_zero=0.25, eps_full=0.75, steps=5, step=None)
    found = [rising.at(progress).eps for progress in (0, 0.25, 0.375, 0.5, 0.75, 0.99)]
    assert found == pytest.approx([0, 0, 0.01, 0.02, 0.04, 0.04])
    assert rising.at(0.5).step_size == pytest.approx(2.5 * 0.02 / 5)
    sudden = AdversarialTraining(eps=0.04, eps_zero=0.5, eps_full=0.5)
    assert [sudden.at(progress).eps for progress in (0.49, 0.5)] == [0, 0.04]
    assert AdversarialTraining(eps=0.04).at(0.0).eps == 0.04
    assert AdversarialTraining.parse(step="auto").step is None


def test_each_step_of_a_window_has_the_eps_of_the_whole_schedule() -> None:
    seen: list[float] = []

    class Listening(AdversarialTask):
        def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
            seen.append(self.settings.at(self._progress).eps)
            return super().loss(model, batch, streams)

    model, settings = network(), HALF.model_copy(update={"eps_full": 1.0})
    for window in ((0, 2), (2, 6)):
        train(model, Listening(PLAIN, settings, PLAIN), DATA, BUDGET, seed=0, window=window)
    assert seen == pytest.approx([0.05 * step / 6 for step in range(6)])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 1.0, "method": "fast", "random_start": False}, "random_start"),
        ({"share": 1.0, "method": "trades", "random_start": False}, "random_start"),
        ({"method": "trades", "eps": 0.01}, "share is 0"),
        ({"awp": 0.01}, "share is 0"),
        ({"normalization": "dual"}, "share is 0"),
        ({"eps_zero": 0.5, "eps_full": 0.2}, "eps_full"),
        ({"eps_zero": 0.5}, "eps_full"),
        ({"eps_zero": 1, "eps_full": 1}, "eps_zero"),
        ({"normalization": "dual", "share": 1.0}, "lower share"),
        ({"step": "none"}, "a number or a fraction"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        AdversarialTraining.parse(options)


# -- formulas -----------------------------------------------------------------------------------------------------


def test_trades_is_its_formula_with_all_images_in_one_pass() -> None:
    model, (given, streams) = network().train(), batch()
    model[4].p = 0.0
    task = against(HALF, share=1, method="trades", beta=3.0)
    moved = perturb(model, given, streams, task.settings, PLAIN)
    before = copy.deepcopy(model)
    loss = task.loss(model, given, streams)
    logits = before(torch.cat((given.images, moved)))
    clean, attacked = logits[:16].log_softmax(1), logits[16:].log_softmax(1)
    divergence = (clean.exp() * (clean - attacked)).sum(1).mean()
    torch.testing.assert_close(loss, functional.cross_entropy(logits[:16], given.labels) + 3 * divergence)
    assert float(divergence.detach()) > 0
    assert_equal(dict(model.named_buffers()), dict(before.named_buffers()), "running statistics are of both")


def test_the_attack_of_trades_raises_the_divergence_and_keeps_its_budget() -> None:
    model, (given, streams) = network().eval(), batch()
    settings = AdversarialTraining(share=1, method="trades", eps=0.05, step=None, steps=5)
    moved = perturb(model, given, streams, settings, PLAIN)
    start = perturb(model, given, streams, settings.model_copy(update={"step": 0.0}), PLAIN)
    clean = model(given.images).log_softmax(1)
    found = [
        functional.kl_div(model(x).log_softmax(1), clean, log_target=True, reduction="sum").item()
        for x in (start, moved)
    ]
    assert found[1] > 2 * found[0] > 0
    assert float((moved - given.images).abs().max()) <= 0.05 + 1e-6


def test_fast_takes_one_step_of_one_and_a_quarter_eps_from_a_random_point() -> None:
    model, (given, streams) = network().eval(), batch()
    settings = AdversarialTraining(share=1, method="fast", eps=0.05)
    moved = perturb(model, given, streams, settings, PLAIN)
    start = (given.images + 0.05 * (2 * streams.uniform((1, 16, 16), stage="adversarial start") - 1)).clamp(0, 1)
    start.requires_grad_(True)
    (gradient,) = torch.autograd.grad(PLAIN.loss(model, replace(given, images=start), streams), start)
    wanted = (start + 1.25 * 0.05 * gradient.sign()).clamp(given.images - 0.05, given.images + 0.05).clamp(0, 1)
    torch.testing.assert_close(moved, wanted.detach())


def test_awp_takes_the_gradient_at_the_moved_weights_and_leaves_them() -> None:
    model, (given, streams) = network().train(), batch()
    model[4].p = 0.0
    other = copy.deepcopy(model)
    with unchanged(dict(model.named_parameters()), "against_weights"):
        against_weights(model, lambda: PLAIN.loss(model, given, streams), 0.1).backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    PLAIN.loss(copy.deepcopy(other), given, streams)
    PLAIN.loss(other, given, streams).backward()
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                weight += 0.1 * weight.norm() * weight.grad / weight.grad.norm()
    other.zero_grad()
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    PLAIN.loss(other, given, streams).backward()
    torch.testing.assert_close(found, {name: weight.grad for name, weight in other.named_parameters()})
    assert int(buffers["2.num_batches_tracked"]) == 1, "running statistics moved while the weights were sought"


@pytest.mark.parametrize("name", ["awp", "trades, dual, awp"])
def test_a_training_whose_steps_are_nothing_leaves_the_weights_of_awp_exactly(name: str) -> None:
    still = TrainingConfig.parse(BUDGET, learning_rate=1e-30, weight_decay=0)
    found, start = trained(against(HALF, **METHODS[name]), still), network().state_dict()
    assert_equal(
        {key: found[key] for key in ("1.weight", "5.weight")}, {k: start[k] for k in ("1.weight", "5.weight")}, name
    )


# -- crafting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["pgd", "fast", "trades"])
def test_crafting_computes_gradients_of_images_alone(method: str) -> None:
    asked: list[bool] = []

    class Watching(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            asked.append(self.weight.requires_grad)
            return super().forward(images)

    torch.manual_seed(0)
    model, (given, streams) = nn.Sequential(nn.Flatten(), Watching(256, 2)).train(), batch()
    with module_unchanged(model, "perturb"):
        perturb(model, given, streams, HALF.model_copy(update={"method": method}), VARIED)
    assert len(asked) == {"pgd": 2, "fast": 1, "trades": 3}[method], "a pass more than is needed"
    assert not any(asked)
    assert all(weight.grad is None for weight in model.parameters())


def test_what_is_drawn_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given, streams = batch()
    kept = SameDraws.of(streams)
    for shape, stage in (((3,), "a"), ((), "a"), ((2, 2), "b")):
        assert torch.equal(kept.uniform(shape, stage=stage), streams.uniform(shape, stage=stage))
        assert torch.equal(kept.normal(shape, stage=stage), streams.normal(shape, stage=stage))
    some = torch.tensor([3, 1])
    assert torch.equal(kept.select(some).uniform((3,), stage="a"), streams.select(some).uniform((3,), stage="a"))
    drawn: list[str] = []
    draw = Streams.normal
    monkeypatch.setattr(Streams, "normal", lambda *a, **k: (drawn.append(k["stage"]), draw(*a, **k))[1])
    perturb(network(), given, streams, HALF.model_copy(update={"steps": 4}), VARIED)
    assert drawn == ["noise"]


@pytest.mark.parametrize("name", METHODS)
def test_bfloat16_learns_by_every_method(name: str) -> None:
    half = TrainingConfig.parse(BUDGET, precision="bfloat16", steps=40)
    task = against(HALF, eps=0.01, **METHODS[name])
    model = network()
    before = PLAIN.metrics(model.eval(), DATA)["loss"]
    train(model, task, DATA, half, seed=3)
    assert all(value.dtype == torch.float32 for value in model.parameters())
    assert PLAIN.metrics(model, DATA)["loss"] < before - 0.1
