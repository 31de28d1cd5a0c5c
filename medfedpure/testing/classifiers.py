"""The contract of classifier architectures."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from medfedpure.core.classifier import Classifier, ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import InputError
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.core.streams import isolated_rng
from medfedpure.testing.checking import (
    assert_bad_images_are_refused,
    assert_equal,
    assert_near,
    global_rng_untouched,
)
from medfedpure.testing.images import FLOAT32, ImageContract
from medfedpure.testing.observing import model_of
from medfedpure.testing.setting import Setting
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train


class ClassifierContract(ImageContract):
    """Images `(N, C, S, S)` in [0, 1] to logits `(N, K)`; what is the head is known by its keys."""

    kind: ClassVar[str] = "classifier"

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls, component: Classifier, setting: Setting) -> ClassifierModel:
        """A network of this architecture."""
        return model_of(component, setting)

    def test_logits(self, component: Classifier, setting: Setting) -> None:
        """`(N, K)` for every number of classes and channels."""
        size = setting.train.image_shape[1]
        for channels, classes in ((1, 2), (3, 4)):
            model = component.create_model(in_channels=channels, num_classes=classes, image_size=size)
            assert not model.training, "create_model must give a network in eval mode"
            images = setting.images[:3, :1].repeat(1, channels, 1, 1)
            logits = model(images)
            assert logits.shape == (3, classes), f"logits of 3 images in {classes} classes: {tuple(logits.shape)}"
            assert logits.dtype == images.dtype, f"logits of {images.dtype} images are {logits.dtype}"
            assert bool(logits.isfinite().all()), "logits are not finite"

    def test_weights_follow_the_seed(self, component: Classifier, setting: Setting) -> None:
        """Equal seeds, equal weights, with the global random state left alone."""
        with global_rng_untouched("create_model"):
            one, two, other = (model_of(component, setting, seed=seed).state_dict() for seed in (1, 1, 2))
        assert_equal(two, one, "create_model with equal seeds")
        assert any(not torch.equal(one[key], other[key]) for key in one), "another seed gives equal weights"

    def test_it_learns(self, component: Classifier, setting: Setting) -> None:
        """Some steps of the ordinary loop lower the loss, by 1 % or more, on the images that it was trained on."""
        model = model_of(component, setting)
        some = setting.train.select(torch.arange(len(setting.train)) < 8)
        before = _loss(model, some)
        train(
            model,
            ClassificationTask(Augmentation(flip=False, shift=0)),
            some,
            TrainingConfig(steps=8, batch_size=8),
            seed=0,
        )
        after = _loss(model, some)
        assert after < 0.99 * before, (  # weight decay alone moves it by a millionth
            f"8 steps took the loss from {before:.3g} to {after:.3g}: do gradients reach the weights?"
        )

    def test_one_class_is_refused(self, component: Classifier, setting: Setting) -> None:
        """A classifier has at least two classes."""
        with pytest.raises(InputError):
            component.create_model(in_channels=1, num_classes=1, image_size=setting.train.image_shape[1])

    def test_wrong_images_are_refused(self, subject: ClassifierModel, setting: Setting) -> None:
        """Rank, dtype, channels and size; the range is checked once, by the chain."""
        assert_bad_images_are_refused(subject, setting.images, values=False)
        for wrong in (setting.images.repeat(1, 2, 1, 1), setting.images[:, :, :-1], setting.images[..., :-1]):
            with pytest.raises(InputError):
                subject(wrong)

    def test_the_head(self, component: Classifier, subject: ClassifierModel) -> None:
        """`head_keys` are some, not all, of the keys that hold weights; a pure function."""
        state = subject.network.state_dict()
        keys = component.head_keys(subject.network)
        assert isinstance(keys, frozenset), f"head_keys must return a frozenset; got {type(keys).__name__}"
        assert keys, "head_keys is empty: a personal head would be nothing"
        assert keys <= state.keys(), f"head_keys names unknown keys: {sorted(keys - state.keys())}"
        weights = {name for name, _ in subject.network.named_parameters()}
        assert weights - keys, "head_keys holds every weight: nothing would be shared"
        assert component.head_keys(subject.network) == keys, "head_keys changes from call to call"
        assert subject.head_keys() <= subject.state_dict().keys(), "keys of the model are not those of its state_dict"

    def test_features(self, component: Classifier, subject: ClassifierModel, setting: Setting) -> None:
        """`(N, F)`, one row for each image; a linear head maps them to the logits."""
        features = subject.features(setting.images)
        assert features.ndim == 2, f"features must be (N, F); got {tuple(features.shape)}"
        assert len(features) == len(setting.images), f"{len(features)} rows for {len(setting.images)} images"
        state = subject.network.state_dict()
        head = [state[key] for key in sorted(component.head_keys(subject.network)) if state[key].is_floating_point()]
        matrices = [value for value in head if value.shape == (subject.num_classes, features.shape[1])]
        vectors = [value for value in head if value.shape == (subject.num_classes,)]
        if len(head) != len(matrices) + len(vectors) or len(matrices) != 1 or len(vectors) > 1:
            pytest.skip("the head is not one linear layer")
        logits = features @ matrices[0].T + sum(vectors)
        assert_near({"logits": logits}, {"logits": subject(setting.images)}, FLOAT32, "head(features) against logits")


def _loss(model: ClassifierModel, data: ImageDataset) -> float:
    """Cross-entropy in training mode: running statistics lag behind after so few steps."""
    batch = data.batch(torch.arange(len(data)))
    with isolated_rng(0), torch.no_grad():
        return float(nn.functional.cross_entropy(model.train()(batch.images), batch.labels))
