"""Votes over draws: counted as their formulas say, the first draw as without a vote, one batch for all."""

import pytest
import torch

import medfedpure
from medfedpure.core.errors import ConfigError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams
from medfedpure.defence.voting import Vote

IMAGES = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


class Noise(Purifier):
    """Adds noise, and says how often it was asked."""

    calls = 0

    def purify(self, images, strength, *, streams):
        Noise.calls += 1
        noise = streams.normal(images.shape[1:], stage="noise", like=images)
        steps = torch.full((len(images),), 3)
        return Purification((images + 0.3 * noise).clamp(0, 1), steps, strength * 10)


def model():
    with medfedpure.core.streams.isolated_rng(0):
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()


def chain(**vote):
    return medfedpure.DefendedClassifier(model(), purifier=Noise(), policy="purify_all", vote=Vote(**vote))


def draws(count, seed=7):
    """Logits of every draw `(N, count, K)`, one purification at a time."""
    streams = Streams.for_batch(seed, 5).repeat(count)
    rows = []
    for place in range(5 * count):
        image = IMAGES[place // count][None]
        own = Noise().purify(image, torch.ones(1), streams=streams.select(torch.tensor([place]))).images
        rows.append(model()(own))
    return torch.cat(rows).unflatten(0, (5, count))


def test_the_mean_of_probabilities_and_its_agreement():
    found = chain(draws=4).predict(IMAGES, seed=7)
    every = draws(4)
    assert torch.allclose(found.probabilities, every.softmax(2).mean(1), atol=1e-6)
    wanted = (every.argmax(2) == found.labels[:, None]).float().mean(1)
    assert torch.allclose(found.agreement, wanted)
    assert found.trace.nfe.tolist() == [12] * 5, "three evaluations for each of four draws"


def test_a_majority_counts_verdicts_and_breaks_ties_by_the_mean():
    logits = torch.tensor([[[9.0, 0, 0], [0, 1, 0], [0, 1, 0]], [[3.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    counted, agreement = Vote(3, "majority").count(logits)
    assert counted.argmax(1).tolist() == [1, 0]
    assert torch.allclose(agreement, torch.tensor([2 / 3, 1 / 3]))
    mean, _ = Vote(3, "mean").count(logits)
    assert mean.argmax(1).tolist() == [0, 0], "one sure draw outweighs two unsure ones in the mean"


def test_one_draw_is_no_vote():
    plain, voted = chain().predict(IMAGES, seed=7), chain(draws=3).predict(IMAGES, seed=7)
    assert torch.equal(plain.images, voted.images), "the first draw is that of a chain without a vote"
    assert plain.agreement.tolist() == [1.0] * 5


def test_all_draws_are_one_batch_and_forward_agrees():
    Noise.calls = 0
    defended = chain(draws=6)
    found = defended.predict(IMAGES, seed=7)
    assert Noise.calls == 1
    with torch.no_grad(), defended.fixed_noise(7):
        assert torch.allclose(defended(IMAGES).softmax(1), found.probabilities, atol=1e-6)


def test_little_agreement_abstains():
    every = chain(draws=5).predict(IMAGES, seed=7)
    assert bool((every.agreement < 1).any()), "this noise must divide the draws somewhere"
    strict = chain(draws=5, min_agreement=0.9).predict(IMAGES, seed=7)
    assert torch.equal(strict.abstained, every.agreement < 0.9)
    assert not bool(every.abstained.any())


def test_a_vote_is_saved(tmp_path):
    purifier = medfedpure.create("purifier", "smoothing")
    vote = Vote(3, "majority", 0.6)
    medfedpure.DefendedClassifier(model(), purifier=purifier, policy="purify_all", vote=vote).save(tmp_path / "chain")
    assert medfedpure.DefendedClassifier.load(tmp_path / "chain", classifier=model()).vote == vote


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"draws": 0}, "a vote has"),
        ({"how": "median"}, "a vote has"),
        ({"draws": 2, "min_agreement": 1.5}, "a vote has"),
        ({"min_agreement": 0.5}, "agrees with itself"),
    ],
)
def test_impossible_votes_are_refused(wrong, text):
    with pytest.raises(ConfigError, match=text):
        Vote(**wrong)


def test_votes_without_an_effect_are_refused():
    with pytest.raises(ConfigError, match="nothing to draw"):
        medfedpure.DefendedClassifier(model(), purifier=Noise(), policy="none", vote=Vote(3))
    median = medfedpure.create("purifier", "median")
    with pytest.raises(ConfigError, match="deterministic"):
        medfedpure.DefendedClassifier(model(), purifier=median, policy="purify_all", vote=Vote(3))


def test_the_bpda_view_says_that_it_attacks_one_draw():
    view = medfedpure.bpda_view(chain(draws=3))
    assert "one of the 3 draws" in view.name
    Noise.calls = 0
    view(IMAGES)
    assert Noise.calls == 1
