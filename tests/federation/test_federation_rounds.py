"""The rounds themselves: what is averaged, what stays, what repeats."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from flwr.supercore.task_identity import TaskIdentity
from test_federation_data import TRAINING, images, quick, same, small_cnn, strategy, three_sites
from torch import Tensor, nn

from medfedpure.core.personalization import ClientRound, LocalResult, Tensors, Update
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.core.streams import derive_seed, isolated_rng
from medfedpure.federation import FederationConfig, Site
from medfedpure.plugins.personalization.fedavg import FedAvg
from medfedpure.plugins.personalization.fedper import FedPer
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train


def linear() -> nn.Module:
    """Draws from the global generator on purpose: the federation must seed that."""
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 2))


class RememberingFedPer(FedPer):
    """Keeps what each client held before and after each round."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[tuple[str, int], Tensors] = {}
        self.after: dict[tuple[str, int], Tensors] = {}

    def local_update(self, r: ClientRound) -> LocalResult:
        """As FedPer, and remember."""
        self.before[r.client_id, r.round] = r.private
        result = super().local_update(r)
        self.after[r.client_id, r.round] = result.private
        return result


def test_fedavg_is_the_weighted_mean_of_the_local_trainings() -> None:
    sites = [Site("a", images(24, 1)), Site("b", images(8, 2))]
    task, training = (
        ClassificationTask(Augmentation(flip=False, shift=0)),
        TrainingConfig(steps=4, batch_size=8, learning_rate=0.01),
    )
    result = quick(sites, FedAvg(), make_model=linear, task=task, training=training, rounds=2)

    with isolated_rng(derive_seed(7, "initial model")):
        current = linear().state_dict()
    for round in (1, 2):
        local: dict[str, dict[str, Tensor]] = {}
        for site in sites:
            model = linear()
            model.load_state_dict(current)
            seed = derive_seed(derive_seed(7, "client", site.client_id, round), round)
            train(model, task, site.train, training, seed=seed, window=(2 * round - 2, 2 * round))
            local[site.client_id] = model.state_dict()
        current = {k: ((24 * local["a"][k].double() + 8 * local["b"][k].double()) / 32).float() for k in local["a"]}
    for key, wanted in current.items():
        torch.testing.assert_close(result.shared[key], wanted, rtol=0, atol=1e-6)
        for model in result.models.values():
            assert torch.equal(model.state_dict()[key], result.shared[key])


def test_the_private_head_is_in_no_message_and_the_body_is() -> None:
    chosen, wire = RememberingFedPer(), list[bytes]()

    def tap(message: Message) -> None:
        wire.append(message_to_proto(message).SerializeToString())

    quick(three_sites(validation=True), chosen, tap=tap)
    assert len(wire) == 2 * 3 * 5, "3 clients: hello, 3 rounds, final evaluation, each asked and answered"
    heads = [key for key in small_cnn().state_dict() if "head" in key]
    assert len(heads) == 2
    everything = b"".join(wire)
    assert b"network.body.0.weight" in everything, "the tap must see what travels"
    for key in heads:
        assert key.encode() not in everything, f"the name {key} left its client"
    initial = small_cnn().state_dict()
    for private in [*chosen.after.values(), initial]:
        for key in heads:
            assert private[key].numpy().tobytes() not in everything, f"values of {key} left their client"
    body = next(key for key in initial if key.endswith("body.0.weight"))
    assert initial[body].numpy().tobytes() in everything, "bytes of the shared body must be findable"


def test_heads_are_personal_and_survive_from_round_to_round() -> None:
    chosen = RememberingFedPer()
    result = quick(three_sites(), chosen)
    for client in "abc":
        assert chosen.before[client, 1] == {}, "nothing is kept before the first round"
        for round in (2, 3):
            kept, left = chosen.before[client, round], chosen.after[client, round - 1]
            assert same(kept, left), f"client {client} began round {round} with another state than it left"
        final = result.models[client].state_dict()
        assert same({key: final[key] for key in chosen.after[client, 3]}, chosen.after[client, 3])
        assert same({key: final[key] for key in result.shared}, result.shared)
    heads = [model.state_dict()["network.head.weight"] for model in result.models.values()]
    assert not torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[1], heads[2])


@pytest.mark.parametrize("name", ["fedavg", "fedper"])
def test_counters_stay_integers_and_keep_counting(name: str) -> None:
    result = quick(three_sites(), strategy(name))
    assert all(value.is_floating_point() for value in result.shared.values()), "an integer buffer travelled"
    for client, model in result.models.items():
        counters = {key: value for key, value in model.state_dict().items() if "num_batches_tracked" in key}
        assert counters
        for key, value in counters.items():
            assert value.dtype == torch.int64
            assert int(value) == TRAINING.steps, f"{key} of client {client} lost count between rounds"


