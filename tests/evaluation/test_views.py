"""What an attacker sees of a chain, and that the gradients it is granted are those that are promised."""

import copy

import pytest
import torch
from chains import BENIGN, chain_of, diffusing
from planted import GoodDetector, GoodPurifier

import medfedpure
from medfedpure.core.attack import averaged, without_parameter_gradients
from medfedpure.core.errors import InputError, MissingRequirementError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.voting import Vote
from medfedpure.evaluation.views import bpda_view, detector_view, exact_view, static_view, surrogate_view, transfer_view
from medfedpure.testing import tiny_classifier, tiny_dataset

IMAGES = tiny_dataset(24, seed=11).images


@pytest.mark.parametrize("policy", ["purify_flagged", "purify_all", "none", "abstain"])
def test_exact_answers_what_the_chain_answers(policy):
    chain = chain_of(policy)
    with chain.fixed_noise(3), torch.no_grad():
        wanted, found = chain(IMAGES), exact_view(chain)(IMAGES)
    assert torch.allclose(found.softmax(1), wanted.softmax(1), atol=1e-5)


@pytest.mark.parametrize("vote", [Vote(), Vote(3), Vote(3, how="majority")])
def test_exact_answers_what_a_voting_diffusion_chain_answers(vote):
    chain = diffusing(vote=vote)
    with chain.fixed_noise(3), torch.no_grad():
        wanted, found = chain(IMAGES), exact_view(chain)(IMAGES)
    assert torch.allclose(found.softmax(1), wanted.softmax(1), atol=1e-5)


def test_exact_gradient_is_that_of_the_formula():
    """Against the same chain written out by hand, gate hard forward and sigmoid backward."""
    chain = chain_of()
    chain.double()
    images = IMAGES.double()
    calibration = chain.calibration
    with chain.fixed_noise(5):
        leaf = images.clone().requires_grad_(True)
        (found,) = torch.autograd.grad(exact_view(chain, bandwidth=2.0)(leaf)[:, 0].sum(), leaf)
        streams = chain.next_streams(len(images))
        leaf = images.clone().requires_grad_(True)
        scores = chain.detector(leaf, context=chain.context(), streams=streams)
        spread = 2.0 * (calibration.threshold() - calibration.median)
        soft = torch.sigmoid((scores - calibration.threshold()) / spread)
        hard = (scores > calibration.threshold()).double()
        strength = 1 - torch.exp(-torch.relu(scores - calibration.threshold()) / (spread / 2))
        clean = chain.purifier.purify(leaf, strength, streams=streams).images
        gate = (hard + soft - soft.detach())[:, None]
        mixed = gate * chain.classifier(clean).softmax(1) + (1 - gate) * chain.classifier(leaf).softmax(1)
        (wanted,) = torch.autograd.grad(mixed.log()[:, 0].sum(), leaf)
    assert float(wanted.abs().max()) > 0
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_the_gate_lets_unflagged_images_feel_the_detector():
    chain = chain_of(target_fpr=0.05)
    quiet = ~chain.predict(IMAGES, seed=0).flagged
    leaf = IMAGES.clone().requires_grad_(True)
    with chain.fixed_noise(0):
        (exact,) = torch.autograd.grad(exact_view(chain)(leaf)[:, 0].sum(), leaf)
    (bare,) = torch.autograd.grad(chain.classifier(leaf).log_softmax(1)[:, 0].sum(), leaf)
    assert float((exact - bare)[quiet].abs().max()) > 0


def test_bpda_sees_the_purified_prediction_with_an_identity_gradient():
    chain = chain_of("purify_all")
    with chain.fixed_noise(1):
        view, leaf = bpda_view(chain), IMAGES.clone().requires_grad_(True)
        logits = view(leaf)
        assert torch.allclose(logits, chain(IMAGES), atol=1e-5)
        (found,) = torch.autograd.grad(logits[:, 0].sum(), leaf)
        read = chain.read(IMAGES).requires_grad_(True)
    (wanted,) = torch.autograd.grad(chain.classifier(read)[:, 0].sum(), read)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_fresh_noise_at_each_look_and_the_same_in_a_sequence_of_one_seed():
    chain = diffusing()
    view = exact_view(chain)
    assert view.stochastic
    with torch.no_grad():
        looks = []
        for _ in range(2):
            with chain.noise_sequence(4):
                looks.append((view(IMAGES), view(IMAGES)))
    assert torch.equal(looks[0][0], looks[1][0])
    assert not torch.equal(looks[0][0], looks[0][1])
    assert not exact_view(DefendedClassifier(tiny_classifier(), policy="none")).stochastic


