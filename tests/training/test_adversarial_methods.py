"""The methods of adversarial training: what each is at its limits, what it leaves alone, and that it can be resumed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from medfedpure.core.dataset import Batch
from medfedpure.core.errors import ConfigError, OneStepWarning, TrainingError
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.core.task import Task, beside
from medfedpure.testing import tiny_dataset
from medfedpure.testing.checking import assert_equal, module_unchanged, unchanged
from medfedpure.training.adversarial import AdversarialTask, against_weights
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.crafting import SameDraws, lent, perturb
from medfedpure.training.loop import train
from medfedpure.training.second_set import installed

DATA = tiny_dataset(32, size=16)
PLAIN = ClassificationTask(Augmentation(flip=False, shift=0))
VARIED = ClassificationTask(Augmentation(intensity=0.2, noise=0.05, rotation=10))
BUDGET = TrainingConfig(steps=6, batch_size=8, learning_rate=1e-2, warmup=0.0, checks=6)
HALF = AdversarialTraining(share=0.5, eps=0.05, step="auto", steps=2)
METHODS: dict[str, dict[str, Any]] = {
    "pgd": {},
    "fast": {"method": "fast"},
    "trades": {"method": "trades"},
    "awp": {"awp": 0.01, "awp_start": 0.5},
    "trades, awp": {"method": "trades", "awp": 0.01},
    "fast, awp": {"method": "fast", "awp": 0.01},
    "dual": {"normalization": "dual"},
    "dual_clean": {"normalization": "dual_clean"},
    "fast, dual": {"method": "fast", "normalization": "dual"},
    "trades, dual, awp": {"method": "trades", "normalization": "dual", "awp": 0.01},
    "schedule": {"eps_zero": 0.2, "eps_full": 0.8},
}


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Flatten(), nn.Linear(256, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))
    return nn.Sequential(*layers)


def against(settings: AdversarialTraining, inner: Task = PLAIN, **changed: Any) -> AdversarialTask:
    return AdversarialTask(inner, AdversarialTraining.parse(settings, **changed), inner)


def trained(task: Task, budget: TrainingConfig = BUDGET, **options: Any) -> dict[str, Tensor]:
    model = network()
    train(model, task, DATA, budget, seed=3, **options)
    return model.state_dict()


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[key], two[key]) for key in two)


@contextmanager
def in_training(task: Task, model: nn.Module) -> Iterator[None]:
    with task.around(model, list(model.parameters())):
        model.train()
        yield


def batch() -> tuple[Batch, Streams]:
    given = DATA.batch(torch.arange(16))
    return given, Streams(5, given.ids)


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


# -- two sets of BatchNorm ----------------------------------------------------------------------------------------


def moved_by(name: str, kind: str) -> tuple[bool, bool]:
    """Whether a pass of only such images moves the running mean of the model's own layer, and that of the second."""
    model, (given, streams) = network(), batch()
    task = against(HALF, **METHODS[name])
    with in_training(task, model):
        before = {key: value.clone() for key, value in model.state_dict().items() if "running_mean" in key}
        with task._routed(attacked=kind == "attacked"):
            PLAIN.loss(model, given, streams)
        after = model.state_dict()
        own, second = (not torch.equal(before[k], after[k]) for k in ("2.running_mean", "2.second.running_mean"))
    return own, second


def test_each_kind_of_images_moves_its_own_statistics_alone() -> None:
    assert moved_by("dual", "attacked") == (True, False)
    assert moved_by("dual", "clean") == (False, True)
    assert moved_by("dual_clean", "attacked") == (False, True)
    assert moved_by("dual_clean", "clean") == (True, False)


@pytest.mark.parametrize("name", ["dual", "dual_clean", "fast, dual", "trades, dual, awp"])
def test_the_loss_sends_clean_and_attacked_images_where_they_belong(name: str) -> None:
    given, streams = batch()
    torch.manual_seed(0)
    model, task = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(256), nn.Linear(256, 2)), against(HALF, **METHODS[name])
    seen: dict[str, list[Tensor]] = {"all": [], "second": []}

    def look(place: str) -> Any:
        def hook(layer: nn.Module, given: tuple[Tensor], answer: Tensor) -> None:
            if layer.training and layer.track_running_stats:
                seen[place].append(given[0].detach())

        return hook

    with in_training(task, model):
        model[1].register_forward_hook(look("all"))
        model[1].second.register_forward_hook(look("second"))
        task.loss(model, given, streams)
    benign = {tuple(row.tolist()) for row in given.images.flatten(1)}
    kinds = {
        place: [{"clean" if tuple(row.tolist()) in benign else "attacked" for row in rows} for rows in passes]
        for place, passes in seen.items()
    }
    assert kinds["second"] == [{"clean" if METHODS[name]["normalization"] == "dual" else "attacked"}]
    assert len(kinds["all"]) == 2
    assert sorted(kinds["all"], key=str) == [{"attacked"}, {"clean"}]
    assert sum(map(len, seen["all"])) == (24 if task.settings.method == "trades" else 16)


