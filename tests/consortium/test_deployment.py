"""A real federation on loopback: SuperLink, path filter and three SuperNodes, by the commands of the guide."""

from __future__ import annotations

import json
import shutil
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from consortium import MARKS, SITES, TOLERANCE, Consortium, running_consortium
from deployment_setting import change_federation, free_ports, kill_all, wait_until
from safetensors.torch import load_file
from wire import assert_no_scan, assert_nothing_private, assert_the_tap_sees, difference

from medfedpure.consortium.deployment import read_site, rehearse
from medfedpure.consortium.init import FEDERATION_FILE
from medfedpure.consortium.tls import write_node_key
from medfedpure.core.personalization import ClientRound, LocalResult
from medfedpure.core.registry import registry
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.federation import federate
from medfedpure.job.federate_config import DeploymentConfig, SiteConfig
from medfedpure.job.federated_component import FederatedComponent

pytestmark = MARKS


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """A running federation; the tests below use it one after the other."""
    with running_consortium(tmp_path_factory.mktemp("deployment")) as made:
        yield made


def test_a_run_over_the_network_ends_as_in_process_though_the_server_was_killed(
    consortium: Consortium, tmp_path: Path
) -> None:
    folder = consortium.folder
    change_federation(folder, rounds=2, defended=True, start_timeout=150, round_timeout=150)
    first = consortium.run()
    wait_until(lambda: consortium.rounds() >= 3, "the first round of the purifier", 480)
    kill_all(folder / "server")
    said, _ = first.communicate(timeout=200)
    assert first.returncode != 0, "a run that the SuperLink lost must not count as a success"
    assert "resumes" in said, said
    assert 3 <= consortium.rounds() < 4

    wait_until(lambda: consortium.healthy(consortium.superlink_port), "the restart of the SuperLink", 60)
    second = consortium.run()
    said, _ = second.communicate(timeout=550)
    assert second.returncode == 0, said + consortium.logs()
    assert "purifier, round 2" in said
    assert "round 1:" not in said, "the finished rounds must not be repeated"
    assert "classifier, round" not in said, "nor those of the part that was through"
    for site in SITES:
        assert f"{site} has its defence" in said
    assert "fooled" not in said, "no site agreed to tell of its trial"

    files = [folder / "sites" / site / "site.toml" for site in SITES]
    rehearse(folder / FEDERATION_FILE, files, tmp_path / "rehearsal")
    expected = json.loads((tmp_path / "rehearsal" / "results.json").read_text())
    for phase, wanted in zip(consortium.results()["phases"], expected["phases"], strict=True):
        for there, here in zip(phase["history"], wanted["history"], strict=True):
            assert there["failed"] == {}
            for site in SITES:
                assert there["clients"][site] == pytest.approx(here["clients"][site], abs=TOLERANCE)
    for site in SITES:
        own, rehearsed = folder / "sites" / site / "out", tmp_path / "rehearsal"
        for part in ("classifier", "purifier"):
            there = load_file(own / part / "tensors.safetensors")
            here = load_file(rehearsed / "parts" / site / part / "tensors.safetensors")
            found = difference(there, here)
            assert found <= TOLERANCE, f"{part} of {site} differs from in-process by {found:g}"
        there, here = (DefendedClassifier.load(one) for one in (own / "defence", rehearsed / "defences" / site))
        assert torch.allclose(there.calibration.scores, here.calibration.scores, atol=1e-2), site


def test_nothing_private_passed_the_filter(consortium: Consortium) -> None:
    everything = b"".join(consortium.filter.passed)
    shared = {
        part: load_file(next(consortium.folder.glob(f"server/out/checkpoint/{part}/*/tensors.safetensors")))
        for part in ("classifier", "purifier")
    }
    for tensors in shared.values():
        assert_the_tap_sees(tensors, everything)
    config = DeploymentConfig.from_toml(consortium.folder / FEDERATION_FILE)
    for site in SITES:
        own = consortium.folder / "sites" / site
        states = list(own.glob("private/classifier/run-*/*/*.safetensors"))
        assert any("head" in key for path in states for key in load_file(path)), f"{site} keeps no head of its own"
        assert_nothing_private(states, shared["classifier"], everything)
        assert_nothing_private(own.glob("private/purifier/run-*/*/*.safetensors"), shared["purifier"], everything)
        images = read_site(config, SiteConfig.from_toml(own / "site.toml"), own / "site.toml")
        for part in (images.train, images.calibrate, images.check):
            assert_no_scan(part, everything)
        for score in DefendedClassifier.load(own / "out" / "defence").calibration.scores.tolist():
            assert struct.pack("<d", score) not in everything, f"a calibration score of {site} passed the filter"
            assert struct.pack("<f", score) not in everything, f"a calibration score of {site} passed the filter"


def test_only_the_fleet_passes_the_filter(consortium: Consortium) -> None:
    public = consortium.filter._server.server_address[1]
    for path in ("/v1/control/list-runs", "/v1/runtime/get-nodes", "/docs", "/v1/fleet/../control/list-runs"):
        assert consortium.ask(public, "POST", path) == 404, path
    assert consortium.healthy(public)
    assert consortium.ask(consortium.superlink_port, "POST", "/v1/control/list-runs") == 200, (
        "without the filter, Control answers whoever reaches the port: that is why there is one"
    )


