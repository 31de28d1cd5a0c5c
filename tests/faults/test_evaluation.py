"""Faults of `evaluate`: what must be refused before anything starts, and what must not be taken for the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
import torch
from chains import chain_of
from torch import Tensor, nn

from medfedpure.core.errors import ConfigError, DataError, InputError, NotCalibratedError
from medfedpure.core.registry import create
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import choose, evaluate
from medfedpure.evaluation.ladder import Preset, label
from medfedpure.evaluation.store import digest_of, digest_of_network, folder_name
from medfedpure.testing import tiny_classifier, tiny_dataset

SHORT = Preset("short", 8, 2, 2, 1, 1, 2, 3, "for tests")
DATA = tiny_dataset(24, seed=21)
BARE = tiny_classifier()


class Answering(nn.Module):
    """What a network says, given otherwise."""

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.network, self.change = tiny_classifier(), change

    def forward(self, images: Tensor) -> object:
        return self.change(self.network(images))


ODD = {
    "one column": lambda logits: logits[:, :1],
    "one logit": lambda logits: logits[:, 0],
    "a tuple": lambda logits: (logits, logits),
    "a dict": lambda logits: {"logits": logits},
    "classes": lambda logits: logits.argmax(1),
    "nothing": lambda logits: None,
    "not a number": lambda logits: logits * torch.nan,
}


def bare(model: nn.Module | None = None) -> DefendedClassifier:
    return DefendedClassifier(BARE if model is None else model, policy="none")


def refused(tmp_path, error=InputError, words=".", **given) -> str:
    """What `evaluate` says; nothing was attacked, told or written before it."""
    told: list[str] = []
    arms = given.pop("arms", {"it": bare()})
    data = given.pop("data", DATA)
    with pytest.raises(error, match=words) as caught:
        evaluate(arms, data, preset=SHORT, eps=(0.05,), out=tmp_path / "new", say=told.append, **given)
    assert not told
    assert not (tmp_path / "new").exists()
    return str(caught.value)


# -- A7, A15: before anything starts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_a07_a_model_that_answers_no_logits_is_refused_at_once(change, tmp_path) -> None:
    """A7: one column, tuples, dicts and class indices end in one sentence that names the defence."""
    assert "'it'" in refused(tmp_path, arms={"fine": bare(), "it": bare(Answering(change))})


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_a07_so_are_attackers_and_clients(change, tmp_path) -> None:
    """A7: as with defences, with the models of attackers and those of a federation's clients."""
    assert "'odd one'" in refused(tmp_path, attackers={"odd one": Answering(change)})
    clients = {"fine": (bare(), DATA), "odd one": (bare(Answering(change)), DATA)}
    assert "'odd one'" in refused(tmp_path, federation=clients)


