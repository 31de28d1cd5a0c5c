"""Attacks on models that are not as they should be: what is lent comes back, and what cannot be attacked is said."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from attacked import IMAGES, LABELS, MODEL, QUICK, attack, every_attack, seen
from torch import Tensor, nn

import medfedpure
from medfedpure.core.attack import ThreatView
from medfedpure.core.errors import InputError, MissingRequirementError
from medfedpure.core.verdict import as_they_answer, verdicts_of
from medfedpure.evaluation.views import bpda_view, exact_view, static_view, transfer_view


def half_frozen() -> nn.Module:
    """In training mode, with one part frozen and one BatchNorm more than most."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2)
    )
    model(IMAGES)
    model.train()
    model[3].eval()
    return model


def state_of(model: nn.Module) -> tuple[list[bool], dict[str, Tensor]]:
    return [part.training for part in model.modules()], copy.deepcopy(dict(model.named_buffers()))


def assert_as_before(model: nn.Module, before: tuple[list[bool], dict[str, Tensor]]) -> None:
    modes, buffers = state_of(model)
    assert modes == before[0], "a mode changed"
    for name, value in before[1].items():
        assert torch.equal(buffers[name], value), f"{name} changed"


def test_every_attack_is_tried() -> None:
    assert set(QUICK) == {record.name for record in medfedpure.registry().plugins("attack")}


# -- A5 ----------------------------------------------------------------------------------------


@every_attack
def test_a05_modes_and_buffers_are_as_before(name: str) -> None:
    """A5: an attack reads the model in eval mode, and afterwards every mode and buffer is as it was."""
    model = half_frozen()
    before = state_of(model)
    labels = copy.deepcopy(model).eval()(IMAGES).argmax(1)
    result = attack(name)(seen(model), IMAGES, labels)
    assert_as_before(model, before)
    told = copy.deepcopy(model).eval()(result.images).argmax(1) != labels
    assert torch.equal(result.success, told), "the model was not read in eval mode"


def test_a05_functions_and_methods_lead_to_their_modules() -> None:
    """A5: a model behind a function or a method is put into eval mode as well."""
    model = half_frozen()
    before = state_of(model)
    for shown in (lambda images: model(images), model.forward):
        attack("pgd_eot")(shown, IMAGES, LABELS)
        assert_as_before(model, before)


def test_a05_after_an_error_too() -> None:
    """A5: a model comes back as it was also where the attack fails."""
    model = half_frozen()
    before = state_of(model)
    with pytest.raises(InputError):
        attack("pgd")(model, IMAGES, LABELS + 2)
    assert_as_before(model, before)


class Restless(nn.Module):
    """Counts its calls in buffers, whatever the mode: one in place, one anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("rows", torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.rows = self.rows + len(images)
        return MODEL(images)


def test_a05_blocks_nest_and_restore_what_was_written() -> None:
    """A5: buffers that are written in eval mode too come back, and the outermost block restores the modes."""
    model = Restless().train()
    calls = model.calls
    with as_they_answer(model):
        model(IMAGES)
        with as_they_answer(model, model):
            assert not model.training
        assert not model.training, "the inner block ended the outer one"
        model.train()
    assert model.training
    assert model.calls is calls
    assert [float(model.calls), float(model.rows)] == [0, 0]


def test_a05_the_last_thread_out_restores() -> None:
    """A5: blocks that overlap, as those of threads do, leave nothing in eval mode and restore nothing too early."""
    model = half_frozen()
    before = state_of(model)
    first, second = as_they_answer(model), as_they_answer(model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in model.modules()), "restored while another still reads"
    second.__exit__(None, None, None)
    assert_as_before(model, before)


# -- A6 ----------------------------------------------------------------------------------------


class Spoilt(nn.Module):
    """Answers something else for images 1 and 4."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value, self.model = value, MODEL

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images).clone()
        if len(images) == len(IMAGES):
            logits[[1, 4]] = self.value
        return logits


@every_attack
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a06_a_model_that_is_not_finite_is_refused(name: str, value: float) -> None:
    """A6: rows that are not finite are counted and refused, never a success or a failure."""
    for labels in (LABELS, torch.zeros_like(LABELS)):
        with pytest.raises(InputError, match="NaN or infinity for 2 of 12 images"):
            attack(name)(seen(Spoilt(value)), IMAGES, labels)


def test_a06_what_turns_bad_on_the_way_is_refused_as_well() -> None:
    """A6: a model that is finite on benign images alone."""
    edge = ThreatView(lambda images: MODEL(images) / (images - IMAGES[: len(images)]).eq(0).all().float())
    with pytest.raises(InputError, match="NaN or infinity"):
        attack("pgd_eot")(edge, IMAGES, LABELS)
    with pytest.raises(InputError, match="for 2 of 12 images"):
        verdicts_of(Spoilt(torch.nan), IMAGES)


# -- A7 ----------------------------------------------------------------------------------------

