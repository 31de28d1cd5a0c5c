"""What goes wrong is named, and never passes for success."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from flwr.common.serde import message_to_proto
from test_federation_data import TRAINING, quick, same, small_cnn, strategy, three_sites
from test_federation_rounds import RememberingFedPer

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import ClientRound, LocalResult, PersonalizationStrategy
from medfedpure.federation import ClientSide, FederationConfig, InProcessGrid, RoundLoop, ServerSide, make_client_app
from medfedpure.federation.grid import acting_as_server
from medfedpure.federation.run import MemorySites
from medfedpure.plugins.personalization.fedavg import FedAvg
from medfedpure.training.classification import ClassificationTask

SECRET = "patient 4711 has no pixels"


class Failing(FedAvg):
    """Raises at some clients in some rounds."""

    def __init__(self, clients: str, rounds: tuple[int, ...] = (1, 2, 3)) -> None:
        super().__init__()
        self.clients, self.rounds = clients, rounds

    def local_update(self, r: ClientRound) -> LocalResult:
        """As FedAvg, or not."""
        if r.client_id in self.clients and r.round in self.rounds:
            raise LookupError(SECRET)
        return super().local_update(r)


def _order(message: Message) -> dict[str, object]:
    if message.has_error() or "order" not in message.content:
        return {}
    return dict(message.content["order"])


def test_a_client_that_raises_is_named_and_left_out() -> None:
    result = quick(three_sites(validation=True), Failing("b", rounds=(2,)))
    assert [dict(record.failed) for record in result.history] == [{}, {"b": "LookupError (local_update)"}, {}]
    assert [set(record.clients) for record in result.history] == [{"a", "b", "c"}, {"a", "c"}, {"a", "b", "c"}]
    assert result.missing == {}
    without = quick([s for s in three_sites() if s.client_id != "b"], FedAvg())
    never = quick(three_sites(), Failing("b"))
    assert same(never.shared, without.shared), "a failing client must not weigh"
    assert set(never.models) == {"a", "c"}
    assert "never took part" in never.missing["b"]


def test_the_text_of_an_error_stays_at_the_client(caplog: pytest.LogCaptureFixture) -> None:
    wire: list[bytes] = []
    quick(three_sites(), Failing("b"), tap=lambda m: wire.append(message_to_proto(m).SerializeToString()))
    assert SECRET.encode() not in b"".join(wire)
    assert b"LookupError" in b"".join(wire)
    assert SECRET in caplog.text, "the client's own log must say what happened"


def test_too_few_replies_end_the_run_and_name_everyone() -> None:
    with pytest.raises(FederationError) as caught:
        quick(three_sites(), Failing("ab", rounds=(2,)))
    text = str(caught.value)
    assert "round 2: 1 of 3 clients" in text
    assert "a: LookupError (local_update); b: LookupError (local_update)" in text
    assert SECRET not in text
    result = quick(three_sites(), Failing("ab", rounds=(2,)), config=FederationConfig(quorum=0.3))
    assert set(result.history[1].failed) == {"a", "b"}


def test_a_run_in_which_nobody_replies_is_never_a_success() -> None:
    with pytest.raises(FederationError, match="0 of 3 clients sent an update, and 1 are needed"):
        quick(three_sites(), Failing("abc"), config=FederationConfig(quorum=0.01))


def _delete(folder: Path) -> None:
    for path in folder.glob("round-00002.*"):
        path.unlink()


def _roll_back(folder: Path) -> None:
    for path in folder.glob("round-00001.*"):
        shutil.copy(path, folder / path.name.replace("00001", "00002"))


def _forge(folder: Path) -> None:
    """A consistent pair of files of the right round, but not the one that was written."""
    document, tensors = (folder / f"round-00002.{kind}" for kind in ("json", "safetensors"))
    import hashlib

    data = tensors.read_bytes()
    changed = data[:-4] + b"\0\0\0\0"
    tensors.write_bytes(changed)
    digest, other = (hashlib.sha256(content).hexdigest() for content in (data, changed))
    document.write_text(document.read_text().replace(digest, other))


@pytest.mark.parametrize("harm", [_delete, _roll_back, _forge])
def test_a_lost_or_old_private_state_is_noticed(tmp_path: Path, harm: Callable[[Path], None]) -> None:
    done: list[int] = []

    def tap(message: Message) -> None:
        if _order(message).get("round") == 3 and not done:
            done.append(1)
            (run,) = (tmp_path / "model").iterdir()
            harm(run / "a")

    result = quick(three_sites(), strategy("fedper"), tap=tap, state_dir=tmp_path)
    assert result.history[1].failed == {}
    assert result.history[2].failed == {"a": "StaleStateError (read_state)"}
    assert set(result.history[2].clients) == {"b", "c"}


def test_a_state_that_vanishes_after_the_last_round_leaves_no_silent_model(tmp_path: Path) -> None:
    def tap(message: Message) -> None:
        if message.metadata.message_type == "evaluate":
            for path in (tmp_path / "model").glob("*/a/*"):
                path.unlink()

    result = quick(three_sites(validation=True), strategy("fedper"), tap=tap, state_dir=tmp_path)
    assert result.history[-1].failed == {"a": "StaleStateError (read_state)"}
    assert set(result.models) == {"b", "c"}
    assert "StaleStateError" in result.missing["a"]


class LossyGrid(InProcessGrid):
    """Loses the reply of node 1000 (client a) in round 2, after the client did its work."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """All replies but one."""
        pulled = super().pull_messages(message_ids)
        return [m for m in pulled if (m.metadata.src_node_id, m.metadata.group_id) != (1000, "2")]


def _by_hand(
    tmp_path: Path,
    at_server: PersonalizationStrategy,
    at_clients: PersonalizationStrategy,
    grid: type[InProcessGrid] = InProcessGrid,
    names: tuple[str, ...] = ("a", "b", "c"),
    nodes: int = 3,
) -> RoundLoop:
    clients = ClientSide(at_clients, ClassificationTask(), small_cnn, MemorySites(tuple(three_sites())), tmp_path)
    config = FederationConfig(round_timeout=0.3, start_timeout=0.3)
    loop = RoundLoop(ServerSide(names, at_server, small_cnn, TRAINING, 3, 7, config))
    made = grid(make_client_app(clients), nodes)
    before = torch.get_rng_state()
    with acting_as_server(made.run.run_id):
        loop.run(made, made.server_context())
    assert torch.equal(torch.get_rng_state(), before)
    return loop


def test_a_client_whose_reply_was_lost_returns_to_what_the_server_knows(tmp_path: Path) -> None:
    chosen = RememberingFedPer()
    loop = _by_hand(tmp_path, chosen, chosen, LossyGrid)
    assert loop.history[1].failed == {"a": "no reply within 0.3 s"}
    assert loop.history[2].failed == {}
    assert ("a", 2) in chosen.after, "the client had worked in round 2"
    assert same(chosen.before["a", 3], chosen.after["a", 1])
    assert loop.replied == {"a": 3, "b": 3, "c": 3}


def test_a_site_with_another_strategy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"client a is set up differently.*strategy: fedper, not fedavg"):
        _by_hand(tmp_path, strategy("fedavg"), strategy("fedper"))


def test_a_client_that_the_server_does_not_know_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = _by_hand(tmp_path, strategy("fedavg"), strategy("fedavg"), names=("a", "b"))
    assert [set(record.clients) for record in loop.history] == [{"a", "b"}] * 3
    assert "a node calls itself 'c'; the clients are a, b" in caplog.text


def test_a_client_that_never_appears_is_named_in_every_round(tmp_path: Path) -> None:
    loop = _by_hand(tmp_path, strategy("fedavg"), strategy("fedavg"), nodes=2)
    assert [dict(record.failed) for record in loop.history] == [{"c": "no answer at the start"}] * 3
    with pytest.raises(FederationError, match="only 1 of 3 clients answered at the start, and 2 are needed"):
        _by_hand(tmp_path, strategy("fedavg"), strategy("fedavg"), nodes=1)


class Careless(FedAvg):
    """Client b returns an update that must not be used."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def local_update(self, r: ClientRound) -> LocalResult:
        """As FedAvg, then spoilt."""
        result = super().local_update(r)
        if r.client_id != "b":
            return result
        key = next(iter(result.shared))
        if self.fault == "leak":
            return LocalResult({**result.shared, "pixels": r.train.images}, result.private, result.num_examples)
        if self.fault == "empty":
            return LocalResult(result.shared, result.private, 0)
        spoilt = {
            "nan": result.shared[key] * float("nan"),
            "shape": torch.zeros(7),
            "integer": result.shared[key].long(),
        }[self.fault]
        return LocalResult({**result.shared, key: spoilt}, result.private, result.num_examples)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("leak", "FederationError (check_update)"),
        ("integer", "FederationError (check_update)"),
        ("empty", "claims 0 examples"),
        ("nan", "not finite"),
        ("shape", "another shape"),
    ],
)
def test_an_unusable_update_is_refused(fault: str, text: str) -> None:
    wire: list[bytes] = []
    result = quick(
        three_sites(),
        Careless(fault),
        rounds=1,
        tap=lambda m: wire.append(message_to_proto(m).SerializeToString()),
    )
    assert text in result.history[0].failed["b"]
    assert b"pixels" not in b"".join(wire), "a tensor left its client that is not shared"
    assert all(bool(torch.isfinite(value).all()) for value in result.shared.values())


def test_a_strategy_that_shares_integers_is_refused() -> None:
    class Whole(FedAvg):
        def initial_shared(self, make_model: object, seed: int) -> dict[str, torch.Tensor]:
            return dict(small_cnn().state_dict())

    with pytest.raises(FederationError, match=r"only floating tensors.*num_batches_tracked"):
        quick(three_sites(), Whole())
