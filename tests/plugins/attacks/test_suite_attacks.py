"""APGD, FAB and their suite: as strong as the original code, best point, nearest boundary, one part after another."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import medfedpure
from medfedpure.core.attack import ThreatView, length
from medfedpure.core.errors import ConfigError
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.apgd_eot import checkpoints
from medfedpure.plugins.attacks.fab import toward
from medfedpure.plugins.attacks.gradient import random_start
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(120, seed=5)
MODEL = tiny_classifier()
IMAGES, LABELS = DATA.images, MODEL(DATA.images).argmax(1)
NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])


def attack(name="apgd_eot", **options):
    return medfedpure.create("attack", name, **{"eps": 0.05, "steps": 20, "batch_size": 128, **options})


def right(result):
    return int((~result.success).sum())


def linear(classes=3, pixels=64, seed=0):
    """A linear model, and images in the middle of the range, so that distances to its boundaries are known."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, classes, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, pixels, generator=generator))
    images = 0.5 + 0.05 * torch.randn(24, 1, 8, 8, generator=generator)
    return model.requires_grad_(False), images, model(images).argmax(1)


# -- as strong as the original ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps", "apgd", "fab"), [("linf", 0.03, 49, 50), ("l2", 0.5, 24, 28)])
def test_as_many_survive_as_with_the_original_code(norm, eps, apgd, fab):
    """Of 60 images, so many are left by the code of Croce and Hein (pyautoattack 0.2.0) on this model, in 20 steps."""
    for name, theirs in (("apgd_eot", apgd), ("fab", fab)):
        ours = right(attack(name, norm=norm, eps=eps)(MODEL, IMAGES[:60], LABELS[:60]))
        assert abs(ours - theirs) <= 2, f"{name} leaves {ours}"


def test_checkpoints_are_the_paper_s():
    """p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)."""
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(4) == {1: 1, 2: 1, 3: 1, 4: 1}


@NORMS
def test_it_climbs_as_a_plain_loop_does(norm):
    """One image of a smooth model that never falls: the same best point, step by step."""
    eps, steps = (0.05, 30) if norm == "linf" else (0.4, 30)
    image, label = IMAGES[:1].double(), LABELS[:1]
    flat = nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.Tanh(), nn.Linear(8, 2)).double().requires_grad_(False)
    with torch.no_grad():
        for place, weight in enumerate(flat.parameters()):
            weight.copy_(torch.cos(torch.arange(weight.numel()) * 0.7 + place).view_as(weight) / weight.numel() ** 0.5)
        flat[3].bias[label] += 5.0

    def grade(x):
        leaf = x.clone().requires_grad_(True)
        loss = cross_entropy(flat(leaf), label)
        return torch.autograd.grad(loss, leaf)[0], loss.item()

    def near(x):
        change = x - image
        if norm == "linf":
            return (image + change.clamp(-eps, eps)).clamp(0, 1)
        return (image + change * min(1.0, eps / float(change.norm()))).clamp(0, 1)

    x = near(random_start(image, norm, eps, Streams.for_batch(0, 1), 0))
    gradient, loss = grade(x)
    before, best, best_gradient, best_loss, size = x, x, gradient, loss, 2 * eps
    gained, since, stretch, loss_then, halved = 0, 0, max(int(0.22 * steps), 1), loss, True
    for step in range(steps):
        along = gradient.sign() if norm == "linf" else gradient / gradient.norm()
        moved = near(x + size * along)
        if step:
            moved = near(x + 0.75 * (moved - x) + 0.25 * (x - before))
        before, x, last = x, moved, loss
        gradient, loss = grade(x)
        gained, since = gained + (loss > last), since + 1
        if loss > best_loss:
            best, best_gradient, best_loss = x, gradient, loss
        if since == stretch:
            stuck = not halved and loss_then >= best_loss
            halved = gained <= 0.75 * stretch or stuck
            loss_then, gained, since, stretch = best_loss, 0, 0, max(stretch - max(int(0.03 * steps), 1), 1)
            if halved:
                size, x, gradient = size / 2, best, best_gradient
    found = attack(norm=norm, eps=eps, steps=steps)(flat, image, label)
    assert not found.success
    assert float(cross_entropy(flat(found.images), label)) == pytest.approx(best_loss, rel=1e-3)
    assert torch.allclose(found.images, best, atol=1e-4)


# -- APGD ----------------------------------------------------------------------------------------------------------


def test_the_best_point_is_returned_and_not_the_last():
    """A hill with its top at an eighth of the budget: the last step of a short climb is beyond it."""
    top = IMAGES[:4] + 0.0125

    def hill(images):
        height = 1 - (images - top).abs().flatten(1).mean(1)
        return torch.stack((2 - height, height), 1)

    labels, seen = torch.zeros(4, dtype=torch.int64), []

    def looked(images):
        seen.append(hill(images.detach())[:, 1])
        return hill(images)

    found = attack(steps=3, eps=0.1).generate(ThreatView(looked), IMAGES[:4], labels, streams=Streams.for_batch(0, 4))
    heights = torch.stack(seen)
    assert torch.allclose(hill(found)[:, 1], heights.amax(0))
    assert bool((heights[-1] < heights.amax(0)).any())


