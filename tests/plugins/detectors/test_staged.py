"""Two stages as one score: who is asked, how scores are ordered, and what an attacker's gradient sees."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

import medfedpure
from medfedpure.core.errors import DataError
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.self_checks import probe
from medfedpure.evaluation.views import detector_view, static_view
from medfedpure.testing import SmoothingDenoiser, tiny_context, tiny_dataset

OPTIONS = {"first": {"plugin": "score_norm"}, "second": {"plugin": "denoising_disagreement"}, "clear": 0.75}


@pytest.fixture(scope="module")
def context():
    return tiny_context()


@pytest.fixture(scope="module")
def data():
    return tiny_dataset(96)


@pytest.fixture(scope="module")
def staged(data, context):
    return medfedpure.create("detector", "staged", **OPTIONS).fit(data, context=context)


def scores_of(staged, data, context, images=None):
    """What the whole says, and each stage alone, of the data's images or others in their place."""
    streams, images = Streams(5, data.ids), data.images if images is None else images
    whole = staged(images, context=context, streams=streams)
    alone = [
        part.score(images, context=context, streams=streams.child(place)).double()
        for place, part in enumerate(staged.parts)
    ]
    return whole.double(), *alone


def test_the_score_is_the_firsts_where_it_clears_and_rises_with_both_above(staged, data, context):
    whole, first, second = scores_of(staged, data, context)
    excess = (first - staged.centre[0]) / staged.spread[0]
    level = functional.softplus((second - staged.centre[1]) / staged.spread[1])
    wanted = torch.where(excess > 0, excess / (excess + 0.25) * level, excess)
    assert torch.allclose(whole, wanted, atol=1e-4)
    assert 0 < int((whole > 0).sum()) < len(data), "some are cleared, and some are not"
    cleared = whole[whole <= 0]
    assert torch.equal(cleared.argsort(), first[whole <= 0].argsort()), "in the order of the first"


def test_the_second_is_asked_about_what_is_not_cleared_and_given_their_logits(staged, data, context, monkeypatch):
    asked, logits = [], context.classifier(data.images)
    kind = type(staged.parts[1])
    before = kind.score

    def watched(self, images, *, context, streams):
        asked.append((images, context.logits, streams.ids))
        return before(self, images, context=context, streams=streams)

    monkeypatch.setattr(kind, "score", watched)
    whole = staged(data.images, context=replace(context, logits=logits), streams=Streams(5, data.ids))
    rows = torch.nonzero(whole > 0).squeeze(1)
    ((images, given, ids),) = asked
    assert torch.equal(images, data.images[rows])
    assert torch.equal(given, logits[rows])
    assert torch.equal(ids, data.ids[rows])
    asked.clear()
    cleared = torch.nonzero(whole <= 0).squeeze(1)
    staged(data.images[cleared], context=context, streams=Streams(5, data.ids[cleared]))
    assert not asked, "nobody is left to ask about"


def test_bound_and_deviations_are_of_groups_that_no_stage_was_fitted_on(data, context, monkeypatch):
    fitted = []
    detector = medfedpure.create("detector", "staged", first={"plugin": "mahalanobis"}, held_out=0.5)
    kind = type(detector.parts[0])
    before = kind.fit

    def watched(self, data, **options):
        fitted.append(data)
        return before(self, data, **options)

    monkeypatch.setattr(kind, "fit", watched)
    detector.fit(data, context=context)
    (part,) = fitted
    assert part.num_groups == data.num_groups // 2
    held = data.select(~torch.isin(data.groups, part.groups)).one_per_group(0)
    alone = detector.parts[0](held.images, context=context).double()
    assert torch.allclose(detector.centre[0], alone.quantile(0.85))
    assert torch.allclose(detector.spread[0], alone.std())


def test_there_is_no_jump_where_the_second_begins_to_be_asked(context, data):
    detector = medfedpure.create("detector", "staged", first={"plugin": "mahalanobis"}).fit(data, context=context)
    image = data.images[:1]
    exact = detector.parts[0](image, context=context).double()
    shares = []
    for step in (-1e-6, 0.0, 1e-6):
        detector.centre[0] = exact - step
        shares.append(float(detector(image, context=context)))
    assert shares[0] < 0 or abs(shares[0]) < 1e-5
    assert max(shares) - min(shares) < 1e-4, shares