@pytest.mark.parametrize("name", ["dual", "trades, dual, awp"])
def test_after_the_training_the_model_is_a_plain_one(name: str) -> None:
    model = network()
    keys = list(model.state_dict())
    train(model, against(HALF, **METHODS[name]), DATA, BUDGET, seed=3)
    assert list(model.state_dict()) == keys
    assert [type(part) for part in model.modules()] == [type(part) for part in network().modules()]
    assert vars(model[2]).keys() == vars(network()[2]).keys()
    copied = network()
    copied.load_state_dict(model.state_dict())
    assert torch.equal(copied.eval()(DATA.images), model(DATA.images))


def test_the_second_set_goes_on_where_it_was() -> None:
    model, task = network(), against(HALF, normalization="dual")
    train(model, task, DATA, BUDGET, seed=3)
    kept = {key: value.clone() for key, value in beside(model).items()}
    assert not torch.equal(kept["2.running_mean"], model.state_dict()["2.running_mean"])
    with installed(model, [], doubled=True):
        assert_equal(dict(model[2].second.state_dict()), {k[2:]: v for k, v in kept.items() if k[:2] == "2."}, "second")
        assert torch.equal(model[2].weight, model.state_dict()["2.weight"])


def test_a_layer_that_is_held_still_holds_its_second_set_still() -> None:
    model = network()
    train(model, against(HALF, normalization="dual"), DATA, BUDGET, seed=3)
    kept = {key: value.clone() for key, value in beside(model).items()}
    head = list(model[5].parameters())
    train(model, against(HALF, normalization="dual"), DATA, BUDGET, seed=4, parameters=head)
    assert_equal(beside(model), kept, "the second set of a layer that is not trained")


def test_a_copy_made_while_it_trains_answers_for_itself() -> None:
    model, task = network(), against(HALF, normalization="dual_clean")
    with in_training(task, model):
        copied = copy.deepcopy(model).eval()
        wanted = copied(DATA.images)
        with torch.no_grad():
            model[2].weight.zero_()
            model[2].second.weight.zero_()
        assert torch.equal(copied(DATA.images), wanted)


def test_a_training_that_fails_leaves_a_plain_model() -> None:
    class Failing(ClassificationTask):
        def metrics(self, *given: Any, **options: Any) -> dict[str, float]:
            raise ConnectionError

    model = network()
    with pytest.raises(ConnectionError):
        train(model, against(HALF, Failing(), normalization="dual"), DATA, BUDGET, seed=3, validation=DATA)
    assert list(model.state_dict()) == list(network().state_dict())
    with torch.no_grad(), lent(model):
        model(DATA.images)


@pytest.mark.parametrize("name", ["dual", "fast"])
def test_outside_of_a_training_it_says_so(name: str) -> None:
    given, streams = batch()
    with pytest.raises(TrainingError, match=r"task\.around"):
        against(HALF, **METHODS[name]).loss(network(), given, streams)


def test_methods_for_classifiers_refuse_other_tasks() -> None:
    class Other(Task):
        def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
            return model(batch.images).square().mean()

    for method in ("fast", "trades"):
        with pytest.raises(TrainingError, match='take "pgd" for this part'):
            against(HALF, Other(), method=method)
    task = against(HALF, Other(), normalization="dual", awp=0.01)
    figures = task.metrics(network().eval(), DATA)
    assert figures.keys() == {"loss", "robust_loss"}
    assert task.worth(figures) == (-figures["robust_loss"],)
    train(network(), task, DATA, BUDGET, seed=0)


# -- one step that was learned by heart ---------------------------------------------------------------------------


