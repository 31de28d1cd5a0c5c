"""Our own gradient attacks: the formula, the budget, what they save, and that they find what they look for."""

import pytest
import torch

import medfedpure
from medfedpure.core.attack import Attack, ThreatView, length, project
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import ConfigError, DataError, InputError
from medfedpure.core.streams import Streams
from medfedpure.plugins.attacks.gradient import loss_of, random_start
from medfedpure.plugins.attacks.orthogonal_pgd import without
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(40, seed=5)
MODEL = tiny_classifier()
IMAGES, LABELS = DATA.images, MODEL(DATA.images).argmax(1)


def attack(name="pgd_eot", **options):
    return medfedpure.create("attack", name, **{"eps": 0.05, "step": 0.0125, "steps": 10, **options})


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_equals_a_plain_loop(norm):
    found = attack(norm=norm, early_stop=False)(MODEL, IMAGES, LABELS).images
    current = IMAGES.clone()
    for _ in range(10):
        leaf = current.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(MODEL(leaf), LABELS, reduction="sum"), leaf)
        if norm == "linf":
            current = (current + 0.0125 * gradient.sign()).clamp(IMAGES - 0.05, IMAGES + 0.05)
        else:
            current = current + 0.0125 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
            change = current - IMAGES
            current = IMAGES + change * (0.05 / change.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        current = current.clamp(0, 1)
    assert torch.allclose(found, current, atol=1e-5)


def test_it_fools_as_often_as_art():
    ours = attack(early_stop=False)(MODEL, IMAGES, LABELS).success
    theirs = medfedpure.create("attack", "pgd", eps=0.05, step=0.0125, steps=10)(MODEL, IMAGES, LABELS).success
    assert abs(float(ours.float().mean() - theirs.float().mean())) <= 0.01


def test_early_stop_saves_passes_and_keeps_the_success():
    rows = []

    def counted(images):
        rows.append(len(images))
        return MODEL(images)

    stopped = attack(eps=0.2, step=0.05)(ThreatView(counted), IMAGES, LABELS)
    few, _ = sum(rows), rows.clear()
    whole = attack(eps=0.2, step=0.05, early_stop=False)(ThreatView(counted), IMAGES, LABELS)
    assert stopped.success.float().mean() >= whole.success.float().mean() > 0.9
    assert few < 0.7 * sum(rows)
    assert float(stopped.distance.mean()) < float(whole.distance.mean())


@pytest.mark.parametrize(("patience", "steps"), [(1, 2), (2, 5), (3, 6)])
def test_an_image_leaves_after_so_many_steps_in_a_row(patience, steps):
    """A noisy view: steps 2, 4, 5 and 6 fool it."""
    answers = iter([False, True, False, True, True, True, False])
    taken = []

    def noisy(images):
        taken.append(next(answers))
        sign = 1 if taken[-1] else -1
        own = sign + 0 * images.mean((1, 2, 3))
        return torch.stack((-own, own), 1)

    images, labels = IMAGES[:1], torch.zeros(1, dtype=torch.int64)
    attack(steps=7, patience=patience).generate(ThreatView(noisy), images, labels, streams=Streams.for_batch(0, 1))
    assert len(taken) == steps


def test_who_did_not_leave_is_taken_where_the_longest_run_of_falls_ends():
    """A gated view: what only just fools it is pushed on into what does not, at steps 1, 4, 5 and 7."""
    fooled = iter([False, True, False, False, True, True, False, True, False])
    seen = []

    def gated(images):
        seen.append(images.detach().clone())
        sign = 1 if next(fooled) else -1
        own = images.mean((1, 2, 3))
        return torch.stack((-sign - own, sign + own), 1)

    images, labels = IMAGES[:1] * 0.5 + 0.25, torch.zeros(1, dtype=torch.int64)
    made = attack(steps=8, step=0.005, eps=0.1, patience=3)
    found = made.generate(ThreatView(gated), images, labels, streams=Streams.for_batch(0, 1))
    assert len(seen) == 9, "the last step is looked at too"
    assert torch.equal(found, seen[5])
    assert not torch.equal(found, seen[8])


@pytest.mark.parametrize("name", ["orthogonal_pgd", "joint_pgd"])
def test_who_fell_unseen_leaves_where_asked(name):
    rows = []
    view = weak_view()

    def counted(images):
        rows.append(len(images))
        return MODEL(images)

    hiding = ThreatView(counted, score=view.score, threshold=view.threshold)
    options = {"eps": 0.1, "step": 0.01, "steps": 30}
    whole = attack(name, **options)(hiding, IMAGES, LABELS)
    every, _ = sum(rows), rows.clear()
    stopped = attack(name, **options, early_stop=True)(hiding, IMAGES, LABELS)
    first, _ = sum(rows), rows.clear()
    attack(name, **options, early_stop=True, patience=5)(hiding, IMAGES, LABELS)
    assert first < sum(rows) < every
    assert stopped.success.float().mean() >= whole.success.float().mean() - 0.05
    assert float(hiding.score(stopped.images)[stopped.success].mean()) <= view.threshold


@pytest.mark.parametrize("options", [{"restarts": 3}, {"momentum": 0.9}, {"loss": "cw"}, {"random_start": True}])
def test_options_keep_the_budget_and_the_strength(options):
    plain = float(attack()(MODEL, IMAGES, LABELS).success.float().mean())
    result = attack(**options)(MODEL, IMAGES, LABELS)
    assert float(result.success.float().mean()) >= plain - 0.1
    assert float(result.distance.max()) <= 0.05 + 1e-6


def test_restarts_find_what_one_start_misses():
    """A flat place at the image itself: only a random start sees a slope."""

    def plateau(images):
        change = (images - IMAGES[: len(images)]).flatten(1)
        return torch.stack((0.9 * torch.ones(len(images)), 100 * torch.relu(change.abs().mean(1) - 0.01)), 1)

    labels = torch.zeros(len(IMAGES), dtype=torch.int64)
    assert not attack()(ThreatView(plateau), IMAGES, labels).success.any()
    assert attack(restarts=2)(ThreatView(plateau), IMAGES, labels).success.all()


def test_looks_are_averaged_in_chunks():
    generator = torch.Generator().manual_seed(0)
    seen = []

    def noisy(images):
        seen.append(len(images))
        return MODEL(images + 0.1 * torch.randn(images.shape, generator=generator))

    result = attack(eot=6, batch_size=100, steps=3)(ThreatView(noisy, stochastic=True), IMAGES[:20], LABELS[:20])
    assert max(seen) <= 100
    assert sum(seen[:2]) == 120
    assert result.success.float().mean() > 0.3


def test_targets_and_masks():
    targets = 1 - LABELS
    mask = torch.zeros(len(IMAGES), 1, *IMAGES.shape[2:], dtype=torch.bool)
    mask[:, :, 4:12] = True
    result = attack(eps=0.5, step=0.1, loss="cw")(MODEL, IMAGES, LABELS, targets=targets, mask=mask)
    assert result.success.float().mean() > 0.5
    assert not (result.images - IMAGES)[~mask.expand_as(IMAGES)].any()


def test_losses_by_hand():
    logits, labels = torch.tensor([[3.0, 1.0, 0.0, -1.0]]), torch.tensor([0])
    assert float(loss_of("cw", logits, labels, None)) == -2
    assert float(loss_of("dlr", logits, labels, None)) == pytest.approx(-2 / 3)
    assert float(loss_of("dlr", logits, labels, torch.tensor([2]))) == pytest.approx(-3 / 3.5)
    with pytest.raises(ConfigError, match='use "cw"'):
        loss_of("dlr", logits[:, :2], labels, None)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_projection_and_random_starts_stay_in_the_ball(norm):
    streams = Streams.for_batch(0, len(IMAGES))
    start = random_start(IMAGES, norm, 0.3, streams, 1)
    assert 0.1 < float(length(start - IMAGES, norm).max()) <= 0.3 + 1e-6
    inside = project(start, IMAGES, norm, 0.4)
    assert torch.allclose(inside, start, atol=1e-6)


def test_orthogonal_is_orthogonal():
    one, other = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    left = without(one, other)
    assert float((left * other).flatten(1).sum(1).abs().max()) < 1e-4
    assert torch.allclose(without(one, torch.zeros_like(one)), one)


def weak_view():
    """A planted weak detector: it scores roughness, which a gradient sees at once."""

    def score(images):
        return images.diff(dim=3).abs().flatten(1).mean(1) + images.diff(dim=2).abs().flatten(1).mean(1)

    return ThreatView(MODEL, score=score, threshold=float(score(IMAGES).quantile(0.95)))


@pytest.mark.parametrize("name", ["orthogonal_pgd", "joint_pgd"])
def test_attackers_who_know_a_weak_detector_pass_it(name):
    view = weak_view()
    plain = attack(eps=0.1, step=0.01, steps=30, early_stop=False)(view, IMAGES, LABELS)
    aware = attack(name, eps=0.1, step=0.01, steps=30)(view, IMAGES, LABELS)

    def caught(result):
        return float((view.score(result.images) > view.threshold)[result.success].float().mean())

    assert plain.success.float().mean() > 0.9
    assert aware.success.float().mean() > 0.9
    assert caught(plain) > 0.5
    assert caught(aware) < caught(plain) - 0.4


@pytest.mark.parametrize("name", ["orthogonal_pgd", "joint_pgd"])
def test_more_starts_do_not_weaken_attackers_who_know_the_detector(name):
    view, reached = weak_view(), []
    aim = view.threshold - 0.1 * abs(view.threshold)
    for restarts in (1, 3):
        found = attack(name, eps=0.05, step=0.01, steps=6, restarts=restarts, early_stop=True)(view, IMAGES, LABELS)
        hidden = view.score(found.images) <= aim
        reached.append(float((found.success & hidden).float().mean()))
    assert reached[1] >= reached[0]
    once = attack(name, eps=0.05, step=0.01, steps=6, restarts=1)(view, IMAGES, LABELS)
    thrice = attack(name, eps=0.05, step=0.01, steps=6, restarts=3)(view, IMAGES, LABELS)
    assert not torch.equal(once.images, thrice.images)


def test_insider_defaults_run_to_the_end():
    made = medfedpure.create("attack", "internal")
    assert (made.config.norm, made.config.steps, made.config.early_stop) == ("l2", 10, False)
    assert made(MODEL, IMAGES, LABELS).success.any()


def test_hfc_hides_from_a_feature_detector_that_it_does_not_know():
    detector = medfedpure.create("detector", "mahalanobis")
    context = ScoreContext(MODEL, MODEL.features)
    detector.fit(DATA, context=context)
    view = ThreatView(MODEL, features=MODEL.features)

    def scores(images):
        return detector(images, context=context)

    plain = attack(eps=0.1, step=0.01, steps=40, early_stop=False)(view, IMAGES, LABELS)
    hidden = attack("hfc", eps=0.1, step=0.01, steps=40)(view, IMAGES, LABELS)
    fitted = attack("hfc", eps=0.1, step=0.01, steps=40).fit(tiny_dataset(60, seed=6))(view, IMAGES, LABELS)
    for result in (hidden, fitted):
        assert result.success.float().mean() > 0.8
        assert scores(result.images).median() < 0.4 * scores(plain.images).median()


class TestFittedHFC:
    VIEW = ThreatView(MODEL, features=MODEL.features)
    REFERENCE = tiny_dataset(60, seed=6)

    def fitted(self):
        return attack("hfc", eps=0.1, step=0.01, steps=10).fit(self.REFERENCE)

    def test_an_image_alone_comes_out_as_in_a_batch(self):
        made = self.fitted()
        assert not made.learns_from_batch
        whole = made(self.VIEW, IMAGES[:8], LABELS[:8]).images
        alone = torch.cat([made(self.VIEW, IMAGES[k : k + 1], LABELS[k : k + 1]).images for k in range(8)])
        assert float(((whole - alone).abs() <= 1e-5).float().mean()) > 0.99

    def test_unfitted_it_takes_the_batch_for_normal(self):
        made = attack("hfc", eps=0.1, step=0.01, steps=10)
        assert made.learns_from_batch
        whole = made(self.VIEW, IMAGES, LABELS).images[:8]
        assert float(((whole - made(self.VIEW, IMAGES[:8], LABELS[:8]).images).abs() > 1e-5).float().mean()) > 0.01
        assert not torch.equal(whole, self.fitted()(self.VIEW, IMAGES, LABELS).images[:8])

    @pytest.mark.parametrize("fitted", [True, False])
    def test_what_it_learned_survives_saving(self, tmp_path, fitted):
        made = self.fitted() if fitted else attack("hfc", eps=0.1, step=0.01, steps=10)
        made.save(tmp_path / "part")
        loaded = Attack.load(tmp_path / "part")
        assert loaded.learns_from_batch is not fitted
        assert torch.equal(*(one(self.VIEW, IMAGES[:4], LABELS[:4]).images for one in (made, loaded)))

    def test_it_serves_any_model_of_such_images(self):
        other = tiny_classifier(steps=5)
        result = self.fitted()(ThreatView(other, features=other.features), IMAGES[:8], LABELS[:8])
        assert float(result.distance.max()) > 0

    def test_other_images_are_refused(self):
        with pytest.raises(InputError, match=r"fitted on images of shape \(1, 32, 32\) and attacks \(1, 16, 16\)"):
            self.fitted()(self.VIEW, IMAGES[..., :16, :16], LABELS)
        with pytest.raises(DataError, match="none came"):
            attack("hfc").fit(self.REFERENCE.select(torch.arange(0)))


def test_hfc_reads_the_classifier_and_no_part_of_the_defence_behind_it():
    """A purifier has convolutions too."""
    behind = torch.nn.Conv2d(1, 3, 3)
    view = ThreatView(lambda images: MODEL(images + 0 * behind(images).mean()), of=behind, features=MODEL.features)
    alone = ThreatView(lambda images: MODEL(images), features=MODEL.features)
    found = [attack("hfc", steps=5)(shown, IMAGES[:8], LABELS[:8]).images for shown in (view, alone)]
    assert torch.allclose(*found, atol=1e-6)
