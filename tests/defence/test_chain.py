"""The chain: its policies, its errors, its calibration, and that it is an nn.Module like any classifier."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from chains import BENIGN, DATA, CountingPurifier, assert_same, chain_of
from planted import GoodDetector, GoodPurifier
from torch import Tensor, nn

from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.errors import (
    CalibrationError,
    ConfigError,
    InputError,
    MissingRequirementError,
    NotCalibratedError,
    NotFittedError,
)
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.testing import SmoothingDenoiser, tiny_classifier, tiny_dataset

# -- policies ----------------------------------------------------------------------------------------------------


def test_purify_flagged() -> None:
    chain = chain_of()
    found = chain.predict(DATA, seed=1)
    assert 0 < int(found.flagged.sum()) < len(DATA), "some, not all, must be flagged for this test to say anything"
    assert torch.equal(found.purified, found.flagged), "flagged images, and no others, are purified"
    assert torch.equal(found.images[~found.flagged], DATA.images[~found.flagged]), "other images must stay as they are"
    changed = (found.images != DATA.images).flatten(1).any(1)
    assert torch.equal(changed, found.flagged), "flagged images must change"
    assert torch.equal(found.logits[~found.flagged], found.bare_logits[~found.flagged]), "and so must their logits"
    reread = chain.classifier(found.images)
    assert torch.allclose(found.logits, reread, atol=1e-5), "the verdict must be that of the images it shows"
    assert torch.equal(found.labels, found.logits.argmax(1)), "labels are the largest logits"
    assert torch.allclose(found.probabilities.sum(1), torch.ones(len(DATA))), "probabilities must sum to one"
    assert bool((found.strength[found.flagged] > 0).all()), "flagged images have a strength"
    assert bool((found.strength[~found.flagged] == 0).all()), "other images have none"
    assert not found.abstained.any(), "this policy never abstains"


def test_the_trace() -> None:
    found = chain_of().predict(DATA, seed=1)
    trace = found.trace
    assert (trace.policy, trace.seed) == ("purify_flagged", 1), f"policy and seed: {trace.policy}, {trace.seed}"
    assert torch.equal(trace.nfe, found.flagged.long() * 3), "evaluations are counted where an image was purified"
    assert torch.equal(trace.timestep.isnan(), ~found.flagged), "a depth is known where an image was purified"
    deep = found.flagged
    assert torch.allclose(trace.timestep[deep], 10 + found.strength[deep]), "depths stand at their images"
    assert set(trace.seconds) == {"detect", "purify", "classify"}, f"stages: {sorted(trace.seconds)}"
    assert chain_of().predict(DATA).trace.seed is None, "a seed from the operating system is never published"


def test_purify_all() -> None:
    chain = chain_of("purify_all")
    found = chain.predict(DATA, seed=1)
    assert found.purified.all(), "everything must be purified"
    assert torch.equal(found.strength, torch.ones(len(DATA))), "at full strength"
    assert 0 < int(found.flagged.sum()) < len(DATA), "flags are still reported"
    assert sorted(itertools.chain(*chain.purifier.seen)) == sorted(DATA.ids.tolist()), "each image once"


def test_none() -> None:
    chain = chain_of("none")
    found = chain.predict(DATA, seed=1)
    assert not found.purified.any(), "nothing may be purified"
    assert torch.equal(found.logits, found.bare_logits), "the verdict is the bare classifier's"
    assert found.flagged.any(), "flags are still reported"
    assert chain.purifier.seen == [], "the purifier was called"


def test_abstain() -> None:
    chain = chain_of("abstain")
    found = chain.predict(DATA, seed=1)
    assert torch.equal(found.abstained, found.flagged), "flagged images are refused"
    assert found.abstained.any(), "some image must be refused for this test to say anything"
    assert torch.equal(found.logits, found.bare_logits), "the logits stay the bare classifier's"
    assert torch.equal(chain(DATA.images), chain.classifier(DATA.images)), "forward gives the K logits"


def test_without_a_detector() -> None:
    chain = DefendedClassifier(tiny_classifier(), purifier=CountingPurifier(), policy="purify_all")
    found = chain.predict(DATA, seed=1)
    assert found.scores is None, "no detector, no score"
    assert found.p_values is None, "no detector, no p-value"
    assert not found.flagged.any(), "no detector, no flag"
    assert found.purified.all(), "everything is purified all the same"
    bare = DefendedClassifier(tiny_classifier(), policy="none")
    assert torch.equal(bare(DATA.images), tiny_classifier()(DATA.images)), "an empty chain is the bare classifier"


def test_uncalibrated_policies_that_need_no_threshold() -> None:
    for policy in ("purify_all", "none"):
        found = chain_of(policy, calibrate=False).predict(DATA, seed=1)
        assert found.scores is not None, "scores are reported without a calibration"
        assert found.p_values is None, "p-values need one"
        assert not found.flagged.any(), "flags need one"


# -- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["purify_flagged", "abstain"])
def test_uncalibrated(policy: Any) -> None:
    chain = chain_of(policy, calibrate=False)
    for call in (chain.predict, chain, chain.read):
        with pytest.raises(NotCalibratedError, match="calibrate"):
            call(DATA.images)


@pytest.mark.parametrize(
    ("policy", "parts"),
    [
        ("purify_flagged", {"purifier": GoodPurifier()}),
        ("purify_flagged", {"detector": GoodDetector()}),
        ("purify_all", {"detector": GoodDetector()}),
        ("abstain", {"purifier": GoodPurifier()}),
    ],
)
def test_policies_without_their_parts(policy: Any, parts: dict[str, Any]) -> None:
    with pytest.raises(MissingRequirementError, match="pass"):
        DefendedClassifier(tiny_classifier(), policy=policy, **parts)


def test_detectors_without_what_they_require() -> None:
    watcher = create("detector", "denoising_disagreement")
    with pytest.raises(MissingRequirementError, match="requires denoiser"):
        DefendedClassifier(tiny_classifier(), detector=watcher, purifier=GoodPurifier())

    class Lends(SmoothingDenoiser, GoodPurifier):
        pass

    DefendedClassifier(tiny_classifier(), detector=watcher, purifier=Lends())
    with pytest.raises(MissingRequirementError, match="no detector"):
        DefendedClassifier(tiny_classifier(), policy="none").calibrate(BENIGN)


def test_unfitted_parts() -> None:
    watcher = create("detector", "mae")
    for chain in (
        DefendedClassifier(tiny_classifier(), detector=watcher, policy="none"),
        DefendedClassifier(tiny_classifier(), purifier=create("purifier", "ddpm"), policy="purify_all"),
    ):
        with pytest.raises(NotFittedError):
            chain.predict(DATA.images)
    with pytest.raises(NotFittedError):
        DefendedClassifier(tiny_classifier(), detector=watcher, policy="abstain").calibrate(BENIGN)


def test_unknown_policies() -> None:
    with pytest.raises(ConfigError, match="purify_flagged, purify_all, none, abstain"):
        DefendedClassifier(tiny_classifier(), policy="pray")


@pytest.mark.parametrize("policy", ["purify_flagged", "purify_all", "none", "abstain"])
def test_wrong_images(policy: Any) -> None:
    chain = chain_of(policy)
    holed = DATA.images.clone()
    holed[-1, 0, 5, 5] = torch.nan
    wrong = (DATA.images[0], DATA.pixels, DATA.images * 255, DATA.images - 0.5, holed, DATA.images.repeat(1, 3, 1, 1))
    for images in wrong:
        for call in (chain.predict, chain, chain.read):
            with pytest.raises(InputError):
                call(images)


def test_wrong_ids_and_empty_input() -> None:
    chain = chain_of()
    for ids in (DATA.ids[:-1], DATA.ids[:, None], DATA.ids.float()):
        with pytest.raises(InputError, match="ids"):
            chain.predict(DATA.images, ids)
    with pytest.raises(InputError, match="ids are given with a tensor"):
        chain.predict(DATA, DATA.ids)
    for nothing in (DATA.images[:0], [], DATA.select(torch.zeros(len(DATA), dtype=torch.bool))):
        with pytest.raises(InputError, match="no image"):
            chain.predict(nothing)


@pytest.mark.parametrize(
    "output", [lambda x: x, lambda x: x.flatten(1)[:, :1], lambda x: [x], lambda x: x.sum((1, 2, 3))]
)
def test_classifiers_that_give_no_logits(output: Any) -> None:
    class Wrong(nn.Module):
        def forward(self, images: Tensor) -> Any:
            return output(images)

    with pytest.raises(InputError, match="logits"):
        DefendedClassifier(Wrong(), policy="none").predict(DATA.images)


# -- calibration -------------------------------------------------------------------------------------------------


def test_calibration_keeps_to_its_rate_on_fresh_images() -> None:
    chain = chain_of("none", target_fpr=0.2)
    rate = float(chain.predict(tiny_dataset(400, seed=77), seed=2).flagged.double().mean())
    assert rate <= chain.calibration.true_fpr_quantile(0.999), f"{rate:.3f} of fresh benign images are flagged"


def test_one_image_of_each_group_calibrates() -> None:
    chain = chain_of()
    assert len(chain.calibration) == BENIGN.num_groups == 60, "twins carry no information"
    chain.calibrate(BENIGN.images, 0.1)
    assert len(chain.calibration) == 120, "a tensor has no groups"
    with pytest.raises(CalibrationError, match="at least 99"):
        chain.calibrate(BENIGN, 0.01)
    assert chain.calibration.target_fpr == 0.1, "a failed calibration must leave the old one"
    with pytest.raises(CalibrationError):
        chain.calibrate(BENIGN.images[:0])


def test_calibration_repeats_and_says_its_scope() -> None:
    first = chain_of().calibration
    again = chain_of().calibrate(BENIGN, 0.3, batch_size=7, scope="federation").calibration
    assert torch.allclose(again.scores, first.scores, atol=1e-6), "batching changes the calibration"
    assert again.scope == "federation", "the scope was not noted"


def test_another_rate_for_one_call() -> None:
    chain = chain_of(target_fpr=0.3)
    counts = [int(chain.predict(DATA, seed=1, target_fpr=rate).flagged.sum()) for rate in (0.05, 0.3, 0.9)]
    assert counts == sorted(counts), f"more must be flagged at a higher rate: {counts}"
    assert counts[0] < counts[2], f"the rate does nothing: {counts}"
    assert counts[1] == int(chain.predict(DATA, seed=1).flagged.sum()), "the calibrated rate is the default"
    found = chain.predict(DATA, seed=1, target_fpr=0.05)
    assert torch.equal(found.flagged, found.p_values <= 0.05), "flagged means p <= target_fpr"
    assert chain.calibration.target_fpr == 0.3, "one call must not change the defence"


# -- the nn.Module -----------------------------------------------------------------------------------------------


def test_forward_is_predict_under_fixed_noise() -> None:
    chain = chain_of()
    for policy in ("purify_flagged", "purify_all", "none", "abstain"):
        chain.policy = policy
        found = chain.predict(DATA.images, seed=8)
        with chain.fixed_noise(8):
            logits, images = chain(DATA.images), chain.read(DATA.images)
        assert torch.allclose(logits, found.logits, atol=1e-5), f"{policy}: forward and predict disagree"
        assert torch.allclose(images, found.images, atol=1e-5), f"{policy}: read and predict disagree"


def test_forward_draws_fresh_noise() -> None:
    chain = chain_of("purify_all")
    with torch.no_grad():
        one, two = chain(DATA.images), chain(DATA.images)
        assert not torch.equal(one, two), "each call must draw fresh noise"
        with chain.fixed_noise(3):
            three, four = chain(DATA.images), chain(DATA.images)
            with chain.fixed_noise(4):
                inner = chain(DATA.images)
            five = chain(DATA.images)
        six = chain(DATA.images)
    assert torch.equal(three, four), "inside fixed_noise the noise must stay"
    assert torch.equal(three, five), "an inner block must give the outer noise back"
    assert not torch.equal(three, inner), "another seed, equal noise"
    assert not torch.equal(three, six), "after the block noise must be fresh again"
    assert not torch.equal(chain_of("purify_all")(DATA.images), one), "two chains share their secret seed"


def test_a_noise_sequence_is_fresh_at_each_call_and_repeats() -> None:
    chain = chain_of("purify_all")

    def three(seed: int) -> list[torch.Tensor]:
        with torch.no_grad(), chain.noise_sequence(seed):
            return [chain(DATA.images) for _ in range(3)]

    first, again, other = three(5), three(5), three(6)
    assert not torch.equal(first[0], first[1]), "inside a sequence each call must draw fresh noise"
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True)), "equal seeds, other noise"
    assert not torch.equal(first[0], other[0]), "another seed, equal noise"
    with torch.no_grad():
        assert not any(torch.equal(chain(DATA.images), one) for one in first), "the sequence goes on after its block"


def test_fixed_noise_ends_with_an_error() -> None:
    chain = chain_of("purify_all")
    with pytest.raises(InputError), chain.fixed_noise(3):
        chain(DATA.images[0])
    assert not torch.equal(chain(DATA.images), chain(DATA.images)), "noise stayed fixed after an error"


def test_gradients_flow() -> None:
    chain = chain_of()
    images = DATA.images.clone().requires_grad_(True)
    with chain.fixed_noise(1):
        logits = chain(images)
    (slope,) = torch.autograd.grad(nn.functional.cross_entropy(logits, DATA.labels), images)
    assert bool(slope.isfinite().all()), "gradients must be finite"
    assert bool((slope.flatten(1).abs().sum(1) > 0).all()), "every image must receive a gradient"
    assert not chain.predict(images.detach(), seed=1).logits.requires_grad, "predictions carry no graph"


def test_the_gradient_is_right_where_the_decision_stays() -> None:
    chain = chain_of("purify_all").double()
    images = DATA.images[:2, :, 12:20, 12:20].double().requires_grad_(True)
    small = DefendedClassifier(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double(), purifier=chain.purifier, policy="purify_all"
    )
    with small.fixed_noise(1):
        assert torch.autograd.gradcheck(small, (images,), atol=1e-4), "the gradient differs from finite differences"


def test_a_defence_stays_in_eval_mode() -> None:
    model = tiny_classifier().train()
    chain = DefendedClassifier(model, detector=GoodDetector(), purifier=GoodPurifier())
    assert not model.training, "building a chain puts the classifier into eval mode"
    chain.train()
    assert not any(part.training for part in chain.modules()), "train() must not switch its parts"
    assert chain.train() is chain, "train() must return the chain"


def test_a_defence_is_a_module() -> None:
    chain = chain_of()
    names = {name.split(".")[0] for name, _ in chain.named_parameters()}
    assert "classifier" in names, "parameters of the parts must be found"
    assert chain.to(torch.float64) is chain, "it moves like a module"


def test_few_synchronizations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every transfer to the host stops a GPU: at most one for each batch, and one for each that is purified."""
    chain = chain_of()
    calls: list[str] = []
    for name in ("cpu", "item", "tolist", "__bool__", "__float__", "__int__"):
        original = getattr(Tensor, name)

        def counted(self: Tensor, *args: Any, _name: str = name, _original: Any = original, **options: Any) -> Any:
            # ids are on the CPU anyway, and so are the calibration's own float64 scores
            if self.is_floating_point() and (_name == "cpu" or self.dtype == torch.float32):
                calls.append(_name)
            return _original(self, *args, **options)

        monkeypatch.setattr(Tensor, name, counted)
    chain.predict(DATA.images, seed=1, batch_size=10)
    monkeypatch.undo()
    most = 3 + len(chain.purifier.seen)
    assert calls.count("cpu") <= most, f"{calls.count('cpu')} transfers for 3 batches and {most - 3} purified ones"
    host = [name for name in calls if name != "cpu"]
    assert not host, f"values were read one by one: {host}"


