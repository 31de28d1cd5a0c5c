"""Assertions that several contracts share."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.errors import InputError


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], why: str) -> None:
    """Bit-equal tensors under equal names."""
    assert found.keys() == wanted.keys(), f"{why}: {sorted(found.keys() ^ wanted.keys())} on one side only"
    for key, value in wanted.items():
        assert found[key].dtype == value.dtype, f"{why}: {key} is {found[key].dtype}, not {value.dtype}"
        assert found[key].shape == value.shape, f"{why}: {key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
        same = torch.equal(torch.nan_to_num(found[key].detach()), torch.nan_to_num(value.detach()))
        assert same, f"{why}: {key} differs by up to {_gap(found[key], value):.3g}"


def assert_near(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], tolerance: float, why: str) -> None:
    """Tensors under equal names that agree within a tolerance, relative to the largest value where that is above 1."""
    assert found.keys() == wanted.keys(), f"{why}: {sorted(found.keys() ^ wanted.keys())} on one side only"
    for key, value in wanted.items():
        assert found[key].shape == value.shape, f"{why}: {key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
        largest = value.detach().double().abs().nan_to_num().max().clamp_min(1.0)
        gap = (found[key].detach().double() - value.detach().double()).abs().nan_to_num().max() / largest
        assert float(gap) <= tolerance, f"{why}: {key} differs by up to {float(gap):.3g}; {tolerance:g} is allowed"


def assert_in_range(images: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Every pixel lies in [0, 1]."""
    low, high = (float(value) for value in torch.aminmax(images.detach()))
    inside = low >= -tolerance and high <= 1 + tolerance
    assert inside, f"{what} must lie in [0, 1]; got [{low:.4g}, {high:.4g}]"


def _gap(first: Tensor, second: Tensor) -> float:
    return float((first.detach().double() - second.detach().double()).abs().max())


@contextmanager
def global_rng_untouched(who: str) -> Iterator[None]:
    """Fail when the block leaves torch's, Python's or numpy's global generator in another state."""
    before = _rng_states()
    yield
    after = _rng_states()
    changed = [name for name, state in before.items() if after[name] != state]
    assert not changed, f"{who} changed the global random state of {', '.join(changed)}: draw from streams"


def seed_everything(seed: int) -> None:
    """Seed every global generator that is loaded."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


@contextmanager
def keep_global_rng() -> Iterator[None]:
    """Put every global generator back as it was before the block."""
    torch_state, python_state = torch.random.get_rng_state(), random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        torch.random.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy is not None:
            numpy.random.set_state(numpy_state)


def _rng_states() -> dict[str, object]:
    states: dict[str, object] = {"torch": torch.random.get_rng_state().tolist(), "random": random.getstate()}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = (name, keys.tobytes(), *rest)
    return states


@contextmanager
def unchanged(tensors: Mapping[str, Tensor], who: str) -> Iterator[None]:
    """Fail when the block writes into one of these tensors."""
    before = {key: value.detach().clone() for key, value in tensors.items()}
    yield
    changed = [key for key, value in before.items() if not torch.equal(tensors[key].detach(), value)]
    assert not changed, f"{who} wrote into {', '.join(changed)}: work on a copy"


@contextmanager
def module_unchanged(module: nn.Module | None, who: str) -> Iterator[None]:
    """Fail when the block changes weights, gradients or modes of a module that is only lent."""
    if module is None:
        yield
        return
    modes = {name: part.training for name, part in module.named_modules()}
    wanted = {name: weight.requires_grad for name, weight in module.named_parameters()}
    gradients = {name: weight.grad for name, weight in module.named_parameters()}
    with unchanged(module.state_dict(), who):
        yield
    assert modes == {n: p.training for n, p in module.named_modules()}, f"{who} left the module in another mode"
    assert wanted == {n: w.requires_grad for n, w in module.named_parameters()}, f"{who} changed requires_grad"
    same = all(weight.grad is gradients[name] for name, weight in module.named_parameters())
    assert same, f"{who} left gradients in the weights of a module that it was lent"


def assert_bad_images_are_refused(call: Callable[[Tensor], object], images: Tensor, *, values: bool = True) -> None:
    """InputError for every kind of wrong images; with `values`, also for NaN and a wrong range."""
    holed = images.clone()
    holed[0, 0, 0, 0] = torch.nan
    wrong: dict[str, Tensor] = {
        "one image without a batch dimension": images[0],
        "a volume": images[:, :, None],
        "uint8": (images * 255).to(torch.uint8),
        "int64": images.round().long(),
    }
    if values:
        wrong |= {"NaN": holed, "values above 1": images * 255, "values below 0": images * 2 - 1}
    for what, bad in wrong.items():
        try:
            call(bad)
        except InputError:
            continue
        except Exception as error:
            pytest.fail(f"{what} must raise InputError; {error!r} came")
        pytest.fail(f"{what} must raise InputError, and was accepted")
