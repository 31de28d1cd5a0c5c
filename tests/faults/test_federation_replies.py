"""One site's bad reply concerns that site alone; and counts and types are believed only within bounds."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Error, Message, RecordDict
from flwr.app.message import make_message
from malformed import HELLO, TRAIN, Forge, claims, replaced, saved
from test_federation_data import images, same, strategy
from torch import nn

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import PersonalizationStrategy, Update, weighted_mean
from medfedpure.core.settings import TrainingConfig
from medfedpure.federation import (
    ClientSide,
    FederationConfig,
    InProcessGrid,
    RoundLoop,
    ServerSide,
    Site,
    make_client_app,
)
from medfedpure.federation.client import working
from medfedpure.federation.grid import acting_as_server
from medfedpure.federation.run import MemorySites
from medfedpure.plugins.personalization.fedavg import FedAvg
from medfedpure.training.classification import ClassificationTask

TRAINING = TrainingConfig(steps=2, batch_size=4, learning_rate=0.01)
FORGER = 1001


def linear() -> nn.Module:
    """The smallest network with two shared tensors."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))


class ForgingGrid(InProcessGrid):
    """Node 1001 answers messages of one type with what `forge` makes of its honest reply; with no answer, it raises."""

    kind, forge, chance = "train", staticmethod(lambda content, chance: None), random.Random(0)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies, of which some are forged."""
        return [self._forged(message) for message in super().pull_messages(message_ids)]

    def _forged(self, message: Message) -> Message:
        if message.metadata.src_node_id != FORGER or message.metadata.message_type != self.kind:
            return message
        found = self.forge(message.content, self.chance)
        if isinstance(found, Error):
            return make_message(metadata=message.metadata, error=found)
        return make_message(metadata=message.metadata, content=message.content if found is None else found)


def run(
    folder: Path,
    names: str = "abc",
    forge: Forge | None = None,
    kind: str = "train",
    number: int = 0,
    chosen: PersonalizationStrategy | None = None,
) -> RoundLoop:
    """Two rounds of clients on random images; b's replies of one kind are forged."""
    sites = tuple(Site(name, images(4 + 2 * "abc".index(name), "abc".index(name), side=4)) for name in names)
    made = chosen or FedAvg()
    clients = ClientSide(made, ClassificationTask(), linear, MemorySites(sites), folder)
    config = FederationConfig(round_timeout=0.3, start_timeout=0.3)
    loop = RoundLoop(ServerSide(tuple(names), made, linear, TRAINING, 2, 7, config))
    grid = ForgingGrid(make_client_app(clients), len(names))
    if forge is not None:
        grid.kind, grid.forge, grid.chance = kind, forge, random.Random(number)
    with working(1, 7), acting_as_server(grid.run.run_id):
        loop.run(grid, grid.server_context())
    return loop


@pytest.fixture(scope="module")
def honest() -> dict[str, torch.Tensor]:
    """What a and c make without b."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), "ac").shared


FAMILIES = [("train", forge) for forge in TRAIN] + [("query", forge) for forge in HELLO]
CASES = [(*FAMILIES[number % len(FAMILIES)], number) for number in range(5 * len(FAMILIES))]


@pytest.mark.parametrize(
    ("kind", "forge", "number"), CASES, ids=[f"{kind}-{forge.__name__}-{number}" for kind, forge, number in CASES]
)
def test_b03_a_malformed_reply_leaves_out_its_sender_alone(
    kind: str, forge: Forge, number: int, tmp_path: Path, honest: dict[str, torch.Tensor]
) -> None:
    """B3: a string where numbers were wanted, a field that lacks, an array that claims 4 TB: the run goes on."""
    loop = run(tmp_path, forge=forge, kind="train" if kind == "train" else "query.hello", number=number)
    for record in loop.history:
        assert set(record.clients) == {"a", "c"}
        assert set(record.failed) == {"b"}
        text = record.failed["b"]
        assert text.isprintable(), "what a site sends must not reach a terminal as it is"
        assert 5 < len(text) < 1000
    assert same(loop.shared, honest), "the others' model must be that of a run without the site"


def test_b03_nothing_is_allocated_for_what_a_header_claims(tmp_path: Path) -> None:
    """B3: an array of a few bytes that claims 2 GB."""
    tracemalloc.start()
    try:
        loop = run(tmp_path, forge=lambda content, _: replaced(content, claims("(25000, 20000)")))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "shape" in loop.history[0].failed["b"]
    assert peak < 50e6, f"{peak / 1e6:.0f} MB"


def test_b03_a_site_that_sends_nonsense_once_is_back_in_the_next_round(tmp_path: Path) -> None:
    """B3: it is left out of that round, not of the run."""
    seen: list[int] = []

    def once(content: RecordDict, chance: random.Random) -> None:
        seen.append(1)
        if len(seen) == 1:
            del content["metrics"]

    loop = run(tmp_path, forge=once)
    assert [set(record.clients) for record in loop.history] == [{"a", "c"}, {"a", "b", "c"}]
    assert "metrics" in loop.history[0].failed["b"]


def test_b03_a_bad_answer_to_the_last_evaluation_loses_its_figures_alone(tmp_path: Path) -> None:
    """B3: the last message of a run is read as carefully as the others."""
    sites = tuple(
        Site(name, images(4, place, side=4), images(4, 9 + place, side=4)) for place, name in enumerate("abc")
    )
    made = FedAvg()
    clients = ClientSide(made, ClassificationTask(), linear, MemorySites(sites), tmp_path)
    loop = RoundLoop(ServerSide(tuple("abc"), made, linear, TRAINING, 1, 7, FederationConfig()))
    grid = ForgingGrid(make_client_app(clients), 3)
    grid.kind, grid.forge = "evaluate", lambda content, _: content["metrics"].update({"evaluated.loss": [1.0]})
    with acting_as_server(grid.run.run_id):
        loop.run(grid, grid.server_context())
    (record,) = loop.history
    assert [name for name, figures in record.clients.items() if "loss" in figures] == ["a", "c"]
    assert "evaluated.loss" in record.failed["b"]


def test_b03_the_quorum_still_counts(tmp_path: Path) -> None:
    """B3: where too few are left, the run ends and says what came."""

    def forge(content: RecordDict, chance: random.Random) -> None:
        del content["metrics"]

    sites = tuple(Site(name, images(4, 0, side=4)) for name in "ab")
    clients = ClientSide(FedAvg(), ClassificationTask(), linear, MemorySites(sites), tmp_path)
    loop = RoundLoop(ServerSide(tuple("ab"), FedAvg(), linear, TRAINING, 1, 7, FederationConfig(quorum=1.0)))
    grid = ForgingGrid(make_client_app(clients), 2)
    grid.forge = forge
    wanted = r"round 1: 1 of 2 clients .* 2 are needed \(b: .*metrics"
    with acting_as_server(grid.run.run_id), pytest.raises(FederationError, match=wanted):
        loop.run(grid, grid.server_context())


@pytest.mark.parametrize("weights", [None, float("nan"), -1.0, 5.0, float("inf")])
def test_b03_figures_that_the_strategy_cannot_use_leave_out_their_sender(weights: float | None, tmp_path: Path) -> None:
    """B3: a strategy may weigh clients by what they report; nonsense there is the sender's, too."""

    def forge(content: RecordDict, chance: random.Random) -> None:
        for name in [name for name in content["metrics"] if "weight" in name]:
            if weights is None:
                del content["metrics"][name]
            else:
                content["metrics"][name] = weights

    loop = run(tmp_path / "forged", forge=forge, chosen=strategy("mixture"))
    assert [set(record.failed) for record in loop.history] == [{"b"}, {"b"}]
    assert "aggregate" in loop.history[0].failed["b"]
    assert same(loop.shared, run(tmp_path / "without", "ac", chosen=strategy("mixture")).shared)


