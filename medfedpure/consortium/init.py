"""`medfedpure federation init`: everything a consortium needs, in one folder."""

from __future__ import annotations

import ipaddress
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from medfedpure.consortium import files as files
from medfedpure.consortium.tls import write_certificates, write_node_key
from medfedpure.core.errors import ConfigError
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.storage import write_bytes
from medfedpure.federation import FederationConfig
from medfedpure.job.config import ClassifierChoice, FederatedChoice, PluginChoice
from medfedpure.job.federate_config import DeploymentConfig, FederatedDefence, ImagesChoice, SiteConfig

FEDERATION_FILE = Path("app", "federation_app", "federation.toml")
_FIRST_NODE_PORT = 19100
_PORTS = range(1, 65536)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", re.ASCII)
_UNQUOTABLE = set("\"'\\$%`")


def init_federation(
    folder: Path, clients: int, *, address: str = "localhost:18443", superlink_port: int = 18000
) -> None:
    """Write app, server and sites of a test federation, which runs as it is on phantoms.

    Args:
        folder: must not exist yet, or be empty; its path goes into scripts and units.
        clients: how many sites; each has a port of its own, from 19100 on.
        address: host and port at which sites reach the path filter; an IPv6 host in brackets.
        superlink_port: of the SuperLink, on loopback.

    Raises:
        ConfigError: a folder that is in use or has a path that cannot be quoted everywhere, too few or too many
            clients, or what is no address or port.
    """
    host, public_port = split_address(address)
    if superlink_port not in _PORTS:
        raise ConfigError(f"a port is a number from 1 to {_PORTS[-1]}; got {superlink_port} for the SuperLink")
    most = len(_PORTS) - _FIRST_NODE_PORT + 1
    if not 1 <= clients <= most:
        raise ConfigError(f"a federation needs at least 1 client, and has ports for {most}; got {clients}")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is in use: choose a new folder, so that no key is overwritten")
    folder = folder.resolve()
    if not str(folder).isprintable() or _UNQUOTABLE & set(str(folder)):
        raise ConfigError(
            f"{str(folder)!r} cannot be written into scripts, units and nginx's rules: choose a folder whose whole "
            "path has no quotes, no backslash and none of $ % `"
        )
    names = tuple(f"site-{number}" for number in range(clients))
    _write_app(folder / "app", names)
    _write_server(folder / "server", names, host, int(public_port), superlink_port)
    for number, name in enumerate(names):
        _write_site(folder, name, number, address)
    starts = ", ".join(f"`sh sites/{name}/start.sh`" for name in names)
    _write(folder / "README.md", files.README.format(count=clients, address=address, starts=starts))


def split_address(address: str) -> tuple[str, int]:
    """Host and port of an address; an IPv6 host comes and stays without its brackets.

    Raises:
        ConfigError: anything but a host's name or number, a colon and a port from 1 to 65535.
    """
    host, _, port = address.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (_is_ip(bare, 6 if bare != host else 4) or (bare == host and _is_host(host))):
        raise ConfigError(f"an address is host:port, such as hospital.example.org:443; got {address!r}")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) in _PORTS):
        raise ConfigError(f"an address is host:port with a port from 1 to {_PORTS[-1]}; got {address!r}")
    return bare, int(port)


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version and "%" not in text
    except ValueError:
        return False


def _is_host(text: str) -> bool:
    """Whether a text is a name by RFC 1123; one that ends in a number would be an address."""
    labels = text.split(".")
    return len(text) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdecimal()


def example_federation(clients: tuple[str, ...]) -> DeploymentConfig:
    """A small classifier by FedRep and a small diffusion model by FedAvg on phantoms, and a defence of the two."""
    return DeploymentConfig(
        clients=clients,
        images=ImagesChoice(size=32, class_names=("healthy", "lesion")),
        classifier=ClassifierChoice(
            plugin="small_cnn",
            strategy=PluginChoice(plugin="fedrep"),
            rounds=3,
            training=TrainingConfig(steps=150, batch_size=16, learning_rate=5e-3),
        ),
        purifier=FederatedChoice(
            plugin="ddpm",
            config={
                "model": {"widths": [8, 16]},
                "training": {"steps": 300, "batch_size": 8, "learning_rate": 3e-3, "ema": 0.99},
            },
            rounds=3,
        ),
        defence=FederatedDefence(),
        federation=FederationConfig(start_timeout=300, round_timeout=900),
    )


