"""What the tests of a deployment share: a tiny federation, and the processes of a folder."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

from medfedpure.consortium.init import FEDERATION_FILE, init_federation
from medfedpure.job.federate_config import DeploymentConfig, SiteConfig


def tiny_federation(folder: Path, **init: object) -> Path:
    """Three sites with 60 phantoms of 16 pixels each, FedRep, two optimizer steps a round."""
    init_federation(folder, 3, **init)  # type: ignore[arg-type]
    change_federation(folder)
    for path in folder.glob("sites/*/site.toml"):
        content = SiteConfig.from_toml(path).model_dump()
        content["data"]["config"].update(images=60, image_size=16)
        content.update(calibration=0.2, check=0.2)
        path.write_text(SiteConfig.parse(content).to_toml())
    return folder


def change_federation(
    folder: Path, rounds: int = 3, strategy: str = "fedrep", *, defended: bool = False, **federation: float
) -> None:
    """Edit federation.toml, as a coordinator would: a classifier alone, or purifier and defence as well."""
    path = folder / FEDERATION_FILE
    content = DeploymentConfig.from_toml(path).model_dump()
    content["images"]["size"] = 16
    content["classifier"]["config"] = {"widths": [4, 4]}
    content["classifier"]["rounds"] = rounds
    content["classifier"]["strategy"] = {"plugin": strategy}
    content["classifier"]["training"].update(steps=2 * rounds, batch_size=4, learning_rate=0.02)
    if defended:
        model = {"widths": [8, 8], "unshuffle": 4}
        config = {"model": model, "training": {"steps": 4, "batch_size": 4}}
        content["purifier"] = {"plugin": "ddpm", "config": config, "rounds": 2}
        content["defence"] = {"target_fpr": 0.1}
    else:
        content.update(purifier=None, defence=None)
    content["federation"].update(federation)
    path.write_text(DeploymentConfig.parse(content).to_toml())


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def processes_of(folder: Path) -> list[int]:
    """All processes whose Flower folder is below this one, workers included."""
    wanted, found = f"FLWR_HOME={folder}{os.sep}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                settings = (entry / "environ").read_bytes().split(b"\0")
                if any(setting.startswith(wanted) for setting in settings):
                    found.append(int(entry.name))
    return found


def kill_all(folder: Path) -> None:
    """End the daemon of a folder and its workers at once, as a power cut does."""
    while found := processes_of(folder):
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)


def wait_until(done: Callable[[], bool], what: str, seconds: float = 240.0) -> None:
    """Wait for something; AssertionError when it does not come."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.3)
