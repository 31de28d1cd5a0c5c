"""ART's attacks through the bridge: they lower accuracy, keep their budget, and agree with a plain loop."""

import pytest
import torch

import medfedpure
from medfedpure.core.errors import ConfigError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.views import bpda_view, static_view


@pytest.fixture(scope="module")
def victim():
    """A linear classifier of bright against dark, with images near its boundary."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack((-torch.ones(64), torch.ones(64))))
        model[1].bias.copy_(torch.tensor([32.0, -32.0]))
    shift = torch.linspace(-0.02, 0.02, 20)[:, None, None, None]
    noise = 0.1 * torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (0.5 + shift + noise - noise.mean((1, 2, 3), keepdim=True)).clamp(0, 1)
    return model, images, model(images).argmax(1)


@pytest.mark.parametrize("name", ["fgsm", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_attack_fools_within_its_budget(victim, name, norm):
    model, images, labels = victim
    eps = 0.03 if norm == "linf" else 0.24
    options = {"step": eps / 4} if name == "pgd" else {}
    result = medfedpure.create("attack", name, norm=norm, eps=eps, **options)(model, images, labels)
    assert float(result.success.float().mean()) > 0.8
    assert float(result.distance.max()) <= eps * 1.0001


def test_pgd_equals_a_plain_loop(victim):
    model, images, labels = victim
    ours = medfedpure.create("attack", "pgd", eps=0.015, step=0.003, steps=7)(model, images, labels).images
    current = images.clone()
    for _ in range(7):
        current.requires_grad_(True)
        loss = torch.nn.functional.cross_entropy(model(current), labels)
        (gradient,) = torch.autograd.grad(loss, current)
        moved = current.detach() + 0.003 * gradient.sign()
        current = torch.minimum(torch.maximum(moved, images - 0.015), images + 0.015).clamp(0, 1)
    assert torch.allclose(ours, current, atol=1e-5)


@pytest.mark.parametrize(
    ("attack", "eps", "options"),
    [
        ("AutoProjectedGradientDescent", 0.03, {"eps_step": 0.01, "max_iter": 5, "nb_random_init": 1}),
        ("CarliniL2Method", None, {"max_iter": 5, "binary_search_steps": 3, "initial_const": 1.0}),
        ("SquareAttack", 0.05, {"max_iter": 40}),
    ],
)
def test_any_art_attack_runs_by_name(victim, attack, eps, options):
    model, images, labels = victim
    made = medfedpure.create("attack", "art", attack=attack, eps=eps, options=options)
    result = made(model, images, labels)
    assert float(result.success.float().mean()) > 0.8
    assert attack in result.description


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"attack": "Nothing"}, "no evasion attack 'Nothing'"),
        ({"options": {"epsilon": 1}}, "has no option epsilon; it has .*eps_step"),
        ({"attack": "CarliniL2Method"}, "takes no eps"),
        ({"eps": None}, "needs an eps"),
    ],
)
def test_what_art_does_not_have_is_refused(options, text):
    with pytest.raises(ConfigError, match=text):
        medfedpure.create("attack", "art", **options)


def test_targets_are_reached(victim):
    model, images, labels = victim
    targets = torch.ones_like(labels)
    result = medfedpure.create("attack", "pgd", eps=0.05, step=0.02)(model, images, labels, targets=targets)
    assert bool(result.success.all())
    assert torch.equal(model(result.images).argmax(1), targets)


def test_model_keeps_its_gradients_and_flags(victim):
    model, images, labels = victim
    medfedpure.create("attack", "pgd")(model, images, labels)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_fractions_are_read_and_typos_refused():
    assert medfedpure.create("attack", "pgd", eps="8/255").config.eps == pytest.approx(8 / 255)
    with pytest.raises(ConfigError, match="unknown key"):
        medfedpure.create("attack", "pgd", epsilon=0.1)


def test_bpda_sees_through_a_purifier_without_gradients(victim):
    model, images, labels = victim

    class Rounding(type(medfedpure.create("purifier", "median"))):
        def purify(self, batch, strength, *, streams):
            result = super().purify(batch, strength, streams=streams)
            return type(result)((batch * 255).round() / 255, result.nfe)

    chain = DefendedClassifier(model, purifier=Rounding(), policy="purify_all")
    attack = medfedpure.create("attack", "pgd", eps=0.03, step=0.01)
    blind = attack(chain, images, labels).success.float().mean()
    seeing = attack(bpda_view(chain), images, labels).success.float().mean()
    assert float(blind) < 0.2 < 0.8 < float(seeing)
    assert "ignores the defence" in static_view(chain).name
