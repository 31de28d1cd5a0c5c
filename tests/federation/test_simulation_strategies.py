"""Every registered strategy in Flower's simulation engine: the same result as in-process, and nothing private sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_federation_data import quick, three_sites
from test_federation_strategies import NAMES, TRAINING
from wire import Wire, assert_no_scan, assert_nothing_private, assert_the_tap_sees, difference

import medfedpure

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_simulation_ends_as_in_process_and_sends_nothing_private(name: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    sites, strategy = three_sites(validation=True), medfedpure.create("personalization", name)
    here = quick(sites, strategy, training=TRAINING, rounds=2)
    wire = Wire()
    there = quick(
        sites, strategy, training=TRAINING, rounds=2, runtime="simulation", tap=wire, state_dir=tmp_path / "state"
    )
    assert all(not record.failed for record in there.history)
    assert difference(here.shared, there.shared) <= TOLERANCE
    for client, model in here.models.items():
        assert difference(model.state_dict(), there.models[client].state_dict()) <= TOLERANCE

    assert len(wire.messages) == 2 * 3 * 4, "3 clients: hello, 2 rounds, final evaluation, each asked and answered"
    assert_the_tap_sees(there.shared, wire.everything)
    states = list((tmp_path / "state").glob("model/run-*/*/*.safetensors"))
    assert {path.parent.name for path in states} == {"a", "b", "c"}
    assert_nothing_private(states, there.shared, wire.everything)
    for site in sites:
        assert_no_scan(site.train, wire.everything)
