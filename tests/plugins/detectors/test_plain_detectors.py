"""Feature squeezing and Mahalanobis distance: what their formulas say."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from torch import nn

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext, ScoreContext
from medfedpure.core.errors import ConfigError, DataError
from medfedpure.core.streams import Streams

STREAMS = Streams.for_batch(0, 30)


class Brightness(nn.Module):
    """Two classes by mean brightness."""

    def forward(self, images):
        level = 40 * (images.mean((1, 2, 3)) - 0.5)
        return torch.stack((-level, level), 1)


def test_squeezing_takes_the_largest_gap():
    images = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    detector = medfedpure.create("detector", "feature_squeezing", bits=[1, 3], windows=[3])
    model = Brightness()
    scores = detector(images, context=ScoreContext(classifier=model), streams=STREAMS)
    one, three = images.round(), (images * 7).round() / 7
    median = medfedpure.create("purifier", "median")(images).images
    gaps = [(model(other).softmax(1) - model(images).softmax(1)).abs().sum(1) for other in (one, three, median)]
    assert torch.allclose(scores, torch.stack(gaps).amax(0), atol=1e-6)


@pytest.mark.parametrize("options", [{"bits": [], "windows": []}, {"bits": [9]}, {"windows": [4]}])
def test_impossible_squeezers_are_refused(options):
    with pytest.raises(ConfigError, match=r"squeezer|bits lie"):
        medfedpure.create("detector", "feature_squeezing", **options)


def fitted(shrinkage=1e-6):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 2
    pixels = torch.randint(0, 256, (30, 1, 2, 2), generator=generator, dtype=torch.uint8)
    data = make(pixels, labels)
    features = nn.Flatten()
    detector = medfedpure.create("detector", "mahalanobis", shrinkage=shrinkage)
    return detector.fit(data, context=FitContext(features=features)), data, features


def make(pixels, labels):
    ids = torch.arange(len(labels))
    return ImageDataset(pixels=pixels, labels=labels, groups=ids, class_names=("a", "b"), ids=ids)


def test_distance_agrees_with_scikit_learn():
    detector, data, features = fitted()
    rows = features(data.images).double().numpy()
    centred = np.concatenate([rows[data.labels == c] - rows[data.labels == c].mean(0) for c in (0, 1)])
    law = EmpiricalCovariance(assume_centered=True).fit(centred)
    wanted = [min(law.mahalanobis(row[None] - rows[data.labels == c].mean(0))[0] for c in (0, 1)) for row in rows]
    scores = detector(data.images, context=ScoreContext(features=features), streams=STREAMS)
    assert scores.tolist() == pytest.approx(wanted, rel=1e-3)


def test_distance_has_the_right_gradient():
    detector, data, features = fitted(0.1)
    images = data.images[:3].double().requires_grad_(True)
    assert torch.autograd.gradcheck(
        lambda x: detector.score(x, context=ScoreContext(features=features), streams=STREAMS), images
    )


def test_a_class_without_images_is_named():
    detector = medfedpure.create("detector", "mahalanobis")
    data = make(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(DataError, match="of class b"):
        detector.fit(data, context=FitContext(features=nn.Flatten()))