def test_a_module_with_many_classes_and_colours() -> None:
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 6, 7))
    chain = DefendedClassifier(bare, detector=GoodDetector(), purifier=GoodPurifier())
    images = torch.rand(50, 3, 8, 6)
    found = chain.calibrate(images, 0.1).predict(images, seed=0)
    assert found.logits.shape == (50, 7), f"logits have shape {tuple(found.logits.shape)}"
    assert len(found) == 50, "a prediction counts its images"


def test_images_of_any_origin_are_batches() -> None:
    batch = Batch(DATA.images[:3], DATA.labels[:3], DATA.ids[:3])
    one = chain_of().predict([batch], seed=0)
    two = chain_of().predict(ImageDataset.concatenate([DATA.select(torch.arange(3))]), seed=0)
    assert_same(one, two, "a Batch and a data set")


def test_a_prediction_shows_where_when_asked() -> None:
    chain = chain_of("none")
    chain.detector = create("detector", "feature_squeezing")
    found = chain.predict(DATA, seed=1, explain=True, batch_size=7)
    assert found.suspicion_map is not None
    assert found.suspicion_map.shape == (len(DATA), 1, *DATA.image_shape[1:])
    other = chain.predict(DATA, seed=1, explain=True, batch_size=64).suspicion_map
    assert torch.allclose(found.suspicion_map, other, atol=1e-6), "the map depends on the batch"
    assert chain.predict(DATA, seed=1).suspicion_map is None, "a map costs a score, and nobody asked"
    bare = DefendedClassifier(chain.classifier, policy="none")
    assert bare.predict(DATA, seed=1, explain=True).suspicion_map is None