def test_who_has_fallen_leaves_and_costs_nothing_more():
    rows = []

    def counted(images):
        rows.append(len(images))
        return MODEL(images)

    result = attack(eps=0.3)(ThreatView(counted), IMAGES, LABELS)
    assert bool(result.success.all())
    assert sum(rows) < 8 * len(IMAGES)


@pytest.mark.parametrize(("patience", "looked"), [(1, 2), (2, 5), (3, 6)])
def test_one_lucky_look_is_no_fall(patience, looked):
    """A noisy view: looks 2, 4, 5 and 6 fool it."""
    answers, taken = iter([False, True, False, True, True, True, False, False]), []

    def noisy(images):
        taken.append(next(answers))
        own = (1 if taken[-1] else -1) + 0 * images.mean((1, 2, 3))
        return torch.stack((-own, own), 1)

    labels = torch.zeros(1, dtype=torch.int64)
    made = attack(steps=7, patience=patience)
    made.generate(ThreatView(noisy), IMAGES[:1], labels, streams=Streams.for_batch(0, 1))
    assert len(taken) == looked


def test_looks_are_averaged_where_a_view_is_noisy():
    generator = torch.Generator().manual_seed(0)
    seen = []

    def noisy(images):
        seen.append(len(images))
        return MODEL(images + 0.3 * torch.randn(images.shape, generator=generator))

    few = {"steps": 10, "eps": 0.03, "loss": "cw", "batch_size": 240}
    found = attack(eot=6, patience=5, **few)(ThreatView(noisy, stochastic=True), IMAGES[:40], LABELS[:40])
    assert max(seen) == 240
    once = attack(eot=1, patience=5, **few)(ThreatView(noisy, stochastic=True), IMAGES[:40], LABELS[:40])

    def loss_of(images):
        return float(torch.stack([cross_entropy(noisy(images), LABELS[:40]) for _ in range(30)]).mean())

    assert loss_of(found.images) > loss_of(once.images)


def test_it_aims_at_one_class_after_another():
    model, images, labels = linear(classes=6)
    options = {"eps": 0.02, "loss": "dlr"}
    aimed = attack(**options, target_classes=9)(model, images, labels)
    assert right(aimed) <= right(attack(**options)(model, images, labels)) + 1
    with pytest.raises(ConfigError, match="needs 4 classes"):
        attack(loss="dlr", target_classes=2)(*linear(classes=3))
    with pytest.raises(ConfigError, match='use "cw"'):
        attack(loss="dlr")(MODEL, IMAGES, LABELS)


def test_restarts_are_for_those_that_resist():
    one, three = (attack(eps=0.02, steps=5, restarts=count)(MODEL, IMAGES, LABELS) for count in (1, 3))
    assert bool((three.success | ~one.success).all())
    assert torch.equal(one.images[one.success], three.images[one.success])


# -- FAB ------------------------------------------------------------------------------------------------------------


@NORMS
def test_a_boundary_is_reached_by_the_smallest_change(norm):
    """Against a search over the level l of the change min(l s, room), by hand."""
    generator = torch.Generator().manual_seed(0)
    images, normal = torch.rand(8, 1, 4, 4, generator=generator), torch.randn(8, 1, 4, 4, generator=generator)
    normal[:, :, 0] = 0
    offset = (normal * images).flatten(1).sum(1) + 2 * torch.randn(8, generator=generator)
    change = toward(images, normal, offset, norm)
    for x, w, b, found in zip(images, normal, offset, change, strict=True):
        missing = float(b - (w * x).sum())
        along = w.sign() * (1 if missing > 0 else -1)
        room = torch.where(along > 0, 1 - x, x) * (w != 0)
        speed = (w != 0).float() if norm == "linf" else w.abs()

        def gone(level, room=room, speed=speed, w=w):
            return float((w.abs() * torch.minimum(level * speed, room)).sum())

        low, high = 0.0, 1e3
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if gone(middle) < abs(missing) else (low, middle)
        assert torch.allclose(found, along * torch.minimum(high * speed, room), atol=1e-4)
    assert float((images + change).min()) >= 0
    assert float((images + change).max()) <= 1
    assert not change[:, :, 0].any()


@NORMS
def test_the_nearest_boundary_of_a_linear_model_is_found(norm):
    """Distance |f| / ||w||_1 in linf and |f| / ||w||_2 in l2; a budget a little larger is enough, a smaller one not."""
    model, images, labels = linear(classes=2)
    weight = (model[1].weight[1] - model[1].weight[0]).double()
    gap = (images.flatten(1).double() @ weight).abs()
    distances = gap / (weight.abs().sum() if norm == "linf" else weight.norm())
    for place, distance in enumerate(distances.tolist()):
        one = (model, images[place : place + 1], labels[place : place + 1])
        fell = [attack("fab", norm=norm, eps=share * distance)(*one).success.item() for share in (0.99, 1.06)]
        assert fell == [False, True], (place, distance)


