"""What `federation init` writes, and the deployed apps without a network."""

from __future__ import annotations

import json
import stat
import subprocess
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from deployment_setting import change_federation, tiny_federation
from flwr.app import Message
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.consortium.deployment import client_app, rehearse, server_app
from medfedpure.consortium.init import FEDERATION_FILE, init_federation
from medfedpure.consortium.run import run_federation
from medfedpure.core.errors import ConfigError, DataError, FederationError
from medfedpure.federation import InProcessGrid
from medfedpure.federation.client import working
from medfedpure.federation.grid import acting_as_server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny federation."""
    return tiny_federation(tmp_path / "f")


def test_init_writes_everything_a_consortium_needs(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    done = CliRunner().invoke(app, ["federation", "init", str(folder), "--clients", "2", "--address", "h.example:443"])
    assert done.exit_code == 0, done.output
    project = tomllib.loads((folder / "app" / "pyproject.toml").read_text())
    components = project["tool"]["flwr"]["app"]["components"]
    assert components == {
        "serverapp": "federation_app.server_app:app",
        "clientapp": "federation_app.client_app:app",
    }
    for place in ("server", "sites/site-0", "sites/site-1"):
        environment = (folder / place / "environment").read_text()
        for switch in (
            "FLWR_TELEMETRY_ENABLED=0",
            "FLWR_DISABLE_UPDATE_CHECK=1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
            "RAY_USAGE_STATS_ENABLED=0",
        ):
            assert switch in environment, f"{place}/environment lacks {switch}"
        (unit,) = (folder / place).glob("*.service")
        assert "Restart=always" in unit.read_text()
        subprocess.run(["sh", "-n", folder / place / "start.sh"], check=True)
    for key in (*folder.glob("server/certificates/*.key"), *folder.glob("sites/*/node_key")):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, f"{key} is open to others"
    assert not list(folder.glob("sites/*/*.key")), "a site must not hold the key of the CA"
    start = (folder / "server" / "start.sh").read_text()
    assert "--host 127.0.0.1" in start, "Control must stay on loopback"
    assert "--enable-supernode-auth" in start
    rules = (folder / "server" / "path-filter.nginx.conf").read_text()
    assert [line.split("location ")[1] for line in rules.splitlines() if "location " in line] == [
        "/v1/fleet/ {",
        "= /health {",
        "/ {",
    ]
    assert "--superlink h.example:443" in (folder / "sites" / "site-1" / "start.sh").read_text()
    ports = {line for path in folder.glob("sites/*/start.sh") for line in path.read_text().split("--port ")[1:]}
    assert len(ports) == 2, "two SuperNodes on one machine need two ports"


def test_init_overwrites_nothing_and_says_what_it_wants(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="host:port"):
        init_federation(tmp_path / "a", 2, address="localhost")
    with pytest.raises(ConfigError, match="at least 1 client"):
        init_federation(tmp_path / "a", 0)
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ConfigError, match="is in use"):
        init_federation(tmp_path, 2)
    with pytest.raises(ConfigError, match="federation init"):
        run_federation(tmp_path, say=print)


class SitesGrid(InProcessGrid):
    """Nodes that know where their site.toml is, and a new process, so to say, for every message."""

    sites: tuple[Path, ...] = ()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Configure the nodes, then work."""
        for context, site in zip(self._contexts.values(), self.sites, strict=False):
            context.node_config = {"site": str(site)}
        return super().push_messages(messages)


def _run(folder: Path) -> SitesGrid:
    SitesGrid.sites = tuple(sorted(folder.glob("sites/*/site.toml")))
    grid = SitesGrid(client_app(folder / FEDERATION_FILE), 3)
    with working(1, 0), acting_as_server(grid.run.run_id):
        server_app(folder / FEDERATION_FILE)(grid, grid.server_context())
    return grid


def test_deployed_apps_leave_at_each_site_the_model_of_the_rehearsal(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(folder / "server" / "out"))
    _run(folder)
    done = CliRunner().invoke(app, ["federation", "rehearse", str(folder), "--out", str(tmp_path / "rehearsal")])
    assert done.exit_code == 0, done.output
    for site in ("site-0", "site-1", "site-2"):
        deployed = folder / "sites" / site / "out" / "classifier" / "tensors.safetensors"
        rehearsed = tmp_path / "rehearsal" / "parts" / site / "tensors.safetensors"
        assert deployed.read_bytes() == rehearsed.read_bytes()
        assert len(list((folder / "sites" / site / "private").glob("classifier/run-*/*/*.json"))) == 2
    assert not list((folder / "server").rglob("*head*"))


def test_the_server_says_where_it_needs_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDFEDPURE_SERVER_OUT", raising=False)
    with pytest.raises(ConfigError, match="set MEDFEDPURE_SERVER_OUT"):
        _run(folder)


def test_a_site_that_cannot_be_set_up_is_left_out_and_tells_the_server_no_more_than_the_type(
    folder: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_federation(folder, start_timeout=1.0)
    secret = "ward-7-archive"
    site = folder / "sites" / "site-1" / "site.toml"
    site.write_text(site.read_text().replace('plugin = "phantom"', f'plugin = "{secret}"'))
    (folder / "sites" / "site-2" / "site.toml").unlink()
    SitesGrid.sites = tuple(folder / "sites" / name / "site.toml" for name in ("site-0", "site-1", "site-2"))
    grid = SitesGrid(client_app(folder / FEDERATION_FILE), 3)
    monkeypatch.setenv("MEDFEDPURE_SERVER_OUT", str(tmp_path / "out"))
    app = server_app(folder / FEDERATION_FILE)
    with acting_as_server(grid.run.run_id), pytest.raises(FederationError) as caught:
        app(grid, grid.server_context())
    reason = json.loads((tmp_path / "out" / "failure.json").read_text())
    assert reason == {"error": "FederationError", "text": str(caught.value)}
    assert "only 1 of 3 clients answered" in str(caught.value)
    assert "UnknownPluginError" in str(caught.value)
    assert "ConfigError (set_up)" in str(caught.value)
    assert secret not in str(caught.value)
    assert secret in caplog.text, "the site's own log must say what happened"


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('client = "site-1"', 'client = "other"', "calls this site 'other'; the federation knows site-0"),
        ("image_size = 16", "image_size = 24", r"change \[data\] in"),
    ],
)
def test_a_site_that_does_not_fit_the_federation_is_told_what_to_change(
    folder: Path, tmp_path: Path, old: str, new: str, text: str
) -> None:
    site = folder / "sites" / "site-1" / "site.toml"
    site.write_text(site.read_text().replace(old, new))
    with pytest.raises((FederationError, DataError), match=text):
        rehearse(folder / FEDERATION_FILE, [site], tmp_path / "out")


def test_what_init_writes_learns(tmp_path: Path) -> None:
    """One site of the template, well above guessing: two classes."""
    init_federation(tmp_path / "f", 1)
    result = rehearse(tmp_path / "f" / FEDERATION_FILE, [*tmp_path.glob("f/sites/*/site.toml")], tmp_path / "out")
    assert result.history[-1].clients["site-0"]["balanced_accuracy"] > 0.8
