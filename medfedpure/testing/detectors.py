"""The contract of detectors."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.testing.checking import assert_bad_images_are_refused
from medfedpure.testing.images import ImageContract, assert_dtype_is_kept
from medfedpure.testing.observing import observe
from medfedpure.testing.setting import Setting
from medfedpure.testing.trainables import TrainableContract

REQUIREMENTS = frozenset({"classifier", "features", "denoiser", "labels"})


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
        observe(component, replace(setting, context=ScoreContext(**only)))

    def test_the_map(self, component: Detector, setting: Setting) -> None:
        """`suspicion_map` is None, or `(N, 1, H, W)` and finite."""
        found = component.suspicion_map(setting.images, context=setting.context, streams=setting.streams)
        if found is not None:
            wanted = (len(setting.images), 1, *setting.images.shape[2:])
            assert found.shape == wanted, f"the map has shape {tuple(found.shape)}; {wanted} is wanted"
            assert bool(found.isfinite().all()), "the map is not finite"

    def test_given_logits_change_nothing(self, component: Detector, setting: Setting) -> None:
        """A chain hands over the classifier's logits: the scores stay what they are."""
        if "classifier" not in component.requires:
            pytest.skip("it does not require the classifier")
        assert setting.context.classifier is not None
        logits = setting.context.classifier(setting.images)
        given = replace(setting, context=replace(setting.context, logits=logits))
        gap = (observe(component, given)["scores"] - observe(component, setting)["scores"]).detach().abs().max()
        assert float(gap) <= 1e-5, f"scores change by {float(gap):.3g} when the logits are handed over"