OUTPUTS = {
    "one logit": (lambda logits: logits[:, 0], "torch.stack"),
    "one column": (lambda logits: logits[:, :1], "torch.stack"),
    "tuple": (lambda logits: (logits, logits), r"output\[0\]"),
    "list": (lambda logits: [logits], r"output\[0\]"),
    "dict": (lambda logits: {"logits": logits}, "'logits'"),
    "classes": (lambda logits: logits.argmax(1), "argmax"),
    "whole numbers": (lambda logits: (100 * logits).long(), "argmax"),
    "object": (lambda logits: SimpleNamespace(logits=logits), "output.logits"),
    "numpy": (lambda logits: logits.detach().numpy(), "from_numpy"),
    "map": (lambda logits: logits[:, :, None, None], "segmentation"),
    "rows": (lambda logits: logits[:-1], "out of scope"),
    "none": (lambda logits: None, "must return a torch tensor"),
}


class Answering(nn.Module):
    """MODEL, its answer in another form."""

    def __init__(self, form: object) -> None:
        super().__init__()
        self.model, self.form = MODEL, form

    def forward(self, images: Tensor) -> object:
        return self.form(self.model(images))


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", sorted(QUICK))
def test_a07_other_outputs_are_refused_by_every_attack(name: str, output: str) -> None:
    """A7: what is no logits `(N, K)` is refused in one sentence, which says what to do."""
    form, text = OUTPUTS[output]
    with pytest.raises(InputError, match=f"must map images to logits of shape .* got .*{text}"):
        attack(name)(seen(Answering(form)), IMAGES, LABELS)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a07_other_outputs_are_refused_by_every_view(output: str) -> None:
    """A7: the same sentence from every view, and where verdicts are read."""
    form, text = OUTPUTS[output]
    model = Answering(form)
    chain = medfedpure.DefendedClassifier(model, purifier=medfedpure.create("purifier", "median"), policy="purify_all")
    views = [static_view(chain), transfer_view(model), bpda_view(chain), exact_view(chain), ThreatView(model)]
    looks = [*views, lambda images: seen(model).look(images), lambda images: verdicts_of(model, images)]
    for look in looks:
        with pytest.raises(InputError, match=f"must map images to logits of shape .* got .*{text}"):
            look(IMAGES)


def test_a07_a_plain_function_is_a_classifier() -> None:
    """A7: functions are attacked as modules are; what cannot be called is refused."""
    found = [attack("pgd_eot")(shown, IMAGES, LABELS).images for shown in (MODEL, lambda images: MODEL(images))]
    assert torch.equal(*found)
    for wrong, text in ((None, "NoneType"), ("resnet18", "str"), (nn.Flatten, "Flatten, not built")):
        with pytest.raises(InputError, match=f"from images to logits; got .*{text}"):
            attack("pgd")(wrong, IMAGES, LABELS)


# -- C -----------------------------------------------------------------------------------------


@every_attack
@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
def test_c_attacks_work_without_gradients_around_them(name: str, block: type) -> None:
    """C: inside `no_grad` and `inference_mode` an attack finds what it finds outside."""
    outside = attack(name)(seen(MODEL), IMAGES, LABELS)
    with block():
        inside = attack(name)(seen(MODEL), IMAGES * 1.0, LABELS + 0)
    assert torch.equal(inside.images, outside.images)


def test_c_a_model_made_in_inference_mode_is_refused() -> None:
    """C: such weights can never have a gradient."""
    with torch.inference_mode():
        model = copy.deepcopy(MODEL)
    with pytest.raises(MissingRequirementError, match="inference_mode"):
        attack("pgd")(model, IMAGES, LABELS)


@every_attack
def test_c_images_that_require_grad_leave_no_graph(name: str) -> None:
    """C: nothing in a result carries a graph, and the images' own gradient is left alone."""
    images = IMAGES.clone().requires_grad_(True)
    result = attack(name)(seen(MODEL), images, LABELS)
    assert not any(item.requires_grad for item in (result.images, result.distance, result.success))
    assert images.grad is None


@pytest.mark.parametrize("place", ["images", "labels", "targets", "mask"])
@pytest.mark.parametrize("wrong", [None, "scan", [0.0]])
def test_c_what_is_no_tensor_is_refused(place: str, wrong: object) -> None:
    """C: None and other things in place of images, labels, targets or masks."""
    if wrong is None and place in ("targets", "mask"):
        return
    with pytest.raises(InputError, match=f"got {type(wrong).__name__}"):
        attack("pgd")(MODEL, **{"images": IMAGES, "labels": LABELS, place: wrong})


def test_c_rates_of_nothing() -> None:
    """C: a true positive rate needs scores of both kinds."""
    some, none = torch.rand(4), torch.empty(0)
    for benign, suspicious in ((some, none), (none, some), (none, none)):
        with pytest.raises(InputError, match="scores of both kinds"):
            medfedpure.true_positive_rate(benign, suspicious, 0.05)
