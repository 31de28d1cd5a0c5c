"""The composed detector: its formula, its flags, and what it saves."""

import pytest
import torch
from torch import nn

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import ConfigError, DataError, MissingRequirementError, UnknownPluginError
from medfedpure.core.streams import Streams

PARTS = [{"plugin": "feature_squeezing", "config": {"bits": [3]}}, {"plugin": "mahalanobis"}]


class Model(nn.Module):
    """Two logits from the pixels."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 2)

    def forward(self, images):
        return self.head(images.flatten(1))


@pytest.fixture(scope="module")
def setting():
    """Data, and the context of a small model."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=generator, dtype=torch.uint8)
    ids = torch.arange(40)
    data = ImageDataset(pixels=pixels, labels=ids % 2, groups=ids, class_names=("a", "b"), ids=ids)
    with medfedpure.core.streams.isolated_rng(0):
        model = Model().eval()
    return data, FitContext(classifier=model, features=nn.Flatten())


def test_the_score_is_a_smooth_maximum_of_standardized_scores(setting):
    data, context = setting
    detector = medfedpure.create("detector", "compose", parts=PARTS, temperature=0.25).fit(data, context=context)
    streams = Streams(3, data.ids)
    scores = detector(data.images, context=context, streams=streams)
    columns = []
    for part in PARTS:
        alone = medfedpure.create("detector", part["plugin"], part.get("config")).fit(data, context=context)
        raw = alone(data.images, context=context, streams=streams).double()
        columns.append((raw - raw.mean()) / raw.std())
    z = torch.stack(columns, 1)
    assert torch.allclose(scores.double(), 0.25 * torch.logsumexp(4 * z, 1), atol=1e-4)
    assert bool((scores >= z.amax(1) - 1e-4).all()), "a smooth maximum is never below the maximum"


def test_with_a_floor_logarithms_are_standardized(setting):
    data, context = setting
    parts = [{**PARTS[1], "floor": 0.5}]
    detector = medfedpure.create("detector", "compose", parts=parts, temperature=0.25).fit(data, context=context)
    streams = Streams(3, data.ids)
    raw = medfedpure.create("detector", "mahalanobis").fit(data, context=context)
    logs = (raw(data.images, context=context, streams=streams).double() + 0.5).log()
    scores = detector(data.images, context=context, streams=streams)
    assert torch.allclose(scores.double(), (logs - logs.mean()) / logs.std(), atol=1e-4)
    with pytest.raises(ConfigError, match="floor"):
        medfedpure.create("detector", "compose", parts=[{**PARTS[1], "floor": 0}])


def test_flags_are_those_of_all_parts():
    both = medfedpure.create("detector", "compose", parts=PARTS)
    assert both.deterministic
    assert not both.differentiable, "feature_squeezing rounds"
    alone = medfedpure.create("detector", "compose", parts=[{"plugin": "mahalanobis"}])
    assert alone.differentiable
    noisy = medfedpure.create("detector", "compose", parts=[{"plugin": "denoising_disagreement"}])
    assert not noisy.deterministic
    assert noisy.requires == {"classifier", "denoiser"}


def test_saved_parts_come_back(setting, tmp_path):
    data, context = setting
    detector = medfedpure.create("detector", "compose", parts=PARTS).fit(data, context=context)
    detector.save(tmp_path / "detector")
    loaded = medfedpure.Detector.load(tmp_path / "detector")
    streams = Streams(0, data.ids)
    assert torch.equal(
        loaded(data.images, context=context, streams=streams), detector(data.images, context=context, streams=streams)
    )


def test_what_cannot_work_says_so(setting):
    data, context = setting
    with pytest.raises(ConfigError, match="parts"):
        medfedpure.create("detector", "compose", parts=[])
    with pytest.raises(UnknownPluginError, match="mahalanobis"):
        medfedpure.create("detector", "compose", parts=[{"plugin": "mahalanobiz"}])
    with pytest.raises(MissingRequirementError, match="classifier"):
        medfedpure.create("detector", "compose", parts=PARTS).fit(data, context=FitContext(features=nn.Flatten()))
    ids = torch.arange(5)
    black = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    same = ImageDataset(pixels=black, labels=ids % 2, groups=ids, class_names=("a", "b"), ids=ids)
    squeezing = medfedpure.create("detector", "compose", parts=PARTS[:1])
    with pytest.raises(DataError, match="do not vary"):
        squeezing.fit(same, context=context)
