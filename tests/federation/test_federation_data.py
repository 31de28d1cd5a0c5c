"""What goes in: sites, configuration, the store of private tensors. The other files import the builders."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, FederationError
from medfedpure.core.personalization import PersonalizationStrategy
from medfedpure.core.settings import TrainingConfig
from medfedpure.federation import FederatedResult, FederationConfig, PrivateStore, Site, StaleStateError, federate
from medfedpure.training.classification import ClassificationTask

TRAINING = TrainingConfig(steps=6, batch_size=4, learning_rate=0.01)


def images(size: int, seed: int, *, side: int = 16, classes: tuple[str, ...] = ("no", "yes")) -> ImageDataset:
    """Random pixels and labels."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size, 1, side, side), dtype=torch.uint8, generator=generator)
    return ImageDataset(pixels, torch.randint(0, 2, (size,), generator=generator), torch.arange(size), classes)


def three_sites(*, validation: bool = False) -> list[Site]:
    """Clients a, b and c with 8, 12 and 16 images."""
    return [
        Site(name, images(8 + 4 * place, place), images(6, 100 + place) if validation else None)
        for place, name in enumerate("abc")
    ]


def small_cnn() -> nn.Module:
    """A classifier with a head and BatchNorm counters."""
    plugin = medfedpure.create("classifier", "small_cnn", widths=(4, 8))
    model: nn.Module = plugin.create_model(in_channels=1, num_classes=2, image_size=16)
    return model


def strategy(name: str) -> PersonalizationStrategy:
    """A built-in strategy."""
    made: PersonalizationStrategy = medfedpure.create("personalization", name)
    return made


def quick(sites: list[Site], chosen: PersonalizationStrategy, **changes: object) -> FederatedResult:
    """A federated run of three rounds with two steps each."""
    options: dict[str, object] = {
        "make_model": small_cnn,
        "task": ClassificationTask(),
        "training": TRAINING,
        "rounds": 3,
        "seed": 7,
    }
    return federate(sites, strategy=chosen, **(options | changes))  # type: ignore[arg-type]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Bit-equal under equal names."""
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-a", "x" * 65])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(FederationError, match="cannot name a client"):
        Site(name, images(4, 0))


def test_a_site_without_images_or_with_two_shapes_is_refused() -> None:
    with pytest.raises(DataError, match="no training image"):
        Site("a", images(0, 0))
    with pytest.raises(DataError, match="one shape"):
        Site("a", images(4, 0), images(4, 0, side=8))


@pytest.mark.parametrize(
    ("sites", "changes", "text"),
    [
        ([], {}, "at least one site"),
        ([Site("a", images(4, 0)), Site("a", images(4, 1))], {}, "two sites are named 'a'"),
        ([Site("a", images(4, 0)), Site("b", images(4, 1, side=32))], {}, "bring all to one shape"),
        ([Site("a", images(4, 0)), Site("b", images(4, 1, classes=("x", "y")))], {}, "must mean the same"),
        (three_sites(), {"rounds": 0}, "at least 1 round"),
        (three_sites(), {"rounds": 7}, "raise steps to at least 7"),
        (three_sites(), {"name": "../classifier"}, "cannot name a network"),
        (three_sites(), {"runtime": "cloud"}, "'in_process' or 'simulation'"),
    ],
)
def test_what_cannot_be_federated_is_refused_with_advice(
    sites: list[Site], changes: dict[str, object], text: str
) -> None:
    with pytest.raises((FederationError, DataError), match=text):
        quick(sites, strategy("fedavg"), **changes)


@pytest.mark.parametrize(
    ("quorum", "clients", "needed"), [(0.5, 1, 1), (0.5, 2, 1), (0.5, 3, 2), (0.1, 30, 3), (1.0, 4, 4), (0.01, 3, 1)]
)
def test_the_quorum_rounds_up_and_is_never_zero(quorum: float, clients: int, needed: int) -> None:
    assert FederationConfig(quorum=quorum).needed(clients) == needed


@pytest.fixture
def store(tmp_path: Path) -> PrivateStore:
    made = PrivateStore(tmp_path / "state", 11, "a", "fedper")
    made.write(1, {"head": torch.arange(3.0), "count": torch.tensor(5)}, confirmed=0)
    return made


def test_private_tensors_come_back_and_are_for_their_owner_only(store: PrivateStore) -> None:
    read = store.read(1)
    assert same(read, {"head": torch.arange(3.0), "count": torch.tensor(5)}), "the tensors changed on disk"
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700
    for path in store.folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, f"{path.name} is open to others"
    document = json.loads((store.folder / "round-00001.json").read_text())
    assert (document["round"], document["strategy"], document["client"]) == (1, "fedper", "a")


def test_no_private_state_is_expected_before_the_first_round(tmp_path: Path) -> None:
    assert PrivateStore(tmp_path, 1, "a", "fedper").read(0) == {}


def test_states_older_than_the_confirmed_one_are_removed(store: PrivateStore) -> None:
    for round in (2, 3):
        store.write(round, {"head": torch.full((3,), float(round))}, confirmed=round - 1)
    assert sorted({path.stem for path in store.folder.iterdir()}) == ["round-00002", "round-00003"]
    assert float(store.read(2)["head"][0]) == 2, "a client whose reply was lost must find its confirmed state"


def _missing(folder: Path) -> None:
    (folder / "round-00001.safetensors").unlink()


def _truncated(folder: Path) -> None:
    path = folder / "round-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _edited(folder: Path) -> None:
    path = folder / "round-00001.json"
    path.write_text(path.read_text().replace("fedper", "fedrep"))


def _garbage(folder: Path) -> None:
    (folder / "round-00001.json").write_text("[")


@pytest.mark.parametrize("damage", [_missing, _truncated, _edited, _garbage])
def test_damage_to_the_private_state_is_noticed(store: PrivateStore, damage: Callable[[Path], None]) -> None:
    damage(store.folder)
    with pytest.raises(StaleStateError, match=r"restore the folder"):
        store.read(1)


def test_a_state_that_is_not_the_remembered_one_is_refused(store: PrivateStore, tmp_path: Path) -> None:
    digest = store.write(2, {"head": torch.ones(3)}, confirmed=1)
    assert store.read(2, sha256=digest)
    with pytest.raises(StaleStateError, match="differs in sha256"):
        store.read(2, sha256="0" * 64)
    other = PrivateStore(tmp_path / "state", 11, "b", "fedper")
    shutil.copytree(store.folder, other.folder)
    with pytest.raises(StaleStateError, match="differs in client"):
        other.read(2)
