"""The contract of attacks."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from medfedpure.core.attack import Attack, ThreatView
from medfedpure.core.dataset import ImageDataset, bits_of
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import AuditError, InputError, MissingRequirementError, NotFittedError
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import fooled, verdicts
from medfedpure.testing.checking import (
    assert_bad_images_are_refused,
    assert_equal,
    assert_in_range,
    global_rng_untouched,
    module_unchanged,
    unchanged,
)
from medfedpure.testing.components import ComponentContract, fitted_copy, new_like
from medfedpure.testing.observing import observe, view_of
from medfedpure.testing.quality import many, strengthened
from medfedpure.testing.setting import Setting

SIGHT = frozenset({"score", "threshold", "features"})


class AttackContract(ComponentContract):
    """Adversarial images within a stated budget, from a model that is only lent."""

    kind: ClassVar[str] = "attack"

    def test_result(self, component: Attack, setting: Setting) -> None:
        """Shape, device, dtype and range kept; success and distance for each image; within the budget."""
        images, size = setting.images, len(setting.images)
        result = component(view_of(setting), images, setting.labels, streams=setting.streams)
        assert result.images.shape == images.shape, f"images have shape {tuple(result.images.shape)}"
        assert result.images.dtype == images.dtype, f"images are {result.images.dtype}, not {images.dtype}"
        assert result.images.device == images.device, f"images are on {result.images.device}"
        assert not result.images.requires_grad, "adversarial images must carry no graph"
        assert_in_range(result.images, "adversarial images", 1e-6)
        assert result.success.dtype == torch.bool, f"success must be bool; got {result.success.dtype}"
        assert result.success.shape == (size,), f"success has shape {tuple(result.success.shape)}"
        assert result.distance.shape == (size,), f"distance has shape {tuple(result.distance.shape)}"
        budget = component.budget()
        if budget is not None:
            spent = float(result.distance.max())
            assert spent <= budget.eps * (1 + 1e-5) + 1e-6, f"{spent:g} of a budget of {budget.eps:g} was spent"

    def test_description_holds_the_threat(self, component: Attack, setting: Setting) -> None:
        """Norm and eps stand beside every number."""
        result = component(view_of(setting), setting.images, setting.labels, streams=setting.streams)
        assert component.name in result.description, f"the name is missing in {result.description!r}"
        budget = component.budget()
        if budget is not None:
            for part in (budget.norm, "eps", f"{budget.eps:g}"):
                assert part in result.description, f"{part!r} is missing in {result.description!r}"

    def test_success_means_another_class(self, component: Attack, setting: Setting) -> None:
        """`success` is what the view says of the adversarial images."""
        view = view_of(setting)
        result = component(view, setting.images, setting.labels, streams=setting.streams)
        with torch.no_grad():
            fallen = fooled(verdicts(view(result.images)), setting.labels)
        assert torch.equal(result.success, fallen), "success differs from the view's verdict"

    def test_it_attacks(self, component: Attack, setting: Setting) -> None:
        """The true classes become less likely."""
        view = view_of(setting)
        result = component(view, setting.images, setting.labels, streams=setting.streams)
        with torch.no_grad():
            before, after = (
                float(nn.functional.cross_entropy(view(images), setting.labels))
                for images in (setting.images, result.images)
            )
        assert after > before, f"cross-entropy {before:.4g} before and {after:.4g} after: nothing was gained"

    @pytest.fixture(scope="class")
    @classmethod
    def strong(cls, component: Attack, train: ImageDataset, context: ScoreContext) -> Attack:
        """The attack with a budget that must be enough: eps 0.3 where it has one."""
        stronger: Attack = fitted_copy(strengthened(component), train, context)
        return stronger

    def test_accuracy_is_lowered(self, strong: Attack, setting: Setting) -> None:
        """With a large budget, a small classifier misreads images that it read correctly."""
        some = many(setting, 12)
        view = view_of(some)
        with torch.no_grad():
            right = ~fooled(verdicts(view(some.images)), some.labels)
        read = some.select(right.nonzero().squeeze(1))
        assert len(read.images), "the classifier of the context reads no image correctly: train it longer"
        result = strong(view_of(read), read.images, read.labels, streams=read.streams)
        assert bool(result.success.any()), (
            f"accuracy is not lowered: none of {len(read.images)} images fools ({result.description})"
        )

    def test_another_device(self, component: Attack, setting: Setting, device: str) -> None:
        """On an accelerator: adversarial images are there, and nearly those of the CPU."""
        found = observe(component, setting.to(device))["images"]
        assert found.device.type == torch.device(device).type, f"images were on {device}, answers are on {found.device}"
        share = float(((found.cpu() - observe(component, setting)["images"]).abs() <= 1e-3).float().mean())
        assert share >= 0.9, f"only {share:.0%} of the pixels agree between {device} and the CPU"

    def test_a_plain_module_will_do(self, component: Attack, setting: Setting) -> None:
        """Any module from images to logits is wrapped as a view."""
        if component.requires:
            pytest.skip("it must see more than logits")
        on_view = observe(component, setting)["images"]
        classifier = setting.context.classifier
        assert classifier is not None
        on_module = component(classifier, setting.images, setting.labels, streams=setting.streams).images
        assert torch.equal(on_module, on_view), "a plain module and a view of it give different images"

    def test_the_model_is_only_lent(self, component: Attack, setting: Setting) -> None:
        """Weights, buffers, gradients, requires_grad and modes are as before, also of a model that is being trained."""
        trainable = copy.deepcopy(setting.context.classifier)
        assert trainable is not None
        trainable.requires_grad_(True).train()
        shown = view_of(setting)
        view = ThreatView(trainable, score=shown.score, threshold=shown.threshold, features=shown.features)
        with module_unchanged(trainable, component.name):
            component(view, setting.images, setting.labels, streams=setting.streams)

    def test_requirements(self, component: Attack, setting: Setting) -> None:
        """`requires` names what it must see; hidden, MissingRequirementError."""
        assert component.requires <= SIGHT, f"requires knows {sorted(SIGHT)}; got {sorted(component.requires - SIGHT)}"
        for name in component.requires:
            with pytest.raises(MissingRequirementError):
                component(view_of(setting, hide=name), setting.images, setting.labels)

    def test_fit_is_needed_where_declared(self, unfitted: Attack, setting: Setting) -> None:
        """`needs_fit` says whether it refuses to work before `fit`."""
        fresh = new_like(unfitted)
        assert fresh.fitted is not fresh.needs_fit, "needs_fit must say whether a new instance is fitted"
        if not fresh.needs_fit:
            return
        with pytest.raises(NotFittedError):
            observe(fresh, setting)

    def test_fit_repeats(self, unfitted: Attack, setting: Setting) -> None:
        """Fitting again on equal data gives an attack that answers the same, and leaves no trace."""
        data = {"pixels": bits_of(setting.train.pixels), "labels": setting.train.labels}
        first, second = new_like(unfitted), new_like(unfitted)
        with global_rng_untouched("fit"), unchanged(data, "fit"):
            result = first.fit(setting.train, view=view_of(setting))
        assert result is first, "fit must return self"
        assert first.fitted, "fit must end with mark_fitted()"
        if type(unfitted).fit is not Attack.fit:
            second.fit(setting.train, view=view_of(setting))
            assert_equal(observe(second, setting), observe(first, setting), "fitted twice on equal data")

    def test_what_it_learned_is_saved(
        self, unfitted: Attack, setting: Setting, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        """Fitted, saved and loaded, it answers the same, bit by bit."""
        if type(unfitted).fit is Attack.fit:
            pytest.skip("it learns nothing before it attacks")
        fitted, folder = new_like(unfitted), tmp_path_factory.mktemp("fitted") / "part"
        fitted.fit(setting.train, view=view_of(setting)).save(folder)
        assert_equal(observe(Attack.load(folder), setting), observe(fitted, setting), "fitted, saved, then loaded")

    def test_overspending_is_caught(self, component: Attack, setting: Setting) -> None:
        """A variant that leaves the budget raises AuditError: its images must not count."""
        budget = component.budget()
        if budget is None:
            pytest.skip("an attack of minimal distance has no budget")
        if budget.eps >= 0.45:
            pytest.skip("the budget is the whole range")

        def overspend(_: Attack, view: ThreatView, images: Tensor, *args: Any, **options: Any) -> Tensor:
            del view, args, options
            step = min(0.5, 2 * budget.eps + 0.01)
            return torch.where(images > 0.5, images - step, images + step)

        cheat: Any = type("Overspending", (type(component),), {"generate": overspend})(component.config)
        cheat.mark_fitted()
        with pytest.raises(AuditError):
            cheat(view_of(setting), setting.images, setting.labels)

    def test_wrong_inputs_are_refused(self, component: Attack, setting: Setting) -> None:
        """Rank, dtype, NaN and range of the images; shape, dtype and range of the labels."""
        view, labels = view_of(setting), setting.labels
        assert_bad_images_are_refused(lambda bad: component(view, bad, labels[: len(bad)]), setting.images)
        for wrong in (labels[:-1], labels.float(), labels[:, None], labels - 2, labels + setting.train.num_classes):
            with pytest.raises(InputError):
                component(view, setting.images, wrong)

    def test_masks(self, component: Attack, setting: Setting) -> None:
        """Only pixels inside the mask change; without support, InputError."""
        mask = torch.zeros(len(setting.images), 1, *setting.images.shape[2:], dtype=torch.bool)
        mask[..., setting.images.shape[3] // 2 :] = True
        view = view_of(setting)
        if not component.supports_mask:
            with pytest.raises(InputError):
                component(view, setting.images, setting.labels, mask=mask)
            return
        result = component(view, setting.images, setting.labels, mask=mask, streams=setting.streams)
        outside = (result.images - setting.images)[~mask.expand_as(setting.images)]
        assert not outside.any(), "pixels outside the mask were changed"
        assert not torch.equal(result.images, setting.images), "with half of the pixels allowed, none was changed"

    def test_targets(self, component: Attack, setting: Setting) -> None:
        """The wanted classes become more likely; without support, InputError."""
        view, targets = view_of(setting), 1 - setting.labels.clamp_max(1)
        if not component.supports_targets:
            with pytest.raises(InputError):
                component(view, setting.images, setting.labels, targets=targets)
            return
        result = component(view, setting.images, setting.labels, targets=targets, streams=setting.streams)
        with torch.no_grad():
            before, after = (
                float(nn.functional.cross_entropy(view(images), targets)) for images in (setting.images, result.images)
            )
            reached = fooled(verdicts(view(result.images)), setting.labels, targets)
        assert after < before, f"cross-entropy to the targets rose from {before:.4g} to {after:.4g}"
        assert torch.equal(result.success, reached), "success must mean that the target was reached"

    def test_batch_invariance(self, component: Attack, setting: Setting) -> None:
        """An image's perturbation hardly depends on the batch around it: a sign may flip at a flat place.

        An attack that otherwise learns from its batch is fitted first. Where an attack decides at every step, rounding
        can lead a single image elsewhere: one may, or one in ten.
        """
        if not (component.per_image_streams or component.deterministic):
            pytest.skip("an adapter whose noise comes from global generators")
        fitted = learned(component, setting)
        if fitted.learns_from_batch:
            pytest.skip("it learns from its batch, and `fit` changes nothing")
        whole = observe(fitted, setting)["images"]
        alone = torch.cat([observe(fitted, setting.select(torch.tensor([i])))["images"] for i in range(len(whole))])
        agreeing = ((alone - whole).abs() <= 1e-5).float().flatten(1).mean(1)
        strays = int((agreeing < 0.99).sum())
        assert strays <= max(1, len(whole) // 10), (
            f"{strays} of {len(whole)} images come out otherwise when each is attacked alone"
        )

    def test_deterministic_where_declared(self, component: Attack, setting: Setting) -> None:
        """`deterministic` means that neither seed nor ids matter."""
        if not component.deterministic:
            pytest.skip("deterministic = False")
        other = Streams(setting.seed + 1, setting.ids + 1000)
        again = component(view_of(setting), setting.images, setting.labels, streams=other).images
        assert torch.equal(again, observe(component, setting)["images"]), "another seed gives other images"


def learned(attack: Attack, setting: Setting) -> Attack:
    """The attack; of one that learns from its batch, a new one that was fitted before."""
    if not attack.learns_from_batch:
        return attack
    fitted: Attack = new_like(attack).fit(setting.train, view=view_of(setting))
    return fitted
