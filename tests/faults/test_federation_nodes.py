"""A client is its name; the number of its node may change while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from test_federation_data import TRAINING, same, small_cnn, strategy, three_sites

from medfedpure.core.errors import FederationError
from medfedpure.federation import ClientSide, FederationConfig, InProcessGrid, RoundLoop, ServerSide, make_client_app
from medfedpure.federation.client import working
from medfedpure.federation.grid import acting_as_server
from medfedpure.federation.run import MemorySites
from medfedpure.training.classification import ClassificationTask


class MovingGrid(InProcessGrid):
    """Before the training of some rounds, nodes get other numbers, go away or come back.

    `moves[round]` maps the number of a node to the next one, or to None where it goes away.
    """

    moves: dict[int, dict[int, int | None]] = {}
    ghosts: set[int] = set()
    """Numbers that stay listed after their nodes have gone; they never answer."""
    round = 1

    def get_node_ids(self) -> Iterable[int]:
        """Those that are there, and ghosts."""
        self._move(self.round)
        return [*super().get_node_ids(), *(self.ghosts - set(self._contexts))]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """What is sent to a ghost gets a name, and is never answered."""
        asked = list(messages)
        for message in asked:
            if message.metadata.message_type == "train":
                self._move(int(message.metadata.group_id))
                self.round = int(message.metadata.group_id) + 1
        return [
            name
            for message in asked
            for name in (
                super(MovingGrid, self).push_messages([message])
                if message.metadata.dst_node_id in self._contexts
                else ["never"]
            )
        ]

    def _move(self, round: int) -> None:
        for old, new in self.moves.pop(round, {}).items():
            context = self._contexts.pop(old)
            if new is not None:
                self._contexts[new] = Context(
                    run_id=context.run_id,
                    node_id=new,
                    node_config=context.node_config,
                    state=RecordDict(),
                    run_config={},
                )


def run(
    folder: Path, moves: dict[int, dict[int, int | None]], ghosts: tuple[int, ...] = (), copies: tuple[int, ...] = ()
) -> RoundLoop:
    """Three rounds of FedPer; nodes 1000, 1001, 1002 are a, b, c."""
    made = strategy("fedper")
    clients = ClientSide(made, ClassificationTask(), small_cnn, MemorySites(tuple(three_sites())), folder)
    config = FederationConfig(round_timeout=0.3, start_timeout=0.3, quorum=0.3)
    loop = RoundLoop(ServerSide(tuple("abc"), made, small_cnn, TRAINING, 3, 7, config))
    grid = MovingGrid(make_client_app(clients), 3)
    for number in copies:
        context = grid._contexts[1000]
        grid._contexts[number] = Context(
            run_id=context.run_id, node_id=number, node_config=context.node_config, state=RecordDict(), run_config={}
        )
    grid.moves, grid.ghosts = moves, set(ghosts)
    with working(1, 7), acting_as_server(grid.run.run_id):
        loop.run(grid, grid.server_context())
    return loop


@pytest.mark.parametrize("ghosts", [(), (1000,)], ids=["the old node is gone", "the old node is still listed"])
@pytest.mark.parametrize("absent", [False, True], ids=["all others there", "another one absent"])
@pytest.mark.parametrize("new", [7, 2000])
def test_b04_a_client_that_comes_back_as_another_node_goes_on(
    new: int, absent: bool, ghosts: tuple[int, ...], tmp_path: Path
) -> None:
    """B4: a site that restarts in mid-run, while another is absent or not, keeps its place and its private head."""
    loop = run(tmp_path, {2: {1000: new, **({1002: None} if absent else {})}}, ghosts)
    assert loop.history[0].failed == {}
    for record in loop.history[1:]:
        assert "a" in record.clients
        assert set(record.failed) == ({"c"} if absent else set())
    assert loop.replied == {"a": 3, "b": 3, "c": 1 if absent else 3}


def test_b04_a_restart_changes_nothing_in_the_result(tmp_path: Path) -> None:
    """B4: the new node is the same client: same seeds, same private tensors."""
    still = run(tmp_path / "still", {})
    moved = run(tmp_path / "moved", {2: {1000: 2000}, 3: {2000: 1000, 1001: 7}})
    assert same(still.shared, moved.shared)
    assert [set(record.clients) for record in moved.history] == [{"a", "b", "c"}] * 3


def test_b04_a_client_that_goes_away_and_returns_is_left_out_in_between(tmp_path: Path) -> None:
    """B4: nobody else is held up."""
    loop = run(tmp_path, {2: {1000: None}})
    assert [set(record.failed) for record in loop.history] == [set(), {"a"}, {"a"}]


@pytest.mark.parametrize("copy", [1, 5000])
def test_b04_a_second_node_of_one_name_does_not_end_the_run(copy: int, tmp_path: Path) -> None:
    """B4: while the first still answers, the second is refused; which of two is the hospital, nobody can tell."""
    loop = run(tmp_path / "copied", {}, copies=(copy,))
    assert [dict(record.failed) for record in loop.history] == [{}] * 3
    assert same(loop.shared, run(tmp_path / "alone", {}).shared)


def test_b04_two_sites_of_one_name_are_named_where_a_client_is_missing(tmp_path: Path) -> None:
    """B4: two hospitals that were given one name: the client that is missed says why."""
    loop = run(tmp_path, {1: {1001: None}}, copies=(5000,))
    assert "a second node calls itself 'a': give each site its own name" in loop.history[0].failed["b"]


def test_b04_too_few_clients_still_end_the_run(tmp_path: Path) -> None:
    """B4: a quorum is a quorum."""
    with pytest.raises(FederationError, match="round 2: 0 of 3 clients"):
        run(tmp_path, {2: {1000: None, 1001: None, 1002: None}})
