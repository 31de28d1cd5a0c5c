"""Attacks: checked inputs, and results that must pass the audit of their own budget."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import DoesNothing, GoodAttack
from torch import Tensor, nn

from medfedpure.core.attack import Budget, ThreatView, as_view, audit, length, project, step_along, unit
from medfedpure.core.errors import AuditError, InputError, MissingRequirementError, NotFittedError
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(6)
IMAGES = DATA.images * 0.5 + 0.25


def returning(result: Tensor, **flags: object) -> GoodAttack:
    """An attack whose answer is given."""
    made = type("Returning", (GoodAttack,), {"generate": lambda *args, **options: result, **flags})
    return made()


def test_distances_are_those_of_the_norm() -> None:
    change = torch.zeros_like(IMAGES)
    change[:, :, 0, 0] = torch.tensor([0.3, 0.1, 0.0, 0.2, 0.05, 0.01])[:, None]
    change[:, :, 1, 1] = 0.4 * change[:, :, 0, 0]
    linf = audit(IMAGES, IMAGES + change, Budget("linf", 0.3))
    l2 = audit(IMAGES, IMAGES + change, Budget("l2", 0.33))
    assert linf.tolist() == pytest.approx([0.3, 0.1, 0.0, 0.2, 0.05, 0.01], abs=1e-6), "the largest change"
    assert torch.allclose(l2, linf * (1 + 0.4**2) ** 0.5, atol=1e-6), "the Euclidean length"
    assert torch.equal(audit(IMAGES, IMAGES, None), torch.zeros(6)), "nothing changed"


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (IMAGES[:5], "shape"),
        (IMAGES * torch.nan, "not finite"),
        (IMAGES / 0.0, "not finite"),
        (IMAGES + 0.5, r"left \[0, 1\]"),
        (IMAGES - 0.5, r"left \[0, 1\]"),
        (IMAGES + 0.0302, "spent 0.0302 of a linf budget of 0.03"),
    ],
)
def test_results_that_must_not_count(result: Tensor, text: str) -> None:
    with pytest.raises(AuditError, match=text):
        returning(result)(tiny_classifier(), IMAGES, DATA.labels)


def test_rounding_error_is_no_overspending() -> None:
    result = returning(IMAGES + 0.03 + 5e-7)(tiny_classifier(), IMAGES, DATA.labels)
    assert float(result.distance.max()) == pytest.approx(0.03, abs=1e-5), "the distance is the budget"


def test_one_image_over_the_budget_is_enough() -> None:
    result = IMAGES.clone()
    result[4, 0, 3, 3] += 0.1
    with pytest.raises(AuditError, match="Returning"):
        returning(result)(tiny_classifier(), IMAGES, DATA.labels)


def test_masks_are_audited() -> None:
    mask = torch.zeros(6, 1, 32, 32, dtype=torch.bool)
    mask[:, :, :16] = True
    inside, outside = IMAGES.clone(), IMAGES.clone()
    inside[:, :, :16] += 0.02
    outside[:, :, 16:] += 0.02
    returning(inside, supports_mask=True)(tiny_classifier(), IMAGES, DATA.labels, mask=mask)
    with pytest.raises(AuditError, match="outside its mask"):
        returning(outside, supports_mask=True)(tiny_classifier(), IMAGES, DATA.labels, mask=mask)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(6, 32, 32, dtype=torch.bool),
        torch.ones(6, 1, 32, 32),
        torch.ones(5, 1, 32, 32, dtype=torch.bool),
        torch.ones(6, 1, 16, 16, dtype=torch.bool),
    ],
    ids=["rank", "dtype", "count", "size"],
)
def test_wrong_masks_are_refused(mask: Tensor) -> None:
    with pytest.raises(InputError, match="mask"):
        returning(IMAGES, supports_mask=True)(tiny_classifier(), IMAGES, DATA.labels, mask=mask)


def test_success_is_another_class_or_the_target() -> None:
    model = tiny_classifier()
    labels = model(IMAGES).argmax(1)
    untouched = DoesNothing()(model, IMAGES, labels)
    assert not untouched.success.any(), "nothing was changed, and yet it counts as success"
    assert DoesNothing()(model, IMAGES, 1 - labels).success.all(), "a wrong prediction counts as success"
    made = returning(IMAGES, supports_targets=True)
    reached = made(model, IMAGES, labels, targets=torch.zeros(6, dtype=torch.int64)).success
    assert torch.equal(reached, labels == 0), "with targets, success is reaching them"


def test_what_is_not_supported_is_refused() -> None:
    model = tiny_classifier()
    with pytest.raises(InputError, match="does not support mask"):
        GoodAttack()(model, IMAGES, DATA.labels, mask=torch.ones(6, 1, 32, 32, dtype=torch.bool))
    with pytest.raises(InputError, match="does not support targets"):
        GoodAttack()(model, IMAGES, DATA.labels, targets=DATA.labels)


def test_requirements_of_the_view() -> None:
    model = tiny_classifier()
    seeing = type("Seeing", (DoesNothing,), {"requires": frozenset({"score", "threshold"})})()
    with pytest.raises(MissingRequirementError, match=r"must see score, threshold, which the view 'static' hides"):
        seeing(model, IMAGES, DATA.labels)
    with pytest.raises(MissingRequirementError, match="must see threshold"):
        seeing(ThreatView(model, score=lambda x: x.sum((1, 2, 3))), IMAGES, DATA.labels)
    seeing(ThreatView(model, score=lambda x: x.sum((1, 2, 3)), threshold=0.0), IMAGES, DATA.labels)


def test_a_view_is_a_module() -> None:
    model = tiny_classifier()
    view = as_view(model)
    assert as_view(view) is view, "a view is returned as it is"
    assert torch.equal(view(IMAGES), model(IMAGES)), "a view answers as its module"
    assert len(list(view.parameters())) == len(list(model.parameters())), "parameters must be found through the view"
    assert isinstance(as_view(nn.Flatten()), ThreatView), "any module will do"


def test_a_view_never_trains_what_it_shows() -> None:
    model, behind = nn.Sequential(nn.Dropout()).train(), nn.Dropout().eval()
    view = ThreatView(model, of=behind)
    assert model.training, "making a view must change no mode"
    view.train()
    assert not behind.training, "a view must not put what is behind it into training mode"
    view.eval()
    assert not any(part.training for part in model.modules()), "eval() must reach what is shown"


def test_what_is_behind_a_view_is_found_through_it() -> None:
    one, two = nn.Linear(2, 2), nn.Linear(2, 3)
    view = ThreatView(lambda images: two(one(images)), of=(one, two))
    assert set(view.parameters()) == {*one.parameters(), *two.parameters()}, "parameters must be found"
    assert set(ThreatView(one, of=one).parameters()) == set(one.parameters()), "what is named twice counts once"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(1e-3, 3),
    far=st.floats(0, 10),
    masked=st.booleans(),
)
def test_projection(seed: int, norm: str, eps: float, far: float, masked: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(3, 2, 4, 5, generator=generator)
    mask = torch.rand(3, 1, 4, 5, generator=generator) < 0.5 if masked else None
    there = images + far * torch.randn(images.shape, generator=generator)
    found = project(there, images, norm, eps, mask)
    assert float(length(found - images, norm).max()) <= eps + 1e-6, "outside the ball"
    assert 0 <= float(found.min()) <= float(found.max()) <= 1, "outside [0, 1]"
    assert mask is None or torch.equal(found[~mask.expand_as(found)], images[~mask.expand_as(found)]), "beyond the mask"
    assert torch.allclose(project(found, images, norm, eps, mask), found, atol=1e-6), "twice is not once"
    room = 1 + float(length(found - images, norm).max())
    assert torch.allclose(project(found, images, norm, room), found, atol=1e-6), "what lies inside must stay"


def test_steps_have_their_size_and_follow_the_gradient() -> None:
    gradient = torch.tensor([[3.0, -4.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    assert step_along(gradient, "linf", 0.5).flatten().tolist() == [0.5, -0.5, 0, 0], "the sign"
    assert step_along(gradient, "l2", 0.5).flatten().tolist() == pytest.approx([0.3, -0.4, 0, 0]), "the direction"
    assert length(unit(gradient), "l2").tolist() == pytest.approx([1, 0]), "length 1, and zero stays zero"
    assert length(gradient, "linf").tolist() == [4, 0], "the largest"


def test_attacks_may_learn_and_need_not() -> None:
    plain = GoodAttack()
    assert plain.fit(DATA) is plain, "an attack that learns nothing is itself after fit"
    learner = type("Learner", (GoodAttack,), {"needs_fit": True})()
    with pytest.raises(NotFittedError, match="attack 'Learner' is not fitted"):
        learner(tiny_classifier(), IMAGES, DATA.labels)
    assert learner.fit(DATA, view=tiny_classifier())(tiny_classifier(), IMAGES, DATA.labels).success.shape == (6,)


def test_descriptions_hold_every_setting() -> None:
    assert GoodAttack(eps="8/255").describe() == "GoodAttack: norm linf, eps 0.0313725", "settings must be readable"
    result = GoodAttack(eps=0.02)(tiny_classifier(), IMAGES, DATA.labels)
    assert result.description == "GoodAttack: norm linf, eps 0.02", "the result carries the description"
