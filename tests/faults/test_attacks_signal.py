"""Attacks on models that give them no signal, or a wrong one: saturated, of other classes, probabilities, cut off."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from attacked import BLACK_BOX, BY_GRADIENT, IMAGES, LABELS, MODEL, QUICK, attack, every_attack, seen
from torch import Tensor, nn

import medfedpure
from medfedpure.core.attack import ThreatView
from medfedpure.core.checks import check_labels, check_logits
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import InputError, MissingRequirementError, ProbabilitiesWarning
from medfedpure.evaluation.views import exact_view, gated_logs
from medfedpure.testing import tiny_dataset

# -- A13 ---------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.model, self.factor = MODEL, factor

    def forward(self, images: Tensor) -> Tensor:
        return self.factor * self.model(images)

    def features(self, images: Tensor) -> Tensor:
        return self.model.features(images)


STRONG: dict[str, dict[str, object]] = {
    "pgd_eot": {"eps": 0.1, "step": 0.025, "steps": 10},
    "internal": {"eps": 1.0, "step": 0.25, "steps": 10},
    "hfc": {"eps": 0.1, "step": 0.025, "steps": 10, "loss": "ce"},
    "joint_pgd": {"eps": 0.1, "step": 0.025, "steps": 10, "loss": "ce"},
    "orthogonal_pgd": {"eps": 0.1, "step": 0.025, "steps": 10, "loss": "ce"},
    "pgd": {"eps": 0.1, "step": 0.025},
    "fgsm": {"eps": 0.1},
    "apgd": {"eps": 0.1, "steps": 20},
    "apgd_eot": {"eps": 0.1, "steps": 20},
    "fab": {"eps": 0.1, "steps": 20},
    "auto_attack_suite": {"eps": 0.1, "steps": 20, "queries": 0},
    "auto_attack": {"eps": 0.1, "steps": 10, "rounds": 1, "queries": 1},
    "art": {"attack": "MomentumIterativeMethod", "eps": 0.1, "options": {"eps_step": 0.025, "max_iter": 10}},
    "adversarial_patch": {"steps": 40},
    "deepfool": {"steps": 20},
    "carlini_wagner": {"steps": 10},
}


def success(name: str, factor: float, **options: object) -> tuple[float, str]:
    result = attack(name, **{**STRONG[name], **options})(seen(Scaled(factor)), IMAGES, LABELS)
    return float(result.success.float().mean()), result.description


@pytest.mark.parametrize("factor", [100.0, 1e6])
@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a13_larger_logits_save_nobody(name: str, factor: float) -> None:
    """A13: the same decisions in larger logits are fooled as often."""
    plain, _ = success(name, 1.0)
    scaled, said = success(name, factor)
    assert plain > 0.5, "the attack is too weak to tell"
    assert scaled >= plain - 0.1
    if name not in ("deepfool", "fab", "carlini_wagner", "auto_attack"):  # these raise margins, or end with one
        assert "the margin of logits was raised" in said


@pytest.mark.parametrize("name", ["pgd_eot", "pgd"])
def test_a13_where_nothing_saturates_nothing_is_said(name: str) -> None:
    """A13: a loss with a slope is raised as it is."""
    assert "margin" not in success(name, 1.0)[1]


def test_a13_in_l2_too() -> None:
    """A13: gradients too small to be squared, or too large, still have a direction."""
    for factor in (1e-30, 100.0, 1e6, 1e25):
        assert success("pgd_eot", factor, norm="l2", eps=2.0, step=0.5)[0] > 0.8, factor


def test_a13_through_the_gate_of_a_chain() -> None:
    """A13: an exact view mixes two branches, and neither may round to certain."""
    purifier, found = medfedpure.create("purifier", "median"), []
    for factor in (1.0, 1e6):
        model = Scaled(factor)
        detector = medfedpure.create("detector", "mahalanobis")
        detector.fit(tiny_dataset(60, seed=7), context=ScoreContext(model, model.features))
        chain = medfedpure.DefendedClassifier(model, detector=detector, purifier=purifier)
        view = exact_view(chain.calibrate(tiny_dataset(60, seed=6), 0.1))
        result = attack("pgd_eot", **STRONG["pgd_eot"])(view, IMAGES, view(IMAGES).argmax(1))
        found.append(float(result.success.float().mean()))
    assert found[0] > 0.5, "the attack is too weak to tell"
    assert found[1] >= found[0] - 0.1


def test_a13_the_gate_mixes_as_probabilities_do() -> None:
    """A13: in logarithms the exact view has the values and gradients of the mixture that it stands for."""
    generator = torch.Generator().manual_seed(0)
    flagged = torch.tensor([True, False, True, False])
    found = []
    for mix in (gated_logs, mixed_by_hand):
        generator.manual_seed(0)
        purified, raw = (torch.randn(4, 3, generator=generator).mul_(3).requires_grad_(True) for _ in range(2))
        soft = torch.rand(4, generator=generator).requires_grad_(True)
        logs = mix(purified, raw, flagged, soft)
        weights = torch.randn(4, 3, generator=generator)
        found.append((logs, *torch.autograd.grad((logs * weights).sum(), (purified, raw, soft))))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-4)


def mixed_by_hand(purified: Tensor, raw: Tensor, flagged: Tensor, soft: Tensor) -> Tensor:
    gate = (flagged.to(soft) + soft - soft.detach())[:, None]
    return (gate * purified.softmax(1) + (1 - gate) * raw.softmax(1)).log()


def test_a13_a_model_that_is_flat_itself_is_said_to_be() -> None:
    """A13: where no loss has a slope, the result says so."""
    flat = ThreatView(lambda images: torch.sigmoid(1e6 * MODEL(images)) * 3)
    result = attack("pgd_eot")(flat, IMAGES, LABELS)
    assert not result.success.any()
    assert "the gradient was zero" in result.description


# -- A15 ---------------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize(("wrong", "text"), [(2, r"must lie in 0\.\.1.* got 2"), (-1, "count from 0; got -1")])
def test_a15_classes_that_the_model_does_not_have(name: str, wrong: int, text: str) -> None:
    """A15: a label or target outside 0..K-1 is refused by every attack, and counts as no success."""
    labels = LABELS.clone()
    labels[5] = wrong
    with pytest.raises(InputError, match=text):
        attack(name)(seen(MODEL), IMAGES, labels)
    if attack(name).supports_targets and name != "art":
        with pytest.raises(InputError, match=text):
            attack(name)(seen(MODEL), IMAGES, LABELS, targets=labels)


def test_a15_the_check_for_whoever_knows_the_classes() -> None:
    """A15: the check that evaluations use."""
    check_labels(LABELS, len(LABELS), 2)
    check_labels(LABELS[:0], 0, 2)
    with pytest.raises(InputError, match="classifier answers 2 classes; got 3"):
        check_labels(LABELS + 2, len(LABELS), 2)


# -- A22 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(QUICK.keys() - {"apgd", "auto_attack"}))
def test_a22_probabilities_are_noticed(name: str) -> None:
    """A22: rows of probabilities are warned of once, unless verdicts alone are asked for."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        attack(name)(seen(nn.Sequential(MODEL, nn.Softmax(1))), IMAGES, LABELS)
    texts = [str(one.message) for one in told if one.category is ProbabilitiesWarning]
    assert len(texts) == (name != "hop_skip_jump")
    assert all("margins and their gradients" in text for text in texts)