class Planted(nn.Module):
    """Right everywhere but near the image itself, where a random start with one full step does not come to rest.

    The true class is read from the first pixel. A wall of another class lies at a small change of the second, which a
    step of 1.25 eps leaps over and a smaller one does not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        truth, change = 8 * (images[:, 0, 0, 0] - 0.5), images[:, 0, 0, 1] - 0.5
        wall = (-((change - 0.03) / 0.012).square()).exp()
        margin = truth * (1 - 2 * wall) * self.scale
        return torch.stack((-margin, margin), 1)


def planted() -> tuple[Batch, Streams]:
    images = torch.full((32, 1, 1, 2), 0.5)
    labels = torch.arange(32) % 2
    images[:, 0, 0, 0] = 0.1 + 0.8 * labels
    ids = torch.arange(32)
    return Batch(images, labels, ids), Streams(1, ids)


def test_the_watch_of_fast_fires_on_a_planted_collapse_and_goes_on_with_several_steps() -> None:
    (given, streams), model = planted(), Planted()
    settings = AdversarialTraining(share=1, method="fast", eps=0.1, step=0.01, steps=20)
    task = AdversarialTask(PLAIN, settings, PLAIN)
    with in_training(task, model):
        task.at(20, 1000)
        one = task.loss(model, given, streams)  # so early a network may not be robust yet, and nobody judges it
        task.at(220, 1000)
        with pytest.warns(OneStepWarning, match=r"step 220 .* of 32 images .* PGD of 20 steps"):
            several = task.loss(model, given, streams)
        task.at(221, 1000)
        torch.testing.assert_close(task.loss(model, given, streams), several)
    assert float(several.detach()) > 2 * float(one.detach())
    with in_training(task, model):
        task.at(222, 1000)
        torch.testing.assert_close(task.loss(model, given, streams), several)
    assert int(beside(model)["several_steps_wanted"]) == 1


def test_the_watch_is_silent_where_both_attacks_say_the_same() -> None:
    trained(against(HALF, method="fast"), TrainingConfig.parse(BUDGET, steps=45))


# -- checkpoints and the best state -------------------------------------------------------------------------------


class CutOff(AdversarialTask):
    """Stops like a lost connection."""

    left = 4

    def recipe(self) -> dict[str, Any]:
        return AdversarialTask(self.inner, self.settings, self.objective).recipe()

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise ConnectionError
        return super().loss(model, batch, streams)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_that_was_cut_off_ends_the_same(name: str, tmp_path: Path) -> None:
    settings = AdversarialTraining.parse(HALF, **METHODS[name])
    budget = TrainingConfig.parse(BUDGET, ema=0.9, decay_all=False)
    options = {"validation": DATA, "checkpoint": tmp_path / "checkpoint"}
    whole = trained(AdversarialTask(VARIED, settings, VARIED), budget, validation=DATA)
    with pytest.raises(ConnectionError):
        trained(CutOff(VARIED, settings, VARIED), budget, **options)
    assert_equal(trained(AdversarialTask(VARIED, settings, VARIED), budget, **options), whole, name)


def test_what_the_watch_found_survives_a_checkpoint(tmp_path: Path) -> None:
    task = against(HALF, method="fast")

    class Found(AdversarialTask):
        def recipe(self) -> dict[str, Any]:
            return task.recipe()

        def at(self, step: int, steps: int) -> None:
            assert self._added is not None
            self._added.several_steps = True
            if step == 2:
                raise ConnectionError

    with pytest.raises(ConnectionError):
        trained(Found(PLAIN, task.settings, PLAIN), checkpoint=tmp_path / "checkpoint")
    model = network()
    train(model, task, DATA, BUDGET, seed=3, checkpoint=tmp_path / "checkpoint")
    assert int(beside(model)["several_steps_wanted"]) == 1


class Scripted(AdversarialTask):
    """Figures as written down: balanced accuracy under attack, loss under attack, loss."""

    def __init__(self, rows: Sequence[tuple[float, float, float]]) -> None:
        super().__init__(PLAIN, HALF, PLAIN)
        self.rows, self.seen = rows, []

    def metrics(self, model: nn.Module, *given: Any, **options: Any) -> dict[str, float]:
        accuracy, under_attack, loss = self.rows[len(self.seen)]
        self.seen.append(copy.deepcopy(model.state_dict()))
        return {"loss": loss, "robust_balanced_accuracy": accuracy, "robust_loss": under_attack}


def test_the_best_weights_are_those_of_the_highest_robust_accuracy() -> None:
    rows = [
        (0.5, 0.9, 0.1),
        (0.7, 0.9, 0.5),
        (0.7, 0.8, 0.6),
        (0.7, 0.8, 0.2),
        (float("nan"), 0.1, 0.1),
        (0.6, 0.1, 0.1),
    ]
    task, model = Scripted(rows), network()
    log = train(model, task, DATA, BUDGET, seed=0, validation=DATA)
    best = {key: value for key, value in task.seen[2].items() if value.is_floating_point()}
    assert_equal({key: model.state_dict()[key] for key in best}, best, "weights of the third check")
    assert log.validation == 0.6
    impatient = train(
        network(), Scripted(rows), DATA, TrainingConfig.parse(BUDGET, patience=1), seed=0, validation=DATA
    )
    assert impatient.steps == 4, "the fourth check is no better than the third"


@pytest.mark.parametrize("method", ["pgd", "fast", "trades"])
def test_robust_figures_are_of_several_whole_steps_and_repeat(method: str) -> None:
    model = network().eval()
    found = [
        against(HALF, method=changed, eps_zero=0.4, eps_full=0.9).metrics(model, DATA, seed=4, batch_size=size)
        for changed, size in ((method, 32), (method, 32), ("pgd", 8))
    ]
    assert found[0] == found[1]
    assert found[2] == pytest.approx(found[0], abs=1e-5)
    assert found[0]["robust_loss"] > found[0]["loss"] + 0.05


def test_only_matrices_decay_where_it_is_asked() -> None:
    class Nothing(ClassificationTask):
        def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
            return super().loss(model, batch, streams) * 0.0

    start = network().state_dict()
    for decay_all in (True, False):
        budget = TrainingConfig.parse(BUDGET, weight_decay=0.5, decay_all=decay_all)
        found = trained(Nothing(), budget)
        assert float(found["1.weight"].norm()) < 0.99 * float(start["1.weight"].norm())
        assert torch.equal(found["2.weight"], start["2.weight"]) is not decay_all
        assert torch.equal(found["1.bias"], start["1.bias"]) is not decay_all
