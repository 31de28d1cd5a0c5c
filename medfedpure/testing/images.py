"""What every part promises that answers image by image: detectors, purifiers, classifiers."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medfedpure.testing.checking import assert_equal, assert_near, module_unchanged
from medfedpure.testing.components import ComponentContract
from medfedpure.testing.observing import Observed, observe
from medfedpure.testing.setting import Setting

FLOAT32 = 1e-5
FLOAT64 = 1e-10
BFLOAT16 = 0.25
DEVICES = 1e-3


class ImageContract(ComponentContract):
    """Each answer depends on its own image, id and strength; never on the batch around it."""

    def test_one_row_for_each_image(self, subject: Any, setting: Setting) -> None:
        """Shapes follow the number of images; everything is finite and on the images' device."""
        for size in (1, 2, len(setting.images)):
            part = setting.select(torch.arange(size))
            for key, value in observe(subject, part).items():
                assert value.shape[:1] == (size,), f"{key} of {size} images has shape {tuple(value.shape)}"
                assert value.device == part.images.device, f"{key} is on {value.device}, not {part.images.device}"
                assert bool(value.isfinite().all()), f"{key} is not finite"

    def test_batch_invariance(self, subject: Any, setting: Setting) -> None:
        """A batch, each image alone, and a shuffled batch with its ids agree within 1e-5."""
        assert_batch_invariance(subject, setting, FLOAT32)

    def test_batch_invariance_in_float64(self, subject: Any, setting: Setting) -> None:
        """The same within 1e-10, once weights and images are float64."""
        if not isinstance(subject, nn.Module):
            pytest.skip("not an nn.Module: its weights cannot be moved to float64")
        assert_batch_invariance(copy.deepcopy(subject).double(), setting.double(), FLOAT64)

    def test_noise_drawn_on_the_device(self, subject: Any, setting: Setting, component: Any) -> None:
        """Under the "device" backend of the streams too, an answer does not depend on the batch; it is another one."""
        if component.deterministic or not component.per_image_streams:
            pytest.skip("deterministic, or its noise does not come from per-image streams")
        drawn = replace(setting, noise="device")
        assert_batch_invariance(subject, drawn, FLOAT32)
        found, reference = observe(subject, drawn), observe(subject, setting)
        alike = [key for key in found if found[key].is_floating_point() and not torch.equal(found[key], reference[key])]
        assert alike, "no answer changes with who draws the noise: take all noise from `streams`"

    def test_noise_belongs_to_the_id(self, subject: Any, setting: Setting, component: Any) -> None:
        """One image, often in a batch under one id, gets one answer; another id may get another."""
        if component.deterministic or not component.per_image_streams:
            pytest.skip("deterministic, or its noise does not come from per-image streams")
        size = len(setting.images)
        repeated = setting.select(torch.zeros(size, dtype=torch.int64))
        rows = observe(subject, repeated)
        first = {key: value[:1].expand_as(value) for key, value in rows.items()}
        assert_near(rows, first, FLOAT32, "one image under one id, repeated in a batch")

    def test_deterministic_where_declared(self, subject: Any, setting: Setting, component: Any) -> None:
        """`deterministic` means that neither seed nor ids matter."""
        if not component.deterministic:
            pytest.skip("deterministic = False")
        other = Setting(**{**vars(setting), "seed": setting.seed + 1, "ids": setting.ids + 1000})
        assert_equal(observe(subject, other), observe(subject, setting), "deterministic, with another seed and ids")

    def test_the_context_is_only_lent(self, subject: Any, setting: Setting) -> None:
        """The classifier and the denoiser of the chain keep weights, gradients and modes."""
        context, who = setting.context, type(subject).__name__
        denoiser = context.denoiser if isinstance(context.denoiser, nn.Module) else None
        with module_unchanged(context.classifier, who), module_unchanged(denoiser, who):
            observe(subject, setting)

    def test_half_precision(self, subject: Any, setting: Setting) -> None:
        """Under bfloat16 autocast, as an accelerated chain computes, answers stay finite and about the same."""
        exact = observe(subject, setting)
        with torch.no_grad(), torch.autocast(setting.images.device.type, torch.bfloat16):
            half = observe(subject, setting)
        for key, value in half.items():
            assert bool(value.isfinite().all()), f"{key} is not finite under bfloat16 autocast"
            wanted = exact[key].detach().double()
            gap = float((value.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1.0))
            assert gap <= BFLOAT16, f"{key} differs by {gap:.2g} of its size under bfloat16 autocast ({BFLOAT16:g})"

    def test_another_device(self, subject: Any, setting: Setting, device: str) -> None:
        """On an accelerator: answers are there, and those of the CPU, because noise is drawn on the CPU."""
        moved = copy.deepcopy(subject)
        if isinstance(moved, nn.Module):
            moved.to(device)
        found = observe(moved, setting.to(device))
        kind = torch.device(device).type
        elsewhere = [f"{key} on {value.device}" for key, value in found.items() if value.device.type != kind]
        assert not elsewhere, f"images were on {device}, but {', '.join(elsewhere)}"
        on_cpu = {key: value.cpu() for key, value in found.items()}
        assert_near(on_cpu, observe(subject, setting), DEVICES, f"{device} against the CPU")

    def test_gradients_where_declared(self, subject: Any, setting: Setting, component: Any) -> None:
        """`differentiable` means a finite gradient at every image, and not zero everywhere."""
        if not component.differentiable:
            pytest.skip("differentiable = False")
        images = setting.images.clone().requires_grad_(True)
        main = next(iter(observe(subject, Setting(**{**vars(setting), "images": images})).values()))
        assert main.requires_grad, "differentiable = True, but the answer does not depend on the images in autograd"
        weights = torch.linspace(0.5, 1.5, main.numel(), dtype=main.dtype).reshape(main.shape)
        (gradient,) = torch.autograd.grad((main * weights).sum(), images)
        assert bool(gradient.isfinite().all()), "the gradient to the images is not finite"
        assert bool(gradient.flatten(1).abs().sum(1).count_nonzero()), "the gradient to the images is zero everywhere"

    def test_gradients_agree_with_differences(self, subject: Any, setting: Setting, component: Any) -> None:
        """In float64 the gradient equals finite differences along a random direction (gradcheck, fast mode)."""
        if not component.differentiable or not isinstance(subject, nn.Module):
            pytest.skip("differentiable = False, or not an nn.Module")
        exact, double = copy.deepcopy(subject).double(), setting.select(torch.arange(2)).double()
        inside = (0.1 + 0.8 * double.images).requires_grad_(True)  # away from the kinks at 0 and 1

        def answer(images: Tensor) -> Tensor:
            return next(iter(observe(exact, Setting(**{**vars(double), "images": images})).values()))

        assert torch.autograd.gradcheck(answer, inside, fast_mode=True), "the gradient is not that of the answer"