def test_a_nearest_boundary_beyond_the_budget_comes_back_within_it():
    result = attack("fab", eps=0.001)(MODEL, IMAGES, LABELS)
    assert float(length(result.images - IMAGES, "linf").max()) <= 0.001 + 1e-6
    assert float(result.distance.median()) == pytest.approx(0.001, rel=1e-3)


# -- the suite ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "options", "parts"),
    [
        (2, {}, "APGD-CE + APGD-margin + FAB + Square"),
        (2, {"norm": "l2"}, "APGD-CE + APGD-margin + FAB"),
        (2, {"queries": 0}, "APGD-CE + APGD-margin + FAB"),
        (2, {"version": "rand"}, "APGD-CE + APGD-margin"),
        (3, {}, "APGD-CE + APGD-DLR + FAB targeted + Square"),
        (5, {}, "APGD-CE + APGD-DLR targeted + FAB targeted + Square"),
        (5, {"version": "rand"}, "APGD-CE + APGD-DLR"),
    ],
)
def test_every_result_names_the_parts(classes, options, parts):
    made = attack("auto_attack_suite", **{"steps": 2, "queries": 2, **options})
    result = made(*linear(classes=classes))
    assert result.description.split("; ")[1] == f"parts: {parts}"


def test_each_part_attacks_what_still_resists(monkeypatch):
    made, met = attack("auto_attack_suite", eps=0.02, queries=10, steps=10), []
    parts = made.parts(2)

    class Noted:
        def __init__(self, part):
            self.part = part

        def generate(self, view, images, labels, *, streams):
            met.append((len(images), streams.seed))
            return self.part.generate(view, images, labels, streams=streams)

    monkeypatch.setattr(type(made), "parts", lambda self, classes: {name: Noted(p) for name, p in parts.items()})
    labels = LABELS.clone()
    labels[:5] = 1 - labels[:5]  # misread already
    result = made(MODEL, IMAGES, labels)
    assert torch.equal(result.images[:5], IMAGES[:5]), "what is misread already stays as it is"
    assert met[0][0] == len(IMAGES) - 5
    assert all(after <= before for (before, _), (after, _) in pairwise(met))
    assert met[-1][0] < met[0][0]
    assert len({seed for _, seed in met}) == len(met), "each part draws from streams of its own"
    alone = attack(eps=0.02, steps=10)(
        MODEL,
        IMAGES[5:],
        labels[5:],
        streams=Streams.for_batch(0, len(IMAGES)).select(torch.arange(5, len(IMAGES))).child("APGD-CE"),
    )
    assert bool((result.success[5:] | ~alone.success).all())


def test_rand_goes_on_where_one_look_was_fooled():
    """A view that errs at random in half of its answers: no image is spared for what it answered once."""
    generator = torch.Generator().manual_seed(0)

    def noisy(images):
        return MODEL(images) + 20 * torch.randn(len(images), 2, generator=generator)

    made = attack("auto_attack_suite", version="rand", eot=4, steps=3, patience=3)
    found = made(ThreatView(noisy, stochastic=True), IMAGES[:30], LABELS[:30])
    assert bool((found.distance > 0).all())


def test_what_a_version_does_not_do_is_not_said():
    """No squares in l2, in rand or at eps 0, and no targets in rand, whatever their number is set to."""
    full = attack("auto_attack_suite").describe()
    assert "target_classes 9, queries 5000" in full
    assert "eot" not in full
    for options in ({"norm": "l2"}, {"queries": 0}, {"eps": 0}):
        made = attack("auto_attack_suite", **options)
        assert "queries" not in made.describe()
        assert made.per_image_streams, "without ART every draw is the image's own"
    rand = attack("auto_attack_suite", version="rand", eot=4).describe()
    assert "eot 4, patience 1" in rand
    assert "target" not in rand
    assert "queries" not in rand
    assert not attack("auto_attack_suite").per_image_streams


def test_standard_says_that_a_view_is_noisy():
    made = attack("auto_attack_suite", steps=1, queries=0)
    noisy, still = (
        made(ThreatView(MODEL, stochastic=stochastic), IMAGES[:2], LABELS[:2]) for stochastic in (True, False)
    )
    assert "one look decided, and this view answers with noise" in noisy.description
    assert "noise" not in still.description


def test_rand_does_not_repair_what_is_misread_in_every_look(monkeypatch):
    """A part that leads back to the right reading: the image itself is the better one."""

    class Back:
        def generate(self, view, images, labels, *, streams):
            return IMAGES[:3].clone()

    made = attack("auto_attack_suite", version="rand", eot=2, eps=1.0)
    monkeypatch.setattr(type(made), "parts", lambda self, classes: {"back": Back()})
    black = torch.zeros_like(IMAGES[:3])
    labels = LABELS[:3].clone()
    labels[MODEL(black).argmax(1) == labels] = 1 - labels[MODEL(black).argmax(1) == labels]
    fooled = made(MODEL, black, labels).success
    assert bool(fooled.all())


def test_eps_of_nothing_is_no_error():
    result = attack("auto_attack_suite", eps=0, steps=2)(MODEL, IMAGES[:4], LABELS[:4])
    assert float(result.distance.max()) == 0