def three_classes(size: int = 24):
    """The last third of the images is of a class that the model does not have."""
    data = tiny_dataset(size, seed=21)
    labels = torch.where(torch.arange(size) < size * 2 // 3, data.labels, 2)
    return replace(data, labels=labels, class_names=(*data.class_names, "another"), positive=())


def test_a15_classes_that_the_model_does_not_have_are_refused_at_once(tmp_path) -> None:
    """A15: data of three classes and a model of two end before any attack, whoever the model belongs to."""
    words = r"0\.\.1, as the classifier answers 2 classes; got 2"
    wide = bare(Answering(lambda logits: torch.cat((logits, logits[:, :1] - 5), 1)))
    assert "'it'" in refused(tmp_path, words=words, data=three_classes())
    assert "'narrow'" in refused(
        tmp_path, words=words, arms={"it": wide}, data=three_classes(), attackers={"narrow": BARE}
    )
    clients = {"narrow": (bare(), DATA), "wide": (wide, three_classes())}
    assert "'narrow'" in refused(tmp_path, words=words, federation=clients)


def test_a15_more_classes_than_the_data_has_are_no_fault() -> None:
    """A15: a model may know classes that do not occur."""
    wide = bare(Answering(lambda logits: torch.cat((logits, logits[:, :1] - 5), 1)))
    assert evaluate({"it": wide}, DATA, preset=SHORT, eps=(0.05,)).arms[0].rungs


# -- A16: what differs is not the same --------------------------------------------------------------------------------


def calibrated(rate: float, size: int = 2000) -> DefendedClassifier:
    chain = chain_of()
    scores = torch.linspace(0, 1, size, dtype=torch.float64)
    chain.calibration = Calibration.fit(scores, rate)
    return chain


def test_a16_rates_that_print_alike_are_two_defences(tmp_path) -> None:
    """A16: .0496 and .0503 of 2000 images have other thresholds: a folder of one is refused by the other."""
    one, other = calibrated(0.0496), calibrated(0.0503)
    assert one.calibration.threshold() != other.calibration.threshold()
    assert one.calibration.describe() == other.calibration.describe() or digest_of(one) != digest_of(other)
    assert digest_of(one) != digest_of(other)
    assert digest_of(one) == digest_of(calibrated(0.0496))
    evaluate({"it": one}, DATA, preset=SHORT, eps=(0.05,), out=tmp_path)
    with pytest.raises(ConfigError, match=r"another evaluation .*arms"):
        evaluate({"it": other}, DATA, preset=SHORT, eps=(0.05,), out=tmp_path)


def test_a16_the_scope_and_every_score_count() -> None:
    """A16: the last digit of a score, and whose scores they are, are in the digest."""
    chain, moved, pooled = calibrated(0.05), calibrated(0.05), calibrated(0.05)
    scores = chain.calibration.scores.clone()
    scores[-1] = torch.nextafter(scores[-1], torch.tensor(2.0, dtype=torch.float64))
    moved.calibration = Calibration(scores, 0.05)
    pooled.calibration = Calibration(chain.calibration.scores, 0.05, "federation")
    assert len({digest_of(chain), digest_of(moved), digest_of(pooled)}) == 3


def test_a16_sizes_that_print_alike_do_not_share_a_file(tmp_path) -> None:
    """A16: two eps that agree in six digits are attacked, and kept, each for itself."""
    near = (0.05, 0.05000001)
    labels = {label("exact", "linf", eps) for eps in near}
    assert len(labels) == 2
    found = evaluate({"it": bare()}, DATA, preset=SHORT, eps=near, out=tmp_path)
    again = evaluate({"it": bare()}, DATA, preset=SHORT, eps=near, out=tmp_path)
    for run in (found, again):
        assert [rung.eps for rung in run.arms[0].rungs] == [near[0], near[0], near[1], near[1], near[0], near[1]]
    assert again.arms[0].rungs == found.arms[0].rungs


def test_a16_equal_sizes_are_attacked_once() -> None:
    """A16: the same eps twice is one eps."""
    assert evaluate({"it": bare()}, DATA, preset=SHORT, eps=(0.05, 0.05)).eps == [0.05]


@pytest.mark.parametrize("eps", [(0.05, float("nan")), (float("inf"),)])
def test_a16_sizes_that_are_no_size_are_refused(eps) -> None:
    """A16: NaN beside a number passed for a size, and infinity in l2 did too."""
    with pytest.raises(ConfigError, match="eps > 0 is wanted"):
        evaluate({"it": bare()}, DATA, preset=SHORT, eps=eps, norm="l2")


class Scaled(nn.Module):
    """Has settings of every kind beside its tensors."""

    def __init__(self, setting: object, buffer: float = 1.0) -> None:
        super().__init__()
        self.network, self.setting = BARE, setting
        self.register_buffer("scale", torch.tensor(buffer), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images * self.scale)


PAIRS = {
    "floats": (0.1, 0.1 + 1e-16),
    "tensors": (torch.tensor([1.0]), torch.tensor([1.0 + 1e-6])),
    "arrays": (numpy.array([1.0]), numpy.array([1.0 + 1e-12])),
    "numpy scalars": (numpy.float32(1.0), numpy.float32(1.0000001)),
    "lists": ([1, 2], [1, 3]),
    "dictionaries": ({"mean": (0.5,)}, {"mean": (0.25,)}),
    "tuples of tensors": ((torch.tensor(1.0),), (torch.tensor(1.0 + 1e-6),)),
    "nothing and something": (None, 1),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_a16_no_setting_of_a_network_is_rounded_or_left_out(pair) -> None:
    """A16: a network's settings count whatever they are made of, to the last digit."""
    one, other = (Scaled(setting) for setting in pair)
    assert digest_of_network(one) != digest_of_network(other)
    assert digest_of_network(one) == digest_of_network(copy.deepcopy(one))


def test_a16_buffers_that_are_not_saved_count() -> None:
    """A16: a buffer that `state_dict` leaves out decides answers too."""
    assert digest_of_network(Scaled(1)) != digest_of_network(Scaled(1, buffer=0.5))
    assert digest_of(bare(Scaled(1))) != digest_of(bare(Scaled(1, buffer=0.5)))


def test_a16_long_names_have_folders_of_their_own() -> None:
    """A16: names of any length and alphabet fit a file system, and do not meet."""
    long = ["ü" * 300, "ü" * 299 + "u", "a b", "a-b"]
    names = [folder_name(text) for text in long]
    assert len(set(names)) == 4
    assert all(len(name.encode()) <= 255 for name in names)


# -- what attackers may learn from ------------------------------------------------------------------------------------


def test_a16_images_to_learn_from_are_part_of_the_setting(monkeypatch, tmp_path) -> None:
    """A16: with `reference` every attack is fitted on it, and a folder of another reference is refused."""
    fitted = []

    def noted(kind: str, name: str, *args, **options):
        attack = create(kind, name, *args, **options)
        fit = attack.fit

        def told(data, *, view=None, seed=0):
            fitted.append((name, data.fingerprint(), view is not None, seed))
            return fit(data, view=view, seed=seed)

        monkeypatch.setattr(attack, "fit", told, raising=False)
        return attack

    monkeypatch.setattr("medfedpure.evaluation.work.create", noted)
    reference = tiny_dataset(16, seed=77)
    found = evaluate({"it": bare()}, DATA, preset=SHORT, eps=(0.05,), out=tmp_path, reference=reference)
    assert found.setting["reference"] == reference.fingerprint()
    assert {name for name, *_ in fitted} == {"pgd_eot", "square"}
    assert {(print_, seen) for _, print_, seen, _ in fitted} == {(reference.fingerprint(), True)}
    fitted.clear()
    assert "reference" not in evaluate({"it": bare()}, DATA, preset=SHORT, eps=(0.05,)).setting
    assert not fitted
    with pytest.raises(ConfigError, match=r"another evaluation .*reference"):
        evaluate({"it": bare()}, DATA, preset=SHORT, eps=(0.05,), out=tmp_path)


def test_a16_images_to_learn_from_are_not_those_attacked(tmp_path) -> None:
    """A16: an attacked image among those that the attacker learns from, or images of another size, are refused."""
    chosen = choose(DATA, SHORT.images, 0)
    refused(tmp_path, DataError, "reference holds 1 of the images", reference=chosen.select(torch.tensor([3])))
    refused(tmp_path, DataError, "reference", reference=tiny_dataset(8, size=12))


def test_a07_a_defence_that_is_not_ready_says_so_at_once(tmp_path) -> None:
    """A7: neither does an uncalibrated defence begin."""
    refused(tmp_path, NotCalibratedError, "calibrate", arms={"it": chain_of(calibrate=False)})


def test_a07_a_model_without_gradient_is_still_asked() -> None:
    """A7: what has no gradient is evaluated by those who need none."""
    flat = bare(Answering(lambda logits: logits.detach()))
    found = {rung.rung: rung for rung in evaluate({"it": flat}, DATA, preset=SHORT, eps=(0.05,)).arms[0].rungs}
    assert found["square"].reading is not None
    assert "no gradient" in found["static"].skipped
