"""What an evaluation refuses, and what it must not mistake for something else."""

import re

import pytest
import torch
from chains import chain_of

import medfedpure
from medfedpure.core.errors import ConfigError, MissingExtraError
from medfedpure.core.registry import create
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cost import foresee, in_words, seconds_of
from medfedpure.evaluation.evaluate import beside_itself, choose, evaluate, sizes_of
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.store import digest_of, digest_of_network
from medfedpure.figures.balanced import balanced_difference
from medfedpure.figures.intervals import paired_difference
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 16, 8, 2, 1, 2, 2, 12, "for tests")
DATA = tiny_dataset(60, seed=21)


def bare(model=None):
    return DefendedClassifier(model or tiny_classifier(), policy="none")


class Rounding(torch.nn.Module):
    """One network, of images with so many grey levels: nothing of that stands in its tensors."""

    def __init__(self, network, levels):
        super().__init__()
        self.network, self.levels = network, levels

    def forward(self, images):
        return self.network((images * self.levels).round() / self.levels + images - images.detach())


def test_l2_is_evaluated_in_l2():
    found = evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(1.5,), norm="l2")
    rungs = {rung.rung: rung for rung in found.arms[0].rungs}
    assert rungs["static"].norm == rungs["uniform noise"].norm == "l2"
    assert 1.0 < max(rungs["static"].distance) <= 1.5 * (1 + 1e-5)
    assert "linf only" in rungs["square"].skipped
    assert found.arms[0].unreliable == []
    assert {check.eps for check in found.arms[0].checks} == {0.75, 1.5, 3.0, 20.0}


def test_noise_of_a_small_l2_eps_proves_nothing():
    """Uniform noise of linf eps 0.2 changes 16 x 16 pixels by 1.8 in l2, nine times what the attacks may."""
    found = evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.2,), norm="l2")
    assert found.arms[0].unreliable == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": "l1", "eps": (0.1,)}, "the norms are linf, l2; got 'l1'"),
        ({"norm": "l2"}, "eps is wanted in l2"),
        ({"eps": (8,)}, "eps <= 1 in linf"),
        ({"eps": "8/0"}, 'a fraction such as "8/255"'),
        ({"batch_size": 0}, "batch_size is a whole number from 1; got 0"),
        ({"extra_attacks": ["pgd"]}, "got a list"),
    ],
)
def test_a_wrong_threat_leaves_no_folder(options, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        evaluate({"bare": bare()}, DATA, preset=BRIEF, out=tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_a_fraction_is_an_eps():
    assert sizes_of("linf", ["8/255", 8 / 255, 0.1]) == [8 / 255, 0.1]


def test_a_folder_with_other_results_is_not_written_to(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ConfigError, match="another run's results"):
        evaluate({"bare": bare()}, DATA, preset=BRIEF, out=tmp_path)


def test_equal_weights_are_not_the_same_classifier():
    network = tiny_classifier()
    fine, coarse = Rounding(network, 255), Rounding(network, 8)
    assert digest_of_network(fine) != digest_of_network(coarse)
    assert digest_of(bare(fine)) != digest_of(bare(coarse))
    assert digest_of_network(fine) == digest_of_network(Rounding(network, 255))
    together = evaluate({"fine": bare(fine), "coarse": bare(coarse)}, DATA, preset=BRIEF, eps=(0.05,)).arms[1]
    alone = evaluate({"coarse": bare(coarse)}, DATA, preset=BRIEF, eps=(0.05,)).arms[0]
    assert together.rungs[0].success == alone.rungs[0].success
    assert together.rungs[0].reading.verdicts == alone.rungs[0].reading.verdicts


def test_what_was_missing_is_tried_again(monkeypatch, tmp_path):
    def without_art(kind, name, *args, **options):
        if name == "square":
            raise MissingExtraError("install it")
        return create(kind, name, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr("medfedpure.evaluation.work.create", without_art)
        first = evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path)
    again = evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path)
    assert [r.skipped for r in first.arms[0].rungs if r.rung == "square"] == ["install it"]
    assert all(rung.reading is not None for rung in again.arms[0].rungs)


def test_a_detector_that_no_attacker_could_differentiate_is_not_believed():
    detector = medfedpure.create("detector", "feature_squeezing")
    chain = DefendedClassifier(tiny_classifier(), detector=detector, policy="abstain").calibrate(tiny_dataset(60), 0.3)
    found = evaluate({"it": chain}, DATA, preset=BRIEF, eps=(0.05,)).arms[0]
    assert any("no attacker who knows the detector: orthogonal" in reason for reason in found.unreliable)
    square = next(rung for rung in found.rungs if rung.rung == "square")
    assert "refusals are not seen" in square.view


def test_another_batch_size_is_another_evaluation(tmp_path):
    evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path)
    with pytest.raises(ConfigError, match="batch_size"):
        evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), out=tmp_path, batch_size=8)