def assert_batch_invariance(subject: Any, setting: Setting, tolerance: float) -> None:
    """Whole batch, single images, halves and a shuffled batch, ids carried along, answer alike."""
    size = len(setting.images)
    whole = observe(subject, setting)
    alone = _joined([observe(subject, setting.select(torch.tensor([place]))) for place in range(size)])
    assert_near(alone, whole, tolerance, "each image alone against the batch")
    order = torch.arange(size).roll(size // 2).flip(0)
    shuffled = observe(subject, setting.select(order))
    back = {key: value[order.argsort()] for key, value in shuffled.items()}
    assert_near(back, whole, tolerance, "the batch shuffled, ids carried along")


def assert_dtype_is_kept(subject: Any, setting: Setting, key: str) -> Tensor:
    """float32 in, float32 out; float64 in, float64 out; and both say the same."""
    single, double = observe(subject, setting), observe(subject, setting.double())
    assert single[key].dtype == torch.float32, f"{key} of float32 images is {single[key].dtype}"
    assert double[key].dtype == torch.float64, f"{key} of float64 images is {double[key].dtype}: keep the dtype"
    assert_near({key: double[key].float()}, {key: single[key]}, 1e-3, "float64 images against float32 images")
    return single[key]


def _joined(parts: list[Observed]) -> Observed:
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
