"""Every client's classifier against every client's defence."""

import pytest
import torch

import medfedpure
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 16, 8, 2, 1, 2, 2, 4, "for tests")


def bare(model):
    return DefendedClassifier(model, policy="none")


class Opposite(torch.nn.Module):
    """Reads every image as the other class."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return -self.model(images)


@pytest.fixture(scope="module")
def result():
    """Two clients of one mind, one of the opposite; the second one has a median filter."""
    model = tiny_classifier()
    filtered = DefendedClassifier(model, purifier=medfedpure.create("purifier", "median"), policy="purify_all")
    clients = {"a": bare(model), "b": filtered, "c": bare(Opposite(model))}
    victims = {name: (chain, tiny_dataset(40, seed=seed)) for seed, (name, chain) in enumerate(clients.items())}
    return evaluate(
        {"a": clients["a"]}, tiny_dataset(40, seed=0), preset=BRIEF, eps=(0.05, 0.1), norm="linf", federation=victims
    )


def test_every_pair_is_attacked_at_every_eps(result):
    pairs = [(found.victim, found.eps, found.crafted_on) for found in result.transfers]
    wanted = [(victim, 0.0, None) for victim in "abc"]
    wanted += [(victim, eps, crafted) for victim in "abc" for eps in (0.05, 0.1) for crafted in "abc"]
    assert sorted(pairs, key=str) == sorted(wanted, key=str)
    assert all("eps" in found.attack for found in result.transfers if found.crafted_on is not None)


def test_who_shares_a_classifier_shares_its_weakness(result):
    found = {(one.crafted_on, one.victim): one for one in result.transfers if one.eps in (0.0, 0.05)}
    for victim in "ab":
        misread = found[None, victim].bare_fooled
        assert misread <= 1
        assert found["a", victim].bare_fooled == found["b", victim].bare_fooled > 8
        assert found["c", victim].bare_fooled <= misread, "fooling the opposite helps who reads rightly"
    assert found["a", "b"].fooled < found["a", "b"].bare_fooled, "the defence answers, not its classifier"
    assert found["a", "a"].fooled == found["a", "a"].bare_fooled


def test_refusals_are_no_errors():
    model, detector = tiny_classifier(), medfedpure.create("detector", "feature_squeezing")
    data = tiny_dataset(40, seed=3)
    refusing = DefendedClassifier(model, detector=detector, policy="abstain").calibrate(tiny_dataset(60, seed=4), 0.5)
    found = evaluate({"it": bare(model)}, data, preset=BRIEF, eps=(0.1,), federation={"it": (refusing, data)})
    for one in found.transfers:
        assert one.fooled <= one.bare_fooled
    assert any(one.refused for one in found.transfers)


def test_finished_pairs_are_kept_and_a_client_without_images_is_left_out(tmp_path):
    model = tiny_classifier()
    whole = tiny_dataset(40, seed=3)
    healthy = whole.select(whole.labels == 0)
    federation = {"a": (bare(model), whole), "b": (bare(model), tiny_dataset(40, seed=4)), "c": (bare(model), healthy)}
    told = []
    first = evaluate(bare(model), whole, preset=BRIEF, eps=(0.1,), out=tmp_path, federation=federation, say=told.append)
    assert any(text.startswith("c is left out") for text in told)
    assert {one.victim for one in first.transfers} == {"a", "b"}
    told.clear()
    again = evaluate(bare(model), whole, preset=BRIEF, eps=(0.1,), out=tmp_path, federation=federation, say=told.append)
    assert again.transfers == first.transfers
    assert not any("crafted on" in text for text in told)