def test_attackers_answer_in_evaluation_mode_and_stay_as_they_were():
    norm = torch.nn.BatchNorm2d(1)
    other = torch.nn.Sequential(norm, tiny_classifier())
    other.train()
    norm.eval()
    evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), attackers={"other": other})
    assert float(norm.running_mean) == 0
    norm.train()
    evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), attackers={"other": other})
    assert float(norm.running_mean) == 0
    assert other.training
    assert norm.training


def test_anchors_compute_as_the_chain_does():
    chain = chain_of().accelerate(Acceleration(autocast=True))
    assert all(anchor.acceleration == chain.acceleration for anchor in beside_itself(chain).values())


def test_every_gate_bandwidth_is_checked():
    found = evaluate({"it": chain_of()}, DATA, preset=BRIEF, eps=(0.05,)).arms[0]
    assert {"exact, gate bandwidth 0.25", "exact, gate bandwidth 4"} <= {check.rung for check in found.checks}
    assert any("bandwidth 0.25 x" in check.view for check in found.checks)


def test_the_time_of_a_gradient_is_told_and_moves_no_noise():
    chain, told = chain_of(), []
    with chain.noise_sequence(5):
        undisturbed = [chain.next_streams(1).seed, chain.next_streams(1).seed]
    with chain.noise_sequence(5):
        first = chain.next_streams(1).seed
        assert seconds_of(chain, DATA.images, seed=0, gradient=True) > 0
        assert [first, chain.next_streams(1).seed] == undisturbed
    evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,), say=told.append)
    assert re.search(r"gradient evaluations of whole defences, at most \d+ s", told[0])
    foreseen = foresee([bare(), bare()], DATA.images[:16], BRIEF, "linf", (0.05,), {}, seed=0)
    assert foreseen.gradients == 2 * evaluate({"bare": bare()}, DATA, preset=BRIEF, eps=(0.05,)).gradients > 0
    assert (foreseen * 3).seconds == pytest.approx(foreseen.seconds * 3)
    assert [in_words(seconds) for seconds in (0.2, 80, 600, 9000)] == ["1 s", "80 s", "10 min", "2.5 h"]


# -- paired differences ------------------------------------------------------------------------------------------


def test_paired_difference_is_newcombes():
    """His example of 50 pairs: 36 both, 12 and 2 one of them, 0 none."""
    one = torch.tensor([True] * 48 + [False] * 2)
    other = torch.tensor([True] * 36 + [False] * 12 + [True] * 2)
    assert paired_difference(one, other) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = paired_difference(other, one)
    assert (low, high) == pytest.approx((-0.3404, -0.0569), abs=5e-5)


def test_few_images_that_agree_or_differ_are_no_certainty():
    labels, groups = torch.tensor([0, 1] * 12), torch.arange(24)
    nobody, everybody = torch.zeros(24, dtype=torch.bool), torch.ones(24, dtype=torch.bool)
    low, high = balanced_difference(everybody, everybody, labels, groups)
    assert low < -0.05
    assert high > 0.05
    low, high = balanced_difference(everybody, nobody, labels, groups)
    assert low < 0.95
    assert high == 1
    four = everybody.clone()
    four[:4] = False
    assert balanced_difference(everybody, four, labels, groups)[0] < 0, "4 of 24: a sign test says p = 0.125"
    assert balanced_difference(everybody, nobody, labels, torch.zeros(24)) is None
    assert balanced_difference(everybody, nobody, labels, groups // 2) == (1, 1), "near-duplicates: a bootstrap"


def test_chosen_images_of_another_seed_are_others():
    assert choose(DATA, 20, 0).fingerprint() != choose(DATA, 20, 1).fingerprint()
