"""Two trained classifiers as one: what is chosen on validation images, what is kept, what is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import medfedpure
from medfedpure.core.classifier import Classifier, ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.disk.weights import Origin
from medfedpure.core.errors import ConfigError, DataError, InputError
from medfedpure.core.registry import Plugin, hookimpl, registry
from medfedpure.data.synthetic import ORIGIN, SYNTHETIC, _origin

EPS = 0.05
NAMES = ("no", "yes")


class Linear(Classifier):
    """Logits are linear in the pixels."""

    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    """The classifier above, as an installed plugin would be."""
    found = registry()
    record = Plugin("classifier", "linear", f"{__name__}:Linear", "of this test")
    holder = type("Holder", (), {"medfedpure_plugins": hookimpl(lambda self: [record])})()
    found.register(holder, distribution="of a test")
    yield
    found.manager.unregister(holder)
    found._records.pop(("classifier", "linear"))


def reading(pixel: int, weight: float, *, size: int = 2, channels: int = 1, names: tuple[str, ...] = NAMES) -> Any:
    """Says the second class where that pixel is above 0.5, the surer the further."""
    model = medfedpure.create("classifier", "linear").create_model(
        in_channels=channels, num_classes=len(names), image_size=size, class_names=names
    )
    with torch.no_grad():
        model.network[1].weight.zero_()
        model.network[1].bias.zero_()
        model.network[1].weight[:2, pixel] = torch.tensor([-weight, weight])
        model.network[1].bias[:2] = torch.tensor([weight, -weight]) / 2
    return model


def scans(count: int = 80, *, twins: int = 1, seed: int = 0) -> ImageDataset:
    """The first pixel tells the class by much, at one image in five wrongly and by little; the second by little."""
    labels = torch.arange(count) % 2
    sign = 2.0 * labels - 1
    unsure = torch.arange(count) // 2 % 5 == 0
    jitter = 0.02 * torch.rand(count, generator=torch.Generator().manual_seed(seed))
    values = torch.full((count, 1, 2, 2), 0.5)
    values[:, 0, 0, 0] += sign * torch.where(unsure, -0.01 - jitter / 4, 0.2 + jitter)
    values[:, 0, 0, 1] += sign * 0.03
    pixels = (values * 65535).round().to(torch.int32).to(torch.uint16)
    return ImageDataset(pixels, labels, torch.arange(count) // twins, NAMES, name="made up")


def attacked(model: nn.Module, data: ImageDataset) -> Tensor:
    attack = medfedpure.create("attack", "pgd_eot", eps=EPS, step=0.01, steps=20, loss="cw", early_stop=False)
    return attack(model, data.images, data.labels).images


def share(model: nn.Module, images: Tensor, data: ImageDataset) -> float:
    return float((model(images).argmax(1) == data.labels).double().mean())


ROBUST, PLAIN = {"pixel": 0, "weight": 5.0}, {"pixel": 1, "weight": 100.0}


def test_it_keeps_the_clean_answers_of_one_and_the_attacked_ones_of_the_other() -> None:
    robust, plain, new = reading(**ROBUST), reading(**PLAIN), scans(60, seed=1)
    both = medfedpure.mix(robust, plain, scans(), eps=EPS)
    assert share(robust, new.images, new) == pytest.approx(0.8)
    assert share(both, new.images, new) == share(plain, new.images, new) == 1.0
    hard = attacked(both, new)
    assert share(plain, attacked(plain, new), new) == 0.0
    assert share(both, hard, new) >= 0.8 - 1e-9
    told = both.architecture.config.chosen
    assert told.clean == {"robust": pytest.approx(0.8), "plain": 1.0, "mixed": 1.0}
    assert told.attacked == {"robust": pytest.approx(0.8), "plain": 0.0, "mixed": pytest.approx(0.8)}
    assert (told.images, told.right, told.stands) == (80, 64, 64)
    for words in ("optimistic", "mixed 100.0%", "norm linf, eps 0.05", "64 of 64"):
        assert words in told.describe()


def test_the_share_that_may_be_lost_is_kept_to() -> None:
    robust, plain = reading(**ROBUST), reading(**PLAIN)
    for beta in (0.5, 0.9, 1.0):
        told = medfedpure.mix(robust, plain, scans(), eps=EPS, beta=beta).architecture.config.chosen
        assert told.stands >= beta * told.right - 1e-9
        assert told.attacked["mixed"] >= told.stands / told.images - 1e-9


def test_the_weights_are_those_of_both_and_neither_is_changed() -> None:
    robust, plain = reading(**ROBUST), reading(**PLAIN)
    before = {name: value.clone() for name, value in robust.state_dict().items()}
    both = medfedpure.mix(robust, plain, scans(), eps=EPS)
    for member, model in (("robust", robust), ("plain", plain)):
        inner = both.network.get_submodule(member).state_dict()
        assert all(torch.equal(inner[key], value) for key, value in model.network.state_dict().items())
        assert all(inner[key].data_ptr() != value.data_ptr() for key, value in model.network.state_dict().items())
    assert all(torch.equal(before[name], value) for name, value in robust.state_dict().items())
    assert all(parameter.grad is None for model in (robust, plain) for parameter in model.parameters())


def test_neither_the_order_of_rows_nor_repeating_changes_what_is_chosen() -> None:
    robust, plain, data = reading(**ROBUST), reading(**PLAIN), scans(twins=2)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(3))
    first, again, shuffled = (
        medfedpure.mix(robust, plain, given, eps=EPS, seed=4).architecture.config
        for given in (data, data, data.select(order))
    )
    assert first == again == shuffled
    assert first.chosen.images == 40, "one of each group"


def test_it_is_saved_with_what_was_chosen(tmp_path: Path) -> None:
    both = medfedpure.mix(reading(**ROBUST), reading(**PLAIN), scans(), eps=EPS)
    both.save(tmp_path / "mix")
    loaded = ClassifierModel.load(tmp_path / "mix")
    assert loaded.architecture.config == both.architecture.config
    assert torch.equal(loaded(scans().images), both(scans().images))


def test_three_classes_are_normalized_as_in_the_paper() -> None:
    names = (*NAMES, "neither")
    labels = scans().labels.clone()
    labels[-8:] = 2
    data = replace(scans(), labels=labels, class_names=names)
    both = medfedpure.mix(reading(**ROBUST, names=names), reading(**PLAIN, names=names), data, eps=EPS)
    config = both.architecture.config
    assert config.unit == 0
    assert config.chosen.clean["mixed"] >= config.chosen.clean["robust"]
    assert 0.5 <= config.alpha <= 1


def test_a_plain_classifier_that_adds_nothing_is_told() -> None:
    robust = reading(**ROBUST)
    told = medfedpure.mix(robust, robust, scans(), eps=EPS).architecture.config.chosen
    assert "no gain on clean images" in told.describe()


def test_no_restriction_of_use_is_lost() -> None:
    robust, plain = reading(**ROBUST), reading(**PLAIN)
    plain.origin = Origin(source="a file", restriction="research only", sha256="ab", loaded=3, wanted=4)
    assert medfedpure.mix(robust, plain, scans(), eps=EPS).origin == plain.origin
    robust.origin = Origin(source="a hub", licence="Apache-2.0", sha256="cd", loaded=4, wanted=4)
    origin = medfedpure.mix(robust, plain, scans(), eps=EPS).origin
    assert origin is not None
    assert (origin.source, origin.restriction, origin.loaded) == ("a hub and a file", "research only", 7)


OTHERS: Mapping[str, dict[str, Any]] = {
    "classes": {"names": ("no", "yes", "neither")},
    "names": {"names": ("yes", "no")},
    "size": {"size": 4},
    "channels": {"channels": 3},
}


@pytest.mark.parametrize("what", OTHERS)
def test_classifiers_of_different_images_are_refused(what: str) -> None:
    with pytest.raises(InputError, match=r"the robust classifier has .*, and the plain one .*for the same images"):
        medfedpure.mix(reading(**ROBUST), reading(**PLAIN, **OTHERS[what]), scans(), eps=EPS)


def test_what_is_no_model_of_a_plugin_is_refused() -> None:
    with pytest.raises(InputError, match="the plain classifier must be a ClassifierModel"):
        medfedpure.mix(reading(**ROBUST), nn.Flatten(), scans(), eps=EPS)  # type: ignore[arg-type]


def test_images_of_others_are_refused() -> None:
    data = replace(scans(), class_names=("yes", "no"))
    with pytest.raises(DataError, match="the classes yes, no; these classifiers read"):
        medfedpure.mix(reading(**ROBUST), reading(**PLAIN), data, eps=EPS)


def test_a_robust_classifier_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match="reads none of 80 attacked validation images"):
        medfedpure.mix(reading(**PLAIN), reading(**ROBUST), scans(), eps=EPS)


def test_a_mix_of_mixes_is_refused_before_anything_is_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    both = medfedpure.mix(reading(**ROBUST), reading(**PLAIN), scans(20), eps=EPS)
    monkeypatch.setattr("medfedpure.defence.mix._attacked", lambda *given: pytest.fail("attacked"))
    with pytest.raises(ConfigError, match="grows without bound"):
        medfedpure.mix(both, reading(**PLAIN), scans(), eps=EPS)


def test_images_of_every_class_are_wanted_recorded_and_labelled() -> None:
    data = scans(20)
    for given, error, words in (
        (data.images, InputError, "must be an ImageDataset, with labels and groups; got a Tensor"),
        ({"validation": data}, InputError, "got a dict"),
        (data[data.labels == 1], DataError, "holds no image of no, so that nothing would be kept there"),
        (replace(data, attributes={ORIGIN: _origin(20, SYNTHETIC)}), DataError, "20 of the 20 .* drawn by a model"),
    ):
        with pytest.raises(error, match=words):
            medfedpure.mix(reading(**ROBUST), reading(**PLAIN), given, eps=EPS)  # type: ignore[arg-type]


def test_eps_may_be_written_as_a_fraction() -> None:
    found = [
        medfedpure.mix(reading(**ROBUST), reading(**PLAIN), scans(20), eps=eps).architecture.config
        for eps in ("4/80", 0.05)
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.0},
        {"beta": 1.1},
        {"beta": "most"},
        {"eps": 2.0},
        {"eps": 0},
        {"eps": None},
        {"eps": "some"},
        {"steps": 0},
        {"steps": "many"},
        {"temperature": -1.0},
        {"temperature": 1e-9},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        medfedpure.mix(reading(**ROBUST), reading(**PLAIN), scans(), **{"eps": EPS, **options})