# -- B5 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2**62, 2**31, 7])
def test_b05_a_site_counts_for_no_more_images_than_it_announced(count: int, tmp_path: Path) -> None:
    """B5: a site that claims 2^62 examples becomes the model."""

    def forge(content: RecordDict, chance: random.Random) -> None:
        content["metrics"]["num-examples"] = count

    loop = run(tmp_path, forge=forge)
    assert f"{count} examples" in loop.history[0].failed["b"]
    assert "1 to 6" in loop.history[0].failed["b"]


def test_b05_what_a_site_may_announce_is_bounded(tmp_path: Path) -> None:
    """B5: nor may it announce 2^62 examples at the start."""

    def forge(content: RecordDict, chance: random.Random) -> None:
        content["identity"]["examples"] = 2**62

    loop = run(tmp_path, forge=forge, kind="query.hello")
    assert "1 to 10000000" in loop.history[0].failed["b"]


def spoilt(**changes: Any) -> list[Update]:
    """Two updates; the second one is spoilt."""
    good = {"w": torch.zeros(2)}
    return [Update("a", good, 4), Update("b", **{"shared": good, "num_examples": 4, **changes})]


@pytest.mark.parametrize("count", [0, -3, 4.0, True, float("nan"), float("inf"), "4", [4], None])
def test_b05_a_count_is_a_positive_integer(count: Any) -> None:
    """B5: in the mean itself, for strategies and callers of their own."""
    with pytest.raises(FederationError, match="client b counts"):
        weighted_mean({"w": torch.zeros(2)}, spoilt(num_examples=count))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.bool, torch.uint8])
def test_b05_tensors_that_are_not_floating_are_refused(dtype: torch.dtype) -> None:
    """B5: complex numbers lose their imaginary part in a mean, whole ones their meaning."""
    with pytest.raises(FederationError, match=r"client b sent a tensor w that is of type torch"):
        weighted_mean({"w": torch.zeros(2)}, spoilt(shared={"w": torch.ones(2, dtype=dtype)}))


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_b05_a_weight_is_finite_and_not_negative(weight: float) -> None:
    """B5: a strategy's own weights, computed from what clients report, are checked like counts."""
    with pytest.raises(FederationError, match="client b weighs"):
        weighted_mean(
            {"w": torch.zeros(2)}, spoilt(), weight=lambda update, _: weight if update.client_id == "b" else 1
        )


def test_b05_other_floating_types_and_byte_orders_are_the_same_values(tmp_path: Path) -> None:
    """B5: what is a float stays welcome."""
    kept: list[torch.Tensor] = []

    def forge(content: RecordDict, chance: random.Random) -> None:
        value = content["arrays"]["1.weight"].numpy()
        replaced(content, saved(value.astype(">f8") if kept else np.asfortranarray(value)))
        kept.append(torch.from_numpy(value))

    loop = run(tmp_path / "forged", forge=forge)
    assert [dict(record.failed) for record in loop.history] == [{}, {}]
    assert same(loop.shared, run(tmp_path / "plain").shared)
