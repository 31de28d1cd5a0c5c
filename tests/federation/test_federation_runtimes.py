"""One pair of apps, several runtimes; and any trainable part."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from test_federation_data import images, quick, same, strategy, three_sites
from torch import Tensor, nn

from medfedpure.core.dataset import Batch
from medfedpure.core.errors import FederationError
from medfedpure.core.progress import listening
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import Streams, isolated_rng
from medfedpure.core.task import Task, Trainable
from medfedpure.federation import InProcessGrid, federate_component
from medfedpure.federation.grid import acting_as_server
from medfedpure.federation.simulation import store_sites


class Reconstruction(Task):
    """Mean squared error of an autoencoder."""

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        return nn.functional.mse_loss(model(batch.images), batch.images)


class Autoencoder:
    """A part that is no classifier."""

    network: nn.Module | None = None

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        with isolated_rng(seed):
            return nn.Sequential(
                nn.Conv2d(image_shape[0], 4, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.ConvTranspose2d(4, image_shape[0], 4, stride=2, padding=1),
            )

    def task(self) -> Task:
        return Reconstruction()

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        self.network = network
        return self


def test_any_trainable_part_is_trained_federatedly() -> None:
    part = Autoencoder()
    assert isinstance(part, Trainable)
    training = TrainingConfig(steps=60, batch_size=8, learning_rate=0.02)
    result = federate_component(
        part, three_sites(validation=True), strategy=strategy("fedavg"), training=training, rounds=3, seed=1
    )
    data, task = images(6, 100), part.task()
    before = task.metrics(part.make_network(data.image_shape, 1), data)["loss"]
    assert task.metrics(result.models["a"], data)["loss"] < 0.7 * before, "three rounds must lower the error"
    assert result.history[-1].clients["a"]["loss"] < result.history[0].clients["a"]["loss"]
    assert part.adopt(result.models["a"], data.image_shape).network is result.models["a"]


def test_the_grid_shares_nothing_between_server_and_client() -> None:
    app, seen = ClientApp(), list[RecordDict]()

    def train(message: Message, context: Context) -> Message:
        seen.append(message.content)
        return Message(RecordDict({"arrays": ArrayRecord({"w": torch.ones(2)})}), reply_to=message)

    app.train()(train)
    tapped: list[Message] = []
    grid = InProcessGrid(app, 2, tap=tapped.append)
    with acting_as_server(grid.run.run_id):
        sent = RecordDict({"arrays": ArrayRecord({"w": torch.zeros(2)})})
        first, second = grid.get_node_ids()
        asked = [Message(sent, first, "train", group_id="1"), Message(sent, second, "evaluate", group_id="1")]
        names = list(grid.push_messages(asked))
        good, bad = grid.pull_messages(names)
        assert list(grid.pull_messages(names)) == [], "a reply is handed out once"
        with pytest.raises(FederationError, match="no node has the number 3"):
            grid.push_messages([Message(sent, 3, "train")])
    assert seen[0] is not sent
    assert seen[0]["arrays"] is not sent["arrays"]
    assert good.metadata.reply_to_message_id == names[0]
    assert (good.metadata.src_node_id, bad.metadata.src_node_id) == (first, second)
    assert bad.has_error()
    assert bad.error.reason == "ValueError", "the text of an app's error must not travel"
    assert [message.has_error() for message in tapped] == [False, False, False, True]


def test_rounds_are_reported_as_progress() -> None:
    class Listener:
        def __init__(self) -> None:
            self.bars: list[tuple[str, int]] = []
            self.steps: list[int] = []

        def started(self, description: str, total: int) -> int:
            self.bars.append((description, total))
            return len(self.bars) - 1

        def advanced(self, handle: int, note: str = "") -> None:
            self.steps.append(handle)

        def finished(self, handle: int) -> None:
            pass

    listener = Listener()
    with listening(listener):
        quick(three_sites(), strategy("fedavg"))
    assert listener.bars[0] == ("federated rounds", 3)
    assert listener.steps.count(0) == 3


def test_flower_is_imported_on_demand_and_kept_off_the_network() -> None:
    code = (
        "import os, sys, medfedpure, medfedpure.core.personalization as p\n"
        "assert 'flwr' not in sys.modules\n"
        "import medfedpure.federation\n"
        "print(os.environ['FLWR_TELEMETRY_ENABLED'], os.environ['FLWR_DISABLE_UPDATE_CHECK'],"
        " os.environ['FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION'], os.environ['RAY_USAGE_STATS_ENABLED'],"
        " 'ray' in sys.modules)\n"
    )
    free = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "RAY_"))}
    free["FLWR_DISABLE_UPDATE_CHECK"] = "true"
    done = subprocess.run([sys.executable, "-c", code], env=free, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["0", "true", "1", "0", "False"], done.stderr


def test_sites_survive_the_way_to_a_worker(tmp_path: Path) -> None:
    sites = three_sites(validation=True)
    stored = store_sites(sites, tmp_path)
    for place, site in enumerate(sites):
        read = stored({"partition-id": place, "num-partitions": 3})
        assert read.client_id == site.client_id
        assert read.train.fingerprint() == site.train.fingerprint()
        assert torch.equal(read.train.ids, site.train.ids)
        assert read.validation is not None
        assert read.train.class_names == site.train.class_names


@pytest.mark.slow
def test_the_simulation_engine_gives_the_same_bits() -> None:
    ray = pytest.importorskip("ray")
    sites = three_sites(validation=True)
    here = quick(sites, strategy("fedper"), rounds=2)
    environment, state, rng, threads = (
        dict(os.environ),
        random.getstate(),
        torch.get_rng_state(),
        torch.get_num_threads(),
    )
    there = quick(sites, strategy("fedper"), rounds=2, runtime="simulation")
    assert not ray.is_initialized(), "Ray was left running"
    assert dict(os.environ) == environment
    assert random.getstate() == state
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.get_num_threads() == threads
    assert same(here.shared, there.shared)
    for client, model in here.models.items():
        assert same(dict(model.state_dict()), dict(there.models[client].state_dict()))
    assert [r.clients for r in here.history] == [r.clients for r in there.history]
    assert [r.client_bytes_up for r in here.history] == [r.client_bytes_up for r in there.history]
    assert [r.client_bytes_down for r in here.history] == [r.client_bytes_down for r in there.history]
