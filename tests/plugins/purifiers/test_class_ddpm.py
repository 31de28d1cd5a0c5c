"""Class-conditional diffusion: it draws the class that was asked for, and purifies without being told one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, InputError, NotFittedError
from medfedpure.core.streams import Streams
from medfedpure.data.synthetic import augment_with_samples
from medfedpure.testing.checking import global_rng_untouched

SMALL = {"model": {"widths": (8, 16)}, "training": {"steps": 2, "batch_size": 8}}


def bars(size: int = 48) -> ImageDataset:
    """A bright bar on dark ground, left or right."""
    streams = Streams(0, torch.arange(size))
    labels = torch.arange(size) % 2
    pixels = 0.15 + 0.1 * streams.uniform((1, 16, 16), stage="ground")
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 2:14, 3 + 8 * label : 6 + 8 * label] += 0.6
    return ImageDataset((pixels * 255).to(torch.uint8), labels, torch.arange(size), ("left", "right"))


@pytest.fixture(scope="module")
def trained():
    learns = {"steps": 250, "batch_size": 16, "learning_rate": 5e-3, "ema": 0.98}
    options = {"model": {"widths": (16, 32)}, "training": learns, "generation": {"steps": 10}}
    return medfedpure.create("purifier", "class_ddpm", **options).fit(bars())


@pytest.fixture(scope="module")
def untrained():
    return medfedpure.create("purifier", "class_ddpm", SMALL).fit(bars())


def sides(images: Tensor) -> Tensor:
    """(N,) how much brighter the right half is."""
    return images[..., 8:].mean((1, 2, 3)) - images[..., :8].mean((1, 2, 3))


def test_it_draws_the_class_that_was_asked_for(trained) -> None:
    labels = torch.arange(24) % 2
    images = trained.sample(labels, (16, 16), streams=Streams.for_batch(3, 24))
    assert images.shape == (24, 1, 16, 16)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    found = (sides(images) > 0).long()
    assert float((found == labels).float().mean()) >= 0.9, f"asked for {labels.tolist()}, drew {found.tolist()}"
    assert images[::2].sub(images[:1]).abs().flatten(1).mean(1)[1:].min() > 0.005, "all images of a class are one"


def test_guidance_draws_the_class_more_clearly(trained) -> None:
    labels, streams = torch.arange(24) % 2, Streams.for_batch(4, 24)
    strong = medfedpure.create("purifier", "class_ddpm", trained.config, generation={"guidance": 3.0, "steps": 10})
    strong.adopt(trained.network, (1, 16, 16))
    sign = 2 * labels - 1
    plain, guided = (
        float((sides(model.sample(labels, (16, 16), streams=streams)) * sign).mean()) for model in (trained, strong)
    )
    assert guided > plain


def test_an_image_depends_on_its_class_and_stream_alone(trained) -> None:
    labels, streams = torch.tensor([0, 1, 1, 0, 1]), Streams.for_batch(5, 5)
    with global_rng_untouched("sample"):
        images = trained.sample(labels, (16, 16), streams=streams)
    some = torch.tensor([4, 1])
    again = trained.sample(labels[some], (16, 16), streams=streams.select(some))
    torch.testing.assert_close(again, images[some], atol=1e-3, rtol=0)
    other = trained.sample(1 - labels, (16, 16), streams=streams)
    assert float((other - images).abs().flatten(1).amax(1).min()) > 0.1
    moved = trained.sample(labels, (16, 16), streams=Streams.for_batch(6, 5))
    assert float((moved - images).abs().flatten(1).amax(1).min()) > 0.05


def test_purification_is_told_no_label(untrained) -> None:
    images, streams = bars().images[:4], Streams.for_batch(0, 4)
    seen: list[Tensor] = []
    embedding = untrained.network.network.class_embedding
    handle = embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    untrained(images, 0.5, streams=streams)
    handle.remove()
    assert len(seen) == 8
    assert all(labels.tolist() == [2] * 4 for labels in seen), "2 is the class of none"


def test_some_classes_are_hidden_in_training(untrained) -> None:
    data = bars(400)
    batch = data.batch(torch.arange(400))
    seen: list[Tensor] = []

    def network(noisy: Tensor, timestep: Tensor, labels: Tensor) -> Tensor:
        seen.extend((labels, timestep))
        return torch.zeros_like(noisy)

    untrained.task().loss(network, batch, Streams(0, batch.ids))
    hidden = seen[0] == 2
    assert 20 <= int(hidden.sum()) <= 65, "a tenth of 400"
    assert torch.equal(seen[0][~hidden], batch.labels[~hidden])
    assert float(seen[1].max()) > 900, "training covers all timesteps, whatever purification uses"


def test_it_survives_saving_and_serves_augmentation(untrained, tmp_path: Path) -> None:
    untrained.save(tmp_path / "model")
    loaded = medfedpure.Purifier.load(tmp_path / "model")
    parts = bars().split({"train": 0.5, "test": 0.5})
    found, again = (
        augment_with_samples(parts["train"], model, share=0.2, against={"test": parts["test"]})[0]
        for model in (untrained, loaded)
    )
    assert found.fingerprint() == again.fingerprint()


def test_what_it_cannot_draw_is_refused(untrained) -> None:
    streams = Streams.for_batch(0, 2)
    with pytest.raises(NotFittedError):
        medfedpure.create("purifier", "class_ddpm").sample(torch.tensor([0, 1]), (16, 16), streams=streams)
    with pytest.raises(InputError, match=r"draws classes 0 ... 1; got 0 ... 2"):
        untrained.sample(torch.tensor([0, 2]), (16, 16), streams=streams)
    with pytest.raises(DataError, match=r"images has 2 classes, and generation.classes is 3: set it to 2"):
        medfedpure.create("purifier", "class_ddpm", SMALL, generation={"classes": 3}).fit(bars())


def test_a_cheaper_attacker_and_tuning_know_it_as_any_other(untrained) -> None:
    short = untrained.shortened(1)
    assert (type(short), short.depth.steps) == (type(untrained), 1)
    assert untrained.deepest() == 999
