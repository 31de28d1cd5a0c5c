"""Every registered strategy over the network: the same result as in-process, and nothing private sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from consortium import MARKS, SITES, TOLERANCE, Consortium, running_consortium
from deployment_setting import change_federation
from safetensors.torch import load_file
from test_federation_strategies import NAMES
from torch import Tensor
from wire import assert_no_scan, assert_nothing_private, assert_the_tap_sees, difference

from medfedpure.consortium.deployment import read_site, rehearse
from medfedpure.consortium.init import FEDERATION_FILE
from medfedpure.job.federate_config import DeploymentConfig, SiteConfig

pytestmark = MARKS


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A running federation; one run after the other."""
    with running_consortium(tmp_path_factory.mktemp("deployment")) as made:
        yield made


def shared_tensors(out: Path) -> dict[str, Tensor]:
    """What a finished run's checkpoint holds; nothing where the strategy shares nothing."""
    (newest,) = out.glob("checkpoint/round-*")
    path = newest / "tensors.safetensors"
    return load_file(path) if path.is_file() else {}


@pytest.mark.parametrize("name", NAMES)
def test_a_deployment_ends_as_in_process_and_sends_nothing_private(
    consortium: Consortium, name: str, tmp_path: Path
) -> None:
    folder = consortium.folder
    change_federation(folder, rounds=2, strategy=name, start_timeout=150, round_timeout=150)
    consortium.forget()
    consortium.filter.passed.clear()
    before = set(folder.glob("sites/*/private/classifier/run-*"))
    run = consortium.run()
    said, _ = run.communicate(timeout=550)
    assert run.returncode == 0, said + consortium.logs()
    assert all(not record["failed"] for record in consortium.results()["history"]), said

    files = [folder / "sites" / site / "site.toml" for site in SITES]
    rehearse(folder / FEDERATION_FILE, files, tmp_path)
    shared = shared_tensors(folder / "server" / "out")
    assert difference(shared, shared_tensors(tmp_path)) <= TOLERANCE
    for site in SITES:
        there = load_file(folder / "sites" / site / "out" / "classifier" / "tensors.safetensors")
        here = load_file(tmp_path / "parts" / site / "tensors.safetensors")
        assert difference(there, here) <= TOLERANCE, f"{site} differs from in-process by {difference(there, here):g}"

    everything = b"".join(consortium.filter.passed)
    assert_the_tap_sees(shared, everything)
    runs = set(folder.glob("sites/*/private/classifier/run-*")) - before
    states = [path for own in runs for path in own.glob("*/*.safetensors")]
    assert {path.parent.name for path in states} == set(SITES)
    assert_nothing_private(states, shared, everything)
    config = DeploymentConfig.from_toml(folder / FEDERATION_FILE)
    for file in files:
        assert_no_scan(read_site(config, SiteConfig.from_toml(file), file).train, everything)