def test_a_node_without_a_registered_key_is_refused(consortium: Consortium, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    shutil.copytree(consortium.folder / "sites" / "site-0", stranger)
    shutil.rmtree(stranger / "flower", ignore_errors=True)
    write_node_key(stranger / "node_key")
    (port,) = free_ports(1)
    start = stranger / "start.sh"
    words = start.read_text().split("--port ")
    start.write_text(f"{words[0]}--port {port} {words[1].split(' ', 1)[1]}")

    def activations() -> list[int]:
        return [status for path, status in consortium.filter.paths if path.endswith("/activate-node")]

    wait_until(lambda: activations().count(200) >= len(SITES), "the start of the sites", 60)

    with (stranger / "log.txt").open("wb") as log:
        node = subprocess.Popen(["sh", start], stdout=log, stderr=log)
        try:
            # Flower answers 412 to a key that nobody registered.
            wait_until(lambda: 412 in activations(), "the stranger's refusal", 60)
        finally:
            kill_all(stranger)
            node.wait()


class Absent:
    """FedRep in which one site fails in some rounds, to repeat what happened over the network."""

    def __new__(cls, site: str, rounds: set[int]) -> object:
        """A strategy; its class is not known before the registry is asked."""
        base = registry().load("personalization", "fedrep")

        class FailingFedRep(base):  # type: ignore[misc, valid-type]
            def local_update(self, r: ClientRound) -> LocalResult:
                if r.client_id == site and r.round in rounds:
                    raise ConnectionError
                return super().local_update(r)

        return FailingFedRep()


def test_a_site_that_was_killed_and_started_again_keeps_its_head(consortium: Consortium, tmp_path: Path) -> None:
    folder = consortium.folder
    change_federation(folder, rounds=5, start_timeout=150, round_timeout=120)
    consortium.forget()
    run = consortium.run()
    wait_until(lambda: consortium.rounds() >= 1, "the first round")
    kill_all(folder / "sites" / "site-1")
    said, _ = run.communicate(timeout=550)
    assert run.returncode == 0, said + consortium.logs()
    history = consortium.results()["history"]
    away = {record["round"] for record in history if "site-1" in record["failed"]}
    assert away, "the kill came too late to matter: " + said
    assert 5 not in away, "the site did not come back: " + said
    assert {client for record in history for client in record["failed"]} == {"site-1"}
    reasons = {record["failed"]["site-1"] for record in history if record["failed"]}
    assert reasons <= {"no reply within 120 s", "its node is away (Flower's error 5)"}, reasons

    config = DeploymentConfig.from_toml(folder / FEDERATION_FILE)
    files = [folder / "sites" / site / "site.toml" for site in SITES]
    sites = [read_site(config, SiteConfig.from_toml(file), file) for file in files]
    images = {site.client_id: site.train for site in sites}
    part = FederatedComponent(config, config.images)
    repeated = federate(
        sites,
        make_model=part.make_model,
        task=part.task(),
        strategy=Absent("site-1", away),  # type: ignore[arg-type]
        training=part.training,
        rounds=5,
        seed=part.seed,
    )
    for site in SITES:
        part.export(repeated.models[site], images[site], tmp_path / site)
        there = load_file(folder / "sites" / site / "out" / "classifier" / "tensors.safetensors")
        here = load_file(tmp_path / site / "tensors.safetensors")
        assert any("head" in key for key in here), "the comparison must include the head"
        assert difference(there, here) <= TOLERANCE, f"{site} differs by {difference(there, here):g}: is its head lost?"


def test_a_run_that_fails_ends_with_an_error(consortium: Consortium) -> None:
    change_federation(consortium.folder, rounds=2, start_timeout=40, quorum=1.0)
    consortium.forget()
    site = consortium.folder / "sites" / "site-2" / "site.toml"
    text = site.read_text()
    site.write_text(text.replace('client = "site-2"', 'client = "nobody"'))
    try:
        run = consortium.run()
        said, _ = run.communicate(timeout=200)
    finally:
        site.write_text(text)
    assert run.returncode == 1, said
    assert "finished:failed" in said
    assert "only 2 of 3 clients answered" in " ".join(said.split())
    assert "FederationError (find_site)" in " ".join(said.split())


def test_the_daemons_end_cleanly(consortium: Consortium) -> None:
    left = consortium.end()
    # Flower leaves the worker of a message behind whose run was lost with its SuperLink; systemd kills it in the end.
    assert [command for command in left if "flwr-clientapp" not in command] == [], "processes stayed after SIGTERM"
    for place, daemon in consortium.daemons.items():
        # uvicorn shuts down in order and then ends by the signal it got.
        assert daemon.returncode in (0, -signal.SIGTERM), f"{place} ended with {daemon.returncode}"
    assert "Application shutdown complete" in (consortium.folder / "server" / "log.txt").read_text()[-2000:]
