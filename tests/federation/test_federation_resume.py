"""A run that was cut off goes on to the same result; and Flower's memory of a client may vanish."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict
from test_federation_data import quick, same, strategy, three_sites
from test_federation_failures import _by_hand
from test_federation_strategies import NAMES

from medfedpure.core.errors import FederationError
from medfedpure.federation import FederatedResult, InProcessGrid, RoundRecord
from medfedpure.federation.checkpoint import RunCheckpoint, SavedRun


class Interrupted(RuntimeError):
    """What ends a run in these tests."""


def _stop_after(round: int) -> object:
    def watch(history: tuple[RoundRecord, ...]) -> None:
        if len(history) == round:
            raise Interrupted

    return watch


def _equal(left: FederatedResult, right: FederatedResult) -> None:
    assert same(left.shared, right.shared)
    for client, model in left.models.items():
        assert same(dict(model.state_dict()), dict(right.models[client].state_dict()))
    assert [dict(r.clients) for r in left.history] == [dict(r.clients) for r in right.history]
    for one, other in zip(left.history, right.history, strict=True):
        assert one.client_bytes_up == other.client_bytes_up
        assert one.client_bytes_down == other.client_bytes_down


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_cut_off_goes_on_to_the_same_result(name: str, tmp_path: Path) -> None:
    sites, chosen = three_sites(validation=True), strategy(name)
    whole = quick(sites, chosen)
    places = {"checkpoint": tmp_path / "checkpoint", "state_dir": tmp_path / "state"}
    for round in (1, 2):
        with pytest.raises(Interrupted):
            quick(sites, chosen, watch=_stop_after(round), **places)
    assert [path.name for path in places["checkpoint"].iterdir()] == ["round-00002"]
    seen: list[int] = []
    resumed = quick(sites, chosen, watch=lambda history: seen.append(len(history)), **places)
    assert seen == [3, 3], "one more round and the evaluation of its outcome"
    _equal(whole, resumed)
    tapped: list[Message] = []
    _equal(whole, quick(sites, chosen, tap=tapped.append, **places))
    assert tapped == [], "a finished run asks nobody anything"


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    places = {"checkpoint": tmp_path / "checkpoint", "state_dir": tmp_path / "state"}
    quick(three_sites(), strategy("fedper"), rounds=1, **places)
    with pytest.raises(FederationError, match=r"another run \(differs in seed\): choose another folder"):
        quick(three_sites(), strategy("fedper"), rounds=1, seed=8, **places)
    (document,) = places["checkpoint"].glob("*/medfedpure.json")
    document.write_text(document.read_text()[:-9])
    with pytest.raises(FederationError, match="start anew"):
        quick(three_sites(), strategy("fedper"), rounds=1, **places)


def test_a_resumed_run_without_its_private_tensors_says_so(tmp_path: Path) -> None:
    sites, chosen = three_sites(), strategy("fedper")
    places = {"checkpoint": tmp_path / "checkpoint", "state_dir": tmp_path / "state"}
    with pytest.raises(Interrupted):
        quick(sites, chosen, watch=_stop_after(2), **places)
    for path in (tmp_path / "state").glob("*/*/a/*"):
        path.unlink()
    result = quick(sites, chosen, **places)
    assert result.history[2].failed == {"a": "StaleStateError (read_state)"}
    with pytest.raises(FederationError, match="checkpoint needs state_dir"):
        quick(sites, chosen, checkpoint=tmp_path)


def test_figures_that_are_not_numbers_survive_a_checkpoint(tmp_path: Path) -> None:
    place = RunCheckpoint(tmp_path / "c", {"seed": 1})
    figures = {"auroc": float("nan"), "loss": 0.1, "worst": float("inf")}
    round = {"round": 1, "seconds": 0.5, "clients": {"a": figures}, "failed": {}, "client_bytes_up": {"a": 2}}
    place.write(SavedRun(5, False, {}, {"a": 1}, [round]))
    read = place.read()
    assert read is not None
    assert (read.run_id, read.finished, read.replied) == (5, False, {"a": 1})
    assert repr(read.rounds) == repr([round])


class ForgetfulGrid(InProcessGrid):
    """Loses every client's Flower context after each message, as a killed SuperNode process does."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Forget, then work."""
        for context in self._contexts.values():
            context.state = RecordDict()
        return super().push_messages(messages)


def test_a_client_is_not_frozen_when_flower_loses_its_context(tmp_path: Path) -> None:
    """Flower sends a client's context after its reply and may lose it; weights kept there stay those of round 1."""
    chosen = strategy("fedrep")
    kept = _by_hand(tmp_path / "kept", chosen, chosen)
    lost = _by_hand(tmp_path / "lost", chosen, chosen, ForgetfulGrid)
    assert lost.replied == {"a": 3, "b": 3, "c": 3}
    assert same(kept.shared, lost.shared)
    heads = {
        (folder, path.parent.name): path.read_bytes()
        for folder in ("kept", "lost")
        for path in (tmp_path / folder).glob("run-*/*/round-00003.safetensors")
    }
    assert len(heads) == 6
    for client in "abc":
        assert heads["kept", client] == heads["lost", client]


class LateGrid(InProcessGrid):
    """The third node appears only after a while."""

    looks = 0

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, from the sixth look on."""
        type(self).looks += 1
        return list(super().get_node_ids())[: 3 if type(self).looks > 5 else 2]


def test_a_client_that_appears_late_takes_part_from_then_on(tmp_path: Path) -> None:
    LateGrid.looks = 0
    loop = _by_hand(tmp_path, strategy("fedper"), strategy("fedper"), LateGrid)
    assert loop.history[0].failed == {"c": "no answer at the start"}
    assert loop.history[-1].failed == {}
    assert loop.replied == {"a": 3, "b": 3, "c": 3}
