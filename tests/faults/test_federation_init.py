"""What a user types for `federation init` goes into scripts, units and rules: it is checked, and quoted."""

from __future__ import annotations

import ipaddress
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.consortium.init import init_federation, split_address
from medfedpure.core.errors import ConfigError

BAD = [
    "$(cmd):443",
    "`cmd`:443",
    "host;cmd:443",
    "host\ncmd:443",
    "host cmd:443",
    "'host':443",
    "host{}:443",
    "-host:443",
    "host-:443",
    "a..b:443",
    "x" * 64 + ":443",
    "hôst:443",
    "host",
    ":443",
    "host:",
    "host:0",
    "host:-1",
    "host:65536",
    "host:99999",
    "host:" + "9" * 5000,
    "host:443x",
    "host:٤٤٣",
    "host: 443",
    "256.1.1.1:443",
    "1.2.3:443",
    "::1:443",
    "[::1:443",
    "[host]:443",
    "[1.2.3.4]:443",
    "[fe80::1%eth0]:443",
    "",
]


@pytest.mark.parametrize("address", BAD, ids=[repr(text)[:30] for text in BAD])
def test_b12_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    """B12: `$(cmd):443` was run by start.sh at every site."""
    with pytest.raises(ConfigError, match="an address is host:port"):
        init_federation(tmp_path / "f", 1, address=address)
    assert list(tmp_path.iterdir()) == []


def test_b12_the_command_refuses_it_too(tmp_path: Path) -> None:
    """B12: as it was found."""
    found = CliRunner().invoke(
        app, ["federation", "init", str(tmp_path / "f"), "--clients", "1", "--address", "$(cmd):443"]
    )
    assert found.exit_code != 0
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("localhost:18443", "localhost", 18443),
        ("h.example.org:1", "h.example.org", 1),
        ("10.0.0.7:65535", "10.0.0.7", 65535),
        ("[2001:db8::1]:443", "2001:db8::1", 443),
        ("3com.example:443", "3com.example", 443),
    ],
)
def test_b12_addresses_are_taken_apart(address: str, host: str, port: int) -> None:
    """B12: names, numbers and IPv6 in brackets stay welcome."""
    assert split_address(address) == (host, port)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"superlink_port": 0}, "from 1 to 65535"),
        ({"superlink_port": 99999}, "from 1 to 65535"),
        ({"superlink_port": -1}, "from 1 to 65535"),
        ({"clients": 50_000}, "has ports for"),
    ],
)
def test_b12_other_ports_are_checked_as_well(changes: dict[str, int], text: str, tmp_path: Path) -> None:
    """B12: the SuperLink's, and those of the sites' nodes."""
    with pytest.raises(ConfigError, match=text):
        init_federation(tmp_path / "f", **{"clients": 1, **changes})


@pytest.mark.parametrize("name", ['a"b', "a'b", "a$b", "a`b", "a\\b", "a%b", "a\nb", "a\x1bb"])
def test_b12_a_folder_that_no_file_can_quote_is_refused(name: str, tmp_path: Path) -> None:
    """B12: its path goes into the same files."""
    with pytest.raises(ConfigError, match="cannot be written into scripts"):
        init_federation(tmp_path / name, 1)


def test_b12_what_is_written_holds_the_address_and_a_folder_with_blanks(tmp_path: Path) -> None:
    """B12: quoted wherever it stands."""
    host = "h." * 100 + "example.org"
    folder = tmp_path / "my ; folder {x}"
    init_federation(folder, 1, address=f"{host}:443")
    site = folder / "sites" / "site-0"
    words = shlex.split((site / "start.sh").read_text(), comments=True)
    assert words[words.index("--superlink") + 1] == f"{host}:443"
    subprocess.run(["sh", "-n", site / "start.sh"], check=True)
    (unit,) = site.glob("*.service")
    start = next(line for line in unit.read_text().splitlines() if line.startswith("ExecStart="))
    assert shlex.split(start.partition("=")[2]) == ["/bin/sh", str(site / "start.sh")]
    rules = (folder / "server" / "path-filter.nginx.conf").read_text()
    assert rules.count(f'"{folder}/server/certificates/') == 4
    connection = tomllib.loads((folder / "server" / "flower" / "config.toml").read_text())
    assert connection["superlink"]["consortium"]["root-certificates"] == str(folder / "server/certificates/ca.crt")


def test_b12_an_ipv6_host_stands_in_certificate_and_rules(tmp_path: Path) -> None:
    """B12: in brackets for nginx and Flower, without them in the certificate."""
    init_federation(tmp_path / "f", 1, address="[2001:db8::1]:443")
    server = tmp_path / "f" / "server"
    assert "server_name [2001:db8::1];" in (server / "path-filter.nginx.conf").read_text()
    certificate = x509.load_pem_x509_certificate((server / "certificates" / "filter.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("2001:db8::1") in names.get_values_for_type(x509.IPAddress)
    start = (tmp_path / "f" / "sites" / "site-0" / "start.sh").read_text()
    assert "[2001:db8::1]:443" in shlex.split(start, comments=True)