def test_a22_logarithms_and_logits_are_not_taken_for_probabilities() -> None:
    """A22: what is no probability is not warned of."""
    for logits in (MODEL(IMAGES), MODEL(IMAGES).log_softmax(1), torch.sigmoid(MODEL(IMAGES)) * 0.4):
        check_logits(logits, len(IMAGES), values=True)
    for probabilities in (torch.full((3, 3), 1 / 3), torch.eye(3), MODEL(IMAGES).softmax(1).half()):
        with pytest.warns(ProbabilitiesWarning, match="leave the softmax out|Leave the softmax out"):
            check_logits(probabilities, len(probabilities), values=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["pgd_eot", "pgd", "hfc", "joint_pgd", "square", "deepfool"])
def test_a22_logits_of_another_precision_are_converted(name: str, dtype: torch.dtype) -> None:
    """A22: half precision and float64 are fooled like float32."""
    view = seen(lambda images: MODEL(images).to(dtype), MODEL.features)
    result = attack(name, **STRONG.get(name, {"eps": 0.1, "queries": 200}))(view, IMAGES, LABELS)
    assert float(result.success.float().mean()) > 0.5
    assert result.images.dtype == torch.float32
    assert view(IMAGES).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@every_attack
def test_a22_models_and_images_of_another_precision_are_attacked(name: str, dtype: torch.dtype) -> None:
    """A22: a whole model in half precision or float64 is attacked on images of its own."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(IMAGES[0].numel(), 2)).to(dtype)
    images = IMAGES.to(dtype)
    with torch.no_grad():
        result = attack(name)(seen(model), images, model(images).argmax(1))
    assert result.images.dtype == dtype


@pytest.mark.parametrize("name", ["pgd_eot", "pgd", "square", "joint_pgd"])
def test_a22_weights_of_another_precision_are_named(name: str) -> None:
    """A22: images and weights that do not fit each other are refused in a sentence."""
    plain = nn.Sequential(nn.Flatten(), nn.Linear(IMAGES[0].numel(), 2))
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(InputError, match=f"weights are {dtype} .* images torch.float32"):
            attack(name)(seen(plain.to(dtype)), IMAGES, LABELS)


class ByNumpy(nn.Module):
    """Right answers, and no way back from them."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.from_numpy(MODEL(images).numpy().copy())


@pytest.mark.parametrize("name", BY_GRADIENT)
def test_a22_without_a_gradient_no_attack_by_gradients_starts(name: str) -> None:
    """A22: a model that is cut off from its images is refused by every attack that needs its gradient."""
    with pytest.raises(MissingRequirementError, match=r"has no gradient.*square"):
        attack(name)(seen(ByNumpy()), IMAGES, LABELS)


@pytest.mark.parametrize("name", sorted(BLACK_BOX))
def test_a22_without_a_gradient_black_boxes_work(name: str) -> None:
    """A22: who needs no gradient is served."""
    assert attack(name)(seen(ByNumpy()), IMAGES, LABELS).images.shape == IMAGES.shape


def test_a22_a_gradient_of_weights_alone_is_none() -> None:
    """A22: an answer that depends on trainable weights, and not on the images, has no gradient either."""
    model = copy.deepcopy(MODEL).requires_grad_(True)
    hidden = {"model": model}
    with pytest.raises(MissingRequirementError, match="has no gradient"):
        attack("pgd_eot")(lambda images: hidden["model"](images.detach()), IMAGES, LABELS)
