"""Fine-tuning on purified images: the copy reads what a purifier leaves, and the classifier stays as it is."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

import medfedpure
from medfedpure import ClassificationTask, DataError, InputError, NotFittedError, TrainingConfig
from medfedpure.training import purified

QUICK = TrainingConfig(steps=80, batch_size=32, learning_rate=3e-3, sampling="balanced", checks=2)

LONG = QUICK.model_copy(update={"steps": 150})


@pytest.fixture(scope="module")
def data():
    return medfedpure.create("dataset", "phantom", images=160, image_size=16, lesion_contrast=2.0, seed=0).read()


@pytest.fixture(scope="module")
def median():
    return medfedpure.create("purifier", "median")


@pytest.fixture(scope="module")
def classifier(data):
    model = medfedpure.create("classifier", "small_cnn").create_model(
        in_channels=1, num_classes=2, image_size=16, class_names=data.class_names, seed=0
    )
    medfedpure.train(model, ClassificationTask(), data, LONG, seed=0)
    return model.eval()


def right(model, images, labels) -> float:
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).double().mean())


def test_the_copy_reads_what_the_purifier_leaves(data, median, classifier):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    reader = medfedpure.fine_tune_on_purified(classifier, median, data, eps="4/255", training=LONG)
    for name, value in classifier.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the classifier moved"
    assert not reader.training
    filtered = median(data.images, 1.0).images
    assert right(classifier, data.images, data.labels) > 0.9
    assert right(reader, data.images, data.labels) > 0.9
    assert right(reader, filtered, data.labels) > right(classifier, filtered, data.labels) + 0.15


def test_it_learns_of_the_images_of_their_copies_and_of_attacked_ones(data, median, classifier, monkeypatch):
    seen = []
    monkeypatch.setattr(purified, "train", lambda model, task, given, *_, **__: seen.append(given))
    medfedpure.fine_tune_on_purified(classifier, median, data, eps=0.1)
    medfedpure.fine_tune_on_purified(classifier, median, data, eps=0)
    whole, mild = seen
    size = len(data)
    assert (len(whole), len(mild)) == (3 * size, 2 * size)
    assert torch.equal(whole.pixels[:size], data.pixels)
    assert torch.equal(whole.groups, data.groups.repeat(3))
    assert torch.equal(whole.labels, data.labels.repeat(3))
    assert len(whole.ids.unique()) == 3 * size
    clean, attacked = (whole.images[size * part : size * (part + 1)] for part in (1, 2))
    assert right(classifier, attacked, data.labels) < right(classifier, clean, data.labels)


def test_neither_batches_nor_a_second_time_change_it(data, median, classifier):
    short = QUICK.model_copy(update={"steps": 5})
    one, other = (
        medfedpure.fine_tune_on_purified(classifier, median, data, training=short, batch_size=size)
        for size in (160, 24)
    )
    for name, value in one.state_dict().items():
        assert torch.allclose(value.float(), other.state_dict()[name].float(), atol=1e-4), name


def test_pixels_of_12_bits_stay_so(data, median, classifier, monkeypatch):
    seen = []
    monkeypatch.setattr(purified, "train", lambda model, task, given, *_, **__: seen.append(given))
    deep = replace(data, pixels=(data.pixels.int() * 16).to(torch.uint16), top=4095)
    medfedpure.fine_tune_on_purified(classifier, median, deep, eps=0)
    assert (seen[0].pixels.dtype, seen[0].top) == (torch.uint16, 4095)
    copies = seen[0].images[len(data) :]
    assert 0.3 < float(copies.max()) <= 1


def test_what_cannot_be_done_is_refused_before_anything_is_purified(data, median, classifier):
    with pytest.raises(NotFittedError, match="ddpm"):
        medfedpure.fine_tune_on_purified(classifier, medfedpure.create("purifier", "ddpm"), data)
    with pytest.raises(DataError, match="no image"):
        medfedpure.fine_tune_on_purified(classifier, median, data.select(torch.arange(0)))
    three = replace(data, class_names=(*data.class_names, "other"))
    with pytest.raises(InputError, match=r"2 logits, and .* 3 classes"):
        medfedpure.fine_tune_on_purified(classifier, median, three)
    chain = medfedpure.DefendedClassifier(classifier, purifier=median, policy="purify_all")
    for words, given in (
        ("bare classifier", (chain, median, data)),
        ("not its name", (classifier, "median", data)),
        ("ImageDataset", (classifier, median, data.images)),
    ):
        with pytest.raises(InputError, match=words):
            medfedpure.fine_tune_on_purified(*given)
    with pytest.raises(medfedpure.TrainingError, match="patience"):
        medfedpure.fine_tune_on_purified(classifier, median, data, training=QUICK.model_copy(update={"patience": 2}))
    with pytest.raises(medfedpure.TrainingError, match="requires a gradient"):
        medfedpure.fine_tune_on_purified(copy.deepcopy(classifier).requires_grad_(False), median, data)
    with pytest.raises(medfedpure.ConfigError, match="rounds to nothing in pixels of 0 to 255"):
        medfedpure.fine_tune_on_purified(classifier, median, data, eps=0.0019)
    with pytest.raises(medfedpure.ConfigError, match="eps"):
        medfedpure.fine_tune_on_purified(classifier, median, data, eps=-0.1)