def test_a_detector_view_shows_score_and_threshold():
    chain = chain_of()
    view = detector_view(chain)
    assert view.provides() >= {"score", "threshold"}
    with chain.fixed_noise(2):
        logits, scores = view.look(IMAGES)
        assert torch.allclose(logits, chain.classifier(IMAGES))
        assert torch.equal(scores > view.threshold, chain.inspect(IMAGES, chain.next_streams(len(IMAGES))).flagged)


def test_a_surrogate_takes_fewer_steps_and_leaves_the_chain_alone():
    chain = diffusing(steps=4)
    evaluations = []
    chain.purifier.network.register_forward_hook(lambda *_: evaluations.append(1))
    counts = []
    for view in (exact_view(chain), surrogate_view(chain, steps=1)):
        evaluations.clear()
        with torch.no_grad():
            view(IMAGES)
        counts.append(len(evaluations))
    assert counts == [1 + 4, 1 + 1]
    assert chain.purifier.depth.steps == 4


def test_averaging_approaches_the_mean_of_probabilities():
    chain = diffusing()
    with chain.noise_sequence(8), torch.no_grad():
        one = bpda_view(chain)(IMAGES).softmax(1)
        mean = torch.stack([bpda_view(chain)(IMAGES).softmax(1) for _ in range(64)]).mean(0)
        found = averaged(bpda_view(chain), 64, chunk=100)(IMAGES)
    assert torch.allclose(found.exp().sum(1), torch.ones(len(IMAGES)), atol=1e-5)
    assert float((found.exp() - mean).abs().mean()) < 0.5 * float((one - mean).abs().mean())


VIEWS = {
    "static": static_view,
    "transfer": lambda chain: transfer_view(chain.classifier),
    "bpda": bpda_view,
    "exact": exact_view,
    "detector": detector_view,
    "surrogate": lambda chain: surrogate_view(chain, steps=1),
    "averaged": lambda chain: averaged(exact_view(chain), 2),
}


@pytest.mark.parametrize("name", VIEWS)
def test_attackers_take_no_gradients_of_weights(name):
    chain = diffusing()
    chain.classifier = copy.deepcopy(chain.classifier)
    chain.requires_grad_(True)
    weights = list((chain.classifier if name == "transfer" else chain).parameters())
    weights[0].requires_grad_(False)
    wanted = [weight.requires_grad for weight in weights]
    modes = [part.training for part in chain.modules()]
    with chain.fixed_noise(3):  # a surrogate takes over the noise of the chain as it is now
        view = VIEWS[name](chain)

    def gradient():
        leaf = IMAGES[:8].clone().requires_grad_(True)
        with chain.fixed_noise(3):
            return torch.autograd.grad(view(leaf)[:, 0].sum(), leaf)[0]

    before = gradient()
    with without_parameter_gradients(view):
        assert not any(weight.requires_grad for weight in weights)
        assert torch.equal(gradient(), before)
    assert [weight.requires_grad for weight in weights] == wanted
    assert set(weights) <= set(view.parameters())
    view.train()
    assert [part.training for part in chain.modules()] == modes


def test_what_cannot_be_seen_is_said():
    plain = DefendedClassifier(tiny_classifier(), purifier=medfedpure.create("purifier", "median"), policy="purify_all")
    with pytest.raises(MissingRequirementError, match="needs a defence with a calibrated detector"):
        detector_view(plain)
    with pytest.raises(MissingRequirementError, match="has `shortened`"):
        surrogate_view(plain, steps=2)
    with pytest.raises(MissingRequirementError, match="hides the detector's score"):
        static_view(plain).look(IMAGES)
    with pytest.raises(InputError, match="bandwidth > 0"):
        exact_view(plain, bandwidth=0)
    blunt = DefendedClassifier(
        tiny_classifier(),
        purifier=medfedpure.create("purifier", "art", preprocessor="JpegCompression"),
        policy="purify_all",
    )
    with pytest.raises(MissingRequirementError, match="is not differentiable"):
        exact_view(blunt)


def test_names_say_what_the_attacker_knows():
    chain = DefendedClassifier(tiny_classifier(), detector=GoodDetector(), purifier=GoodPurifier())
    chain.calibrate(BENIGN, 0.3)
    assert "bandwidth 3" in exact_view(chain, bandwidth=3).name
    assert "client 2" in transfer_view(tiny_classifier(), "client 2").name
