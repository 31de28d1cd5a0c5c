"""A mix of two networks: its formula, its gradients, what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.errors import ConfigError
from medfedpure.core.registry import create
from medfedpure.models.mixed import mixed, transformed

SMALL = {"robust_config": {"widths": (4, 8)}, "plain_config": {"widths": (8,)}}


def a_mix(classes: int = 3, **options: Any) -> ClassifierModel:
    built = create("classifier", "mixed", {**SMALL, **options})
    return built.create_model(in_channels=1, num_classes=classes, image_size=16, seed=1)


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))


def by_hand(row: list[float], scale: float, power: float, shift: float) -> list[float]:
    """s sgn(u) |u|^p of one row, written down as in the paper."""
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in row) / (len(row) - 1))
    found = []
    for value in row:
        x = (value - mean) / deviation + shift
        u = x * 0.5 * (1 + math.erf(x / math.sqrt(2)))
        found.append(scale * math.copysign(abs(u) ** power, u))
    return found


def test_the_map_is_that_of_the_paper() -> None:
    rows = torch.tensor([[2.0, -1.0, 0.5, 0.1], [0.3, 0.2, 0.1, -4.0]], dtype=torch.float64)
    found = transformed(rows, scale=5.0, power=4.0, shift=-1.1, unit=0)
    wanted = torch.tensor([by_hand(row, 5.0, 4.0, -1.1) for row in rows.tolist()], dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=1e-6)


def test_the_mix_is_that_of_probabilities() -> None:
    robust, plain = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = mixed(robust, plain, alpha=0.8, temperature=0.5)
    assert torch.allclose(found.exp(), 0.2 * (plain / 0.5).softmax(1) + 0.8 * robust.softmax(1))
    sharp = mixed(robust, plain, alpha=0.8, temperature=0)
    one = torch.nn.functional.one_hot(plain.argmax(1), 3)
    assert torch.allclose(sharp.exp(), 0.2 * one + 0.8 * robust.softmax(1))


@pytest.mark.parametrize(
    "options", [{}, {"unit": 0, "power": 3.0, "shift": -1.0}, {"temperature": 0.0}, {"alpha": 1.0}]
)
def test_answers_are_log_probabilities(options: dict[str, Any]) -> None:
    logs = a_mix(**options)(images())
    assert bool((logs <= 0).all())
    assert torch.allclose(logs.exp().sum(1), torch.ones(6), atol=1e-5)


@pytest.mark.parametrize("unit", [0.0, 1.0, 0.01])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_alone_the_robust_network_says_what_it_said(unit: float, shift: float) -> None:
    model = a_mix(alpha=1.0, power=1.0, scale=7.0, shift=shift, unit=unit)
    assert torch.equal(model(images(32)).argmax(1), model.network.robust(images(32)).argmax(1))
    other = a_mix(alpha=0.0)
    assert torch.equal(other(images(32)).argmax(1), other.network.plain(images(32)).argmax(1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_gradients_reach_both_networks_and_are_finite(temperature: float) -> None:
    model = a_mix(temperature=temperature, unit=0, power=3.0, shift=-1.0, alpha=0.9)
    torch.nn.functional.nll_loss(model(images()), torch.arange(6) % 3).backward()
    for member in (model.network.robust, model.network.plain):
        slopes = [parameter.grad for parameter in member.parameters()]
        assert all(slope is not None and bool(slope.isfinite().all()) for slope in slopes)
        assert any(bool(slope.count_nonzero()) for slope in slopes if slope is not None)


def test_no_parameters_make_an_answer_that_is_not_finite() -> None:
    model = a_mix(classes=2, scale=1e6, power=16.0, unit=1e-6)
    answer = model(images())
    assert bool(answer.isfinite().all())
    assert torch.equal(answer.argmax(1), model.network.robust(images()).argmax(1))
    seen = images().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(seen).sum(), seen)
    assert bool(gradient.isfinite().all())
    assert bool(a_mix(temperature=1e-6)(images()).isfinite().all())
    with pytest.raises(ConfigError, match="take 0, the limit"):
        a_mix(temperature=1e-38)


@pytest.mark.parametrize("value", [torch.ones(1), {4, 8}, float("nan")])
def test_what_no_file_holds_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="robust_config"):
        create("classifier", "mixed", robust_config={"widths": value})


def test_a_record_of_a_choice_that_cannot_be_is_refused() -> None:
    shares = {"robust": 0.5, "plain": 0.9, "mixed": 0.6}
    good = {"images": 9, "attack": "pgd", "beta": 0.9, "stands": 3, "right": 4, "clean": shares, "attacked": shares}
    assert "60.0%" in create("classifier", "mixed", chosen=good).config.chosen.describe()
    for bad in ({"clean": {}}, {"attacked": {**shares, "mixed": 1.5}}, {"stands": 5}, {"images": 3}):
        with pytest.raises(ConfigError):
            create("classifier", "mixed", chosen={**good, **bad})


def test_a_gradient_at_the_kink_of_the_power_is_finite() -> None:
    flat = torch.zeros(1, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad(transformed(flat, scale=1.0, power=1.5, shift=0.0, unit=1.0).sum(), flat)
    assert bool(gradient.isfinite().all())


def test_two_classes_have_no_layer_normalization() -> None:
    sure = torch.tensor([[9.0, -9.0], [0.1, -0.1]], dtype=torch.float64)
    flat = transformed(sure, scale=1.0, power=1.0, shift=0.0, unit=0)
    assert torch.allclose(flat[0], flat[1], atol=1e-5), "nothing is left of how sure it is"
    with pytest.raises(ConfigError, match="whatever the network says: give a unit"):
        a_mix(classes=2, unit=0)
    assert a_mix(classes=2, unit=1.0)(images()).shape == (6, 2)


def test_a_mix_of_mixes_is_refused() -> None:
    with pytest.raises(ConfigError, match="grows without bound"):
        create("classifier", "mixed", plain="mixed")


def test_head_and_features_are_those_of_both() -> None:
    model = a_mix()
    assert model.head_keys() == {
        f"network.{member}.head.{key}" for member in ("robust", "plain") for key in ("weight", "bias")
    }
    assert model.features(images()).shape == (6, 2 * 8 + 2 * 8)


def test_saved_and_loaded_it_answers_the_same(tmp_path: Path) -> None:
    model = a_mix(unit=0, power=2.0, shift=-0.5, alpha=0.9)
    model.save(tmp_path / "mix")
    loaded = ClassifierModel.load(tmp_path / "mix")
    assert loaded.architecture.config == model.architecture.config
    assert torch.equal(loaded(images()), model(images()))