def example_site(name: str, number: int) -> SiteConfig:
    """Phantoms of a scanner of the site's own; with the usual contrast three rounds would learn next to nothing."""
    phantoms = {"images": 200, "image_size": 32, "scanners": 1, "lesion_contrast": 2.0, "seed": number}
    return SiteConfig(
        client=name,
        data=PluginChoice(plugin="phantom", config=phantoms),
        validation=0.2,
        calibration=0.2,
        check=0.15,
        state_dir=Path("private"),
        out=Path("out"),
    )


def commented(toml: str, notes: Mapping[str, str]) -> str:
    """A TOML file with a comment above each section, or at the end of each line, that a note begins with."""
    lines = []
    for line in toml.splitlines():
        key = line.split(" =")[0]
        note = notes.get(key)
        if note is not None and line.startswith("["):
            lines += [f"# {text}" for text in note.splitlines()]
        lines.append(line if note is None or line.startswith("[") else f"{line}  # {note}")
    return "\n".join(lines) + "\n"


def _write_app(folder: Path, names: tuple[str, ...]) -> None:
    package = folder / "federation_app"
    _write(folder / "pyproject.toml", files.APP_PROJECT)
    _write(package / "__init__.py", '"""The Flower app of this federation."""\n')
    for side in ("server", "client"):
        _write(package / f"{side}_app.py", files.ENTRY_POINT.format(side=side))
    _write(package / FEDERATION_FILE.name, commented(example_federation(names).to_toml(), files.FEDERATION_NOTES))


def _write_server(folder: Path, names: tuple[str, ...], host: str, public_port: int, port: int) -> None:
    write_certificates(folder / "certificates", {"server": ("localhost", "127.0.0.1"), "filter": (host,)})
    _write(folder / "environment", _environment() + files.SERVER_ENVIRONMENT)
    _write(folder / "start.sh", files.SERVER_START.format(port=port))
    _write(folder / "filter.sh", files.FILTER_START)
    _write(folder / "filter.nginx.conf", files.FILTER_SETTINGS)
    lines = "\n".join(
        f"flwr supernode register ../sites/{name}/node_key.pub {files.CONNECTION} --name {name}" for name in names
    )
    _write(folder / "register.sh", files.REGISTER.format(lines=lines))
    certificate = folder / "certificates" / "ca.crt"
    connection = files.FLOWER_CONNECTION.format(name=files.CONNECTION, port=port, certificate=certificate)
    _write(folder / "flower" / "config.toml", connection)
    unit = files.UNIT.format(description="SuperLink of a medfedpure federation", folder=folder)
    _write(folder / "medfedpure-server.service", unit)
    rules = files.PATH_FILTER.format(
        public_port=public_port, host=f"[{host}]" if ":" in host else host, folder=folder, port=port
    )
    _write(folder / "path-filter.nginx.conf", rules)


def _write_site(folder: Path, name: str, number: int, address: str) -> None:
    own = folder / "sites" / name
    own.mkdir(parents=True, mode=0o700)
    write_node_key(own / "node_key")
    write_bytes(own / "ca.crt", (folder / "server" / "certificates" / "ca.crt").read_bytes())
    _write(own / "site.toml", commented(example_site(name, number).to_toml(), files.SITE_NOTES))
    _write(own / "environment", _environment())
    _write(
        own / "start.sh",
        files.SITE_START.format(client=name, address=shlex.quote(address), port=_FIRST_NODE_PORT + number),
    )
    unit = files.UNIT.format(description=f"SuperNode of {name} in a medfedpure federation", folder=own)
    _write(own / "medfedpure-site.service", unit)


def _environment() -> str:
    return files.ENVIRONMENT.format(bin=re.sub(r'(["$`\\])', r"\\\1", str(Path(sys.executable).parent)))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode())