def test_above_the_bound_a_gradient_has_both_stages(context, data):
    config = {"first": {"plugin": "score_norm"}, "second": {"plugin": "mahalanobis"}}
    detector = medfedpure.create("detector", "staged", **config).fit(data, context=context)
    streams, images = Streams.for_batch(0, 8), data.images[:8].clone().requires_grad_(True)
    first, second = (part.score(images, context=context, streams=streams) for part in detector.parts)
    detector.centre[0] = float(first.detach().min()) - 0.5 * detector.spread[0]
    slopes = [torch.autograd.grad(part.sum(), images)[0] for part in (first, second)]
    (whole,) = torch.autograd.grad(detector(images, context=context, streams=streams).sum(), images)
    basis = torch.stack([slope.flatten(1) for slope in slopes], 2)
    shares = torch.linalg.lstsq(basis.double(), whole.flatten(1).double().unsqueeze(2)).solution.squeeze(2)
    assert bool((shares > 0).all()), "it rises with both"
    assert torch.allclose((basis.double() @ shares.unsqueeze(2)).squeeze(2), whole.flatten(1).double(), atol=1e-5)
    detector.centre[0] = 1e3
    (whole,) = torch.autograd.grad(detector(images, context=context, streams=streams).sum(), images)
    assert torch.allclose(whole, slopes[0] / detector.spread[0].float(), atol=1e-4), "cleared: the first's alone"


@pytest.fixture(scope="module")
def imitating(data, context):
    """A student before the Mahalanobis distance: neither asks a diffusion model once it is fitted."""
    learns = {"steps": 150, "batch_size": 16, "learning_rate": 5e-3}
    student = {"teacher": {"plugin": "score_norm"}, "eps": [0.05], "steps": 2, "width": 16, "training": learns}
    stages = {"first": {"plugin": "distilled", "config": student}, "second": {"plugin": "mahalanobis"}}
    return medfedpure.create("detector", "staged", clear=0.5, **stages).fit(data, context=context)


def test_who_knows_the_stages_hides_from_them(imitating, data, context):
    chain = DefendedClassifier(context.classifier, detector=imitating, policy="abstain").calibrate(data, 0.1)
    few = data.select(torch.arange(24))
    config = {"eps": 0.1, "step": 0.02, "steps": 20, "early_stop": False}
    flagged = []
    for name, view in (("pgd_eot", static_view(chain)), ("orthogonal_pgd", detector_view(chain))):
        attack = medfedpure.create("attack", name, config)
        found = attack(view, few.images, few.labels, streams=Streams(0, few.ids))
        assert int(found.success.sum()) >= 6, f"{name} fools the classifier"
        answer = chain.predict(found.images[found.success], seed=0)
        flagged.append(float(answer.flagged.double().mean()))
    static, aware = flagged
    assert static > 0.8, "an attack that ignores the stages is seen"
    assert aware < static / 2, f"one that differentiates them is not: {aware} of {static}"


def test_the_self_checks_find_a_gradient_and_no_batch_in_a_chain_with_stages(imitating, data, context):
    options = {"model": {"widths": [8, 16]}, "sampling": {"num_inference_steps": 2}}
    purifier = medfedpure.create("purifier", "ddpm", training={"steps": 20, "batch_size": 8}, **options).fit(data)
    chain = DefendedClassifier(context.classifier, detector=imitating, purifier=purifier).calibrate(data, 0.4)
    few = data.select(torch.arange(12))
    assert 0 < int(chain.predict(few, seed=0).flagged.sum()) < 12
    assert probe(chain, few.images, few.labels, few.ids, seed=0) == []


def test_flags_and_requirements_are_those_of_both():
    detector = medfedpure.create("detector", "staged", **OPTIONS)
    assert detector.differentiable
    assert not detector.deterministic
    assert detector.requires == {"classifier", "denoiser"}
    squeezing = medfedpure.create("detector", "staged", first={"plugin": "feature_squeezing"})
    assert not squeezing.differentiable


def test_saved_stages_come_back(staged, data, context, tmp_path):
    staged.save(tmp_path / "staged")
    loaded = medfedpure.Detector.load(tmp_path / "staged")
    streams = Streams(5, data.ids)
    found = [part(data.images, context=context, streams=streams) for part in (loaded, staged)]
    assert torch.equal(*found)
    assert loaded.config.second.config["timestep"] == 20, "defaults are spelled out"


def test_too_few_images_say_so(context):
    for count, words in ((2, "too few.*bring more images"), (6, "of 3 it keeps out one: bring more images")):
        some = tiny_dataset(8).select(torch.arange(count))
        with pytest.raises(DataError, match=words):
            medfedpure.create("detector", "staged", **OPTIONS).fit(some, context=context)

    class Still(SmoothingDenoiser):
        def predict_noise(self, images, timestep):
            return torch.ones_like(images)

    with pytest.raises(DataError, match=r"scores of score_norm do not vary.*held_out"):
        medfedpure.create("detector", "staged", **OPTIONS).fit(
            tiny_dataset(32), context=replace(context, denoiser=Still())
        )
