"""What `federation init` writes: all that a consortium needs, private keys closed, and a federation that learns."""

from __future__ import annotations

import stat
import subprocess
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.consortium import files
from medfedpure.consortium.deployment import rehearse
from medfedpure.consortium.init import (
    FEDERATION_FILE,
    commented,
    example_federation,
    example_site,
    init_federation,
)
from medfedpure.consortium.run import run_federation
from medfedpure.core.errors import ConfigError
from medfedpure.job.federate_config import DeploymentConfig


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
    subprocess.run(["sh", "-n", folder / "server" / "filter.sh"], check=True)
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


def test_what_init_writes_learns(tmp_path: Path) -> None:
    """The classifier at one site of the template, well above guessing: two classes."""
    init_federation(tmp_path / "f", 1)
    file = tmp_path / "f" / FEDERATION_FILE
    content = DeploymentConfig.from_toml(file).model_dump()
    assert content["purifier"]["plugin"] == "ddpm"
    assert content["defence"]["recipe"] == "paper"
    file.write_text(DeploymentConfig.parse({**content, "purifier": None, "defence": None}).to_toml())
    result = rehearse(file, [*tmp_path.glob("f/sites/*/site.toml")], tmp_path / "out")["classifier"]
    assert result.history[-1].clients["site-0"]["balanced_accuracy"] > 0.8


def test_comments_leave_what_a_file_says() -> None:
    site, federation = example_site("site-0", 0), example_federation(("site-0",))
    for made, notes in ((site, files.SITE_NOTES), (federation, files.FEDERATION_NOTES)):
        text = commented(made.to_toml(), notes)
        assert tomllib.loads(text) == tomllib.loads(made.to_toml())
        assert text.count("# ") >= len(notes), "a note that stands nowhere"
