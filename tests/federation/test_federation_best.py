"""Adversarial options through whole federated runs, and the round whose model a client is left with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_federation_data import quick, same, three_sites
from test_federation_resume import Interrupted, _equal, _stop_after

import medfedpure
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import TrainingError
from medfedpure.core.task import Task
from medfedpure.federation import FederationConfig, PrivateStore, Site, StaleStateError
from medfedpure.training.classification import ClassificationTask

ATTACK = {"share": 0.5, "eps": 0.05, "step": "auto", "steps": 2}
BEST = FederationConfig(keep="best")


class Scripted(ClassificationTask):
    """The loss of the first client is lowest after round 2, of the others after 3 and 1; as is written down here."""

    losses = {6: {1: 0.9, 2: 0.5, 3: 0.7}, 4: {1: 0.9, 2: 0.5, 3: 0.4}, 2: {1: 0.1, 2: float("nan"), 3: 0.7}}

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, int] = {}

    def metrics(self, model: torch.nn.Module, data: ImageDataset, **options: Any) -> dict[str, float]:
        size = len(data)
        self.asked[size] = self.asked.get(size, 0) + 1
        return {"loss": self.losses[size][self.asked[size]]}


def uneven() -> list[Site]:
    """Clients that can be told by the number of their validation images: 6, 4 and 2."""
    return [
        Site(site.client_id, site.train, site.validation.select(torch.arange(6) < 6 - 2 * place))
        for place, site in enumerate(three_sites(validation=True))
        if site.validation is not None
    ]


@pytest.mark.parametrize("name", ["fedavg", "ditto"])
def test_each_client_is_left_with_the_model_of_its_best_round(name: str, tmp_path: Path) -> None:
    strategy = medfedpure.create("personalization", name)
    whole = quick(uneven(), strategy, task=Scripted(), config=BEST, state_dir=tmp_path)
    assert whole.kept == {"a": 2, "b": 3, "c": 1}
    last = quick(uneven(), strategy, task=Scripted())
    assert last.kept == dict.fromkeys("abc", 3)
    assert same(whole.shared, last.shared), "what is kept must not change what is trained"
    for client, changed in {"a": True, "b": False, "c": True}.items():
        one, two = dict(whole.models[client].state_dict()), dict(last.models[client].state_dict())
        assert same(one, two) is not changed
    found = list(tmp_path.glob("model/run-*/a/best*"))
    assert sorted(path.name for path in found) == ["best-00002.safetensors", "best.json"]
    if name == "fedavg":
        middle: dict[str, Any] = {}

        class Listening(Scripted):
            def metrics(self, model: torch.nn.Module, data: ImageDataset, **options: Any) -> dict[str, float]:
                figures = super().metrics(model, data, **options)
                if (len(data), self.asked[len(data)]) == (6, 2):
                    middle.update({key: value.clone() for key, value in model.state_dict().items()})
                return figures

        quick(uneven(), strategy, task=Listening())
        assert same(dict(whole.models["a"].state_dict()), middle), "not the model that was evaluated in round 2"


def test_without_validation_images_it_is_the_last() -> None:
    result = quick(three_sites(), medfedpure.create("personalization", "fedavg"), config=BEST)
    assert result.kept == dict.fromkeys("abc", 3)


def test_figures_of_rounds_are_under_attack_too_and_decide(tmp_path: Path) -> None:
    strategy = medfedpure.create("personalization", "fedavg", adversarial=ATTACK)
    result = quick(three_sites(validation=True), strategy, config=BEST, state_dir=tmp_path)
    for client, kept in result.kept.items():
        rounds = [dict(record.clients[client]) for record in result.history]
        worth = [(own["robust_balanced_accuracy"], -own["robust_loss"]) for own in rounds]
        assert kept == 1 + worth.index(max(worth))


@pytest.mark.parametrize("name", ["ditto", "pfeddef"])
def test_a_run_with_all_options_goes_on_to_the_same_result(name: str, tmp_path: Path) -> None:
    options = {"method": "fast", "normalization": "dual", "awp": 0.01, "eps_zero": 0.1, "eps_full": 0.9}
    strategy = medfedpure.create("personalization", name, adversarial={**ATTACK, **options})
    sites = three_sites(validation=True)
    whole = quick(sites, strategy, config=BEST)
    places = {"checkpoint": tmp_path / "checkpoint", "state_dir": tmp_path / "state"}
    with pytest.raises(Interrupted):
        quick(sites, strategy, config=BEST, watch=_stop_after(2), **places)
    resumed = quick(sites, strategy, config=BEST, **places)
    _equal(whole, resumed)
    assert whole.kept == resumed.kept


def test_what_cannot_be_trained_so_is_refused_before_anybody_is_asked() -> None:
    class Other(Task):
        def loss(self, model, batch, streams):
            return model(batch.images).square().mean()

    strategy = medfedpure.create("personalization", "fedavg", adversarial={**ATTACK, "method": "trades"})
    with pytest.raises(TrainingError, match=r'take "pgd"'):
        quick(three_sites(), strategy, task=Other())


def test_a_best_state_that_was_changed_is_refused(tmp_path: Path) -> None:
    store = PrivateStore(tmp_path, 7, "a", "fedavg")
    assert store.best(9) is None
    store.offer(1, (0.5, -1.0), {"w": torch.ones(2)})
    store.offer(2, (0.5, -2.0), {"w": torch.zeros(2)})
    store.offer(3, (0.5, float("nan")), {"w": torch.zeros(2)})
    found = store.best(3)
    assert found is not None
    assert (found.round, found.worth) == (1, (0.5, -1.0))
    assert torch.equal(found.tensors["w"], torch.ones(2))
    assert store.best(0) is None, "a round that the server does not know of"
    other = PrivateStore(tmp_path, 7, "b", "fedavg")
    other.folder = store.folder
    with pytest.raises(StaleStateError, match="differs in client"):
        other.best(3)
    document = store.folder / "best.json"
    document.write_text(json.dumps({**json.loads(document.read_text()), "sha256": "0"}))
    with pytest.raises(StaleStateError, match="differs in sha256"):
        store.best(3)
    document.write_text("{}")
    with pytest.raises(StaleStateError, match="not readable"):
        store.best(3)
