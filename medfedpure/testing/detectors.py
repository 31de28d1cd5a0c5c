"""The contract of detectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.figures.metrics import auroc
from medfedpure.testing.checking import assert_bad_images_are_refused
from medfedpure.testing.images import ImageContract, assert_dtype_is_kept
from medfedpure.testing.observing import observe
from medfedpure.testing.quality import many, planted_shifts
from medfedpure.testing.setting import Setting
from medfedpure.testing.trainables import TrainableContract

REQUIREMENTS = frozenset({"classifier", "features", "denoiser", "labels"})
DETECTED = 0.7


class DetectorContract(ImageContract, TrainableContract):
    """Scores `(N,)`, each of its own image only."""

    kind: ClassVar[str] = "detector"

    def test_scores(self, component: Detector, setting: Setting) -> None:
        """`(N,)`, floating, dtype of the images, and not one constant for all of them."""
        scores = assert_dtype_is_kept(component, setting, "scores")
        assert scores.shape == (len(setting.images),), f"scores have shape {tuple(scores.shape)}"
        assert float(scores.detach().std()) > 0, "different images all have one score"

    def test_wrong_images_are_refused(self, component: Detector, setting: Setting) -> None:
        """Rank, dtype, NaN and range."""
        assert_bad_images_are_refused(lambda bad: component(bad, context=setting.context), setting.images)

    def test_requirements(self, component: Detector, setting: Setting) -> None:
        """`requires` names what it needs; without it, MissingRequirementError."""
        needed = component.requires
        assert needed <= REQUIREMENTS, f"requires knows {sorted(REQUIREMENTS)}; got {sorted(needed - REQUIREMENTS)}"
        for name in needed - {"labels"}:
            lacking = replace(setting.context, **{name: None})
            with pytest.raises(MissingRequirementError):
                component(setting.images, context=lacking, streams=setting.streams)
        only = {name: getattr(setting.context, name) for name in needed - {"labels"}}
        try:
            observe(component, replace(setting, context=ScoreContext(**only)))
        except Exception as error:
            pytest.fail(
                f"with {sorted(only) or 'nothing'} around it, as `requires` asks, it fails: {error!r}. It needs "
                "something that `requires` does not name"
            )

    @pytest.fixture(scope="class")
    @classmethod
    def shifts(cls, setting: Setting) -> Mapping[str, Tensor]:
        """By name, suspicious variants of the images of `many(setting)`; one of them must be found."""
        return planted_shifts(many(setting))

    def test_a_planted_shift_is_detected(
        self, practised: Detector, setting: Setting, shifts: Mapping[str, Tensor]
    ) -> None:
        """Higher = more suspicious: at least one planted shift is told from benign images."""
        benign = many(setting)
        with torch.no_grad():
            usual = observe(practised, benign)["scores"]
            found = {
                name: auroc(usual, observe(practised, replace(benign, images=images))["scores"])
                for name, images in shifts.items()
            }
        listed = ", ".join(f"{value:.2f} for {name}" for name, value in found.items())
        assert max(found.values()) >= DETECTED, (
            f"no planted shift is detected: AUROC {listed}; {DETECTED:g} is wanted for one of them. Higher must mean "
            "more suspicious; override the fixture `shifts` with what this detector looks for"
        )

    def test_the_map(self, component: Detector, setting: Setting) -> None:
        """`suspicion_map` is None, or `(N, 1, H, W)` and finite."""
        found = component.suspicion_map(setting.images, context=setting.context, streams=setting.streams)
        if found is not None:
            wanted = (len(setting.images), 1, *setting.images.shape[2:])
            assert found.shape == wanted, f"the map has shape {tuple(found.shape)}; {wanted} is wanted"
            assert bool(found.isfinite().all()), "the map is not finite"

    def test_the_reasons(self, component: Detector, setting: Setting) -> None:
        """`reasons` names a part for each image, beginning with the detector."""
        found = component.reasons(setting.images, context=setting.context, streams=setting.streams)
        wanted = len(setting.images)
        assert len(found) == wanted, f"{len(found)} reasons for {wanted} images; one for each is wanted"
        strange = [text for text in found if not text.startswith(component.name)]
        assert not strange, f"a reason begins with the detector's name, {component.name!r}; got {strange[:1]}"

    def test_given_logits_change_nothing(self, component: Detector, setting: Setting) -> None:
        """A chain hands over the classifier's logits: the scores stay what they are."""
        if "classifier" not in component.requires:
            pytest.skip("it does not require the classifier")
        assert setting.context.classifier is not None
        logits = setting.context.classifier(setting.images)
        given = replace(setting, context=replace(setting.context, logits=logits))
        gap = (observe(component, given)["scores"] - observe(component, setting)["scores"]).detach().abs().max()
        assert float(gap) <= 1e-5, f"scores change by {float(gap):.3g} when the logits are handed over"