def test_order_of_sites_does_not_matter_and_runs_repeat() -> None:
    first = quick(three_sites(), strategy("fedper"))
    torch.manual_seed(4711)  # whatever the process drew before must not matter
    for sites in (three_sites(), three_sites()[::-1]):
        again = quick(sites, strategy("fedper"))
        assert same(first.shared, again.shared)
        assert list(again.models) == ["a", "b", "c"]
        for client, model in first.models.items():
            assert same(dict(model.state_dict()), dict(again.models[client].state_dict()))
        assert [r.clients for r in again.history] == [r.clients for r in first.history]
    assert not same(first.shared, quick(three_sites(), strategy("fedper"), seed=8).shared)


def test_history_holds_figures_of_the_exported_models() -> None:
    sites = three_sites(validation=True)
    sites[2] = Site("c", sites[2].train)
    result = quick(sites, strategy("fedper"))
    assert [record.round for record in result.history] == [1, 2, 3]
    for record in result.history:
        assert set(record.clients) == {"a", "b", "c"}
        assert record.failed == {}
        assert {"train_loss", "loss"} <= set(record.clients["a"])
        assert "loss" not in record.clients["c"], "client c has no validation images"
        assert record.seconds > 0
        payload = 3 * sum(value.numel() * 4 for value in result.shared.values())
        assert record.bytes_up > payload
        assert record.bytes_down > payload
        for by_client in (record.client_bytes_up, record.client_bytes_down):
            assert set(by_client) == {"a", "b", "c"}
            assert min(by_client.values()) > payload / 3
    task = ClassificationTask()
    for site in sites[:2]:
        model = result.models[site.client_id]
        assert site.validation is not None
        assert not model.training
        assert task.metrics(model, site.validation)["loss"] == pytest.approx(
            result.history[-1].clients[site.client_id]["loss"], abs=1e-6
        )


def test_figures_of_a_round_are_of_its_aggregate_with_the_head_of_that_round() -> None:
    aggregates: list[Tensors] = []

    class Watched(RememberingFedPer):
        def aggregate(self, round: int, previous: Tensors, updates: Sequence[Update]) -> Tensors:
            aggregates.append(super().aggregate(round, previous, updates))
            return aggregates[-1]

    chosen, sites = Watched(), three_sites(validation=True)
    result = quick(sites, chosen)
    for record, shared in zip(result.history, aggregates, strict=True):
        for site in sites:
            model = small_cnn()
            model.load_state_dict({**chosen.after[site.client_id, record.round], **shared})
            assert site.validation is not None
            wanted = ClassificationTask().metrics(model.eval(), site.validation)["loss"]
            assert record.clients[site.client_id]["loss"] == pytest.approx(wanted, abs=1e-6)


def test_the_strategys_own_scalars_reach_the_client() -> None:
    seen: dict[tuple[str, int], dict[str, object]] = {}

    class Talking(FedAvg):
        def client_config(self, round: int, client_id: str, history: object) -> dict[str, int | float | str | bool]:
            return {"share": 0.25, "name": client_id, "past": len(history), "on": True}  # type: ignore[arg-type]

        def local_update(self, r: ClientRound) -> LocalResult:
            seen[r.client_id, r.round] = dict(r.config)
            return super().local_update(r)

    quick(three_sites(), Talking())
    assert seen["b", 3] == {"share": 0.25, "name": "b", "past": 2, "on": True}


def test_nothing_global_is_touched() -> None:
    torch.manual_seed(5)
    random.seed(5)
    threads, identity = torch.get_num_threads(), TaskIdentity._run_id
    before = torch.get_rng_state(), random.getstate(), logging.getLogger("flwr").level
    quick(three_sites(), FedAvg(), make_model=lambda: linear(), config=FederationConfig(threads=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert logging.getLogger("flwr").level == before[2]
    assert torch.get_num_threads() == threads
    assert identity == TaskIdentity._run_id, "Flower's identity of the process is left set"


def test_private_tensors_stay_in_the_given_folder_and_nowhere_else(tmp_path: Path) -> None:
    quick(three_sites(), strategy("fedper"), state_dir=tmp_path, name="classifier")
    (run,) = (tmp_path / "classifier").iterdir()
    assert sorted(path.name for path in run.iterdir()) == ["a", "b", "c"]


def test_half_precision_parts_travel_exactly() -> None:
    def half() -> nn.Module:
        model = linear()
        model.register_buffer("scale", torch.tensor([1.5, 2.5], dtype=torch.bfloat16))
        model.register_buffer("one", torch.tensor(1.0, dtype=torch.float64))
        return model

    result = quick(three_sites(), FedAvg(), make_model=half)
    assert result.shared["scale"].dtype == torch.bfloat16
    assert result.shared["scale"].tolist() == [1.5, 2.5]
    assert result.shared["one"].dtype == torch.float64
