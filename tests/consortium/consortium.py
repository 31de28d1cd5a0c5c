"""A running federation on loopback: SuperLink, path filter and three SuperNodes, started by the guide's commands."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from deployment_setting import free_ports, kill_all, processes_of, tiny_federation, wait_until
from path_filter import PathFilter

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").is_file(), reason="finds its processes through /proc"),
]
SITES = ("site-0", "site-1", "site-2")
TOLERANCE = 1e-4


class Consortium:
    """The daemons of a federation folder, each kept alive as systemd would."""

    def __init__(self, folder: Path, superlink_port: int, public_port: int) -> None:
        self.folder, self.superlink_port = folder, superlink_port
        self.filter = PathFilter(public_port, superlink_port, folder / "server" / "certificates")
        self.ended = threading.Event()
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._supervisors: list[threading.Thread] = []

    def supervise(self, place: str) -> None:
        """Start a daemon, and start it again whenever it dies."""
        self._start(place)

        def watch() -> None:
            while not self.ended.wait(1.0):
                if self.daemons[place].poll() is not None:
                    self._start(place)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        self._supervisors.append(thread)

    def _start(self, place: str) -> None:
        with (self.folder / place / "log.txt").open("ab") as log:
            command = ["sh", str(self.folder / place / "start.sh")]
            self.daemons[place] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    def healthy(self, port: int) -> bool:
        """Whether the SuperLink answers at a port."""
        with suppress(OSError):
            return self.ask(port, "GET", "/health") == 200
        return False

    def ask(self, port: int, method: str, path: str) -> int:
        """The status of an answer."""
        trusted = ssl.create_default_context(cafile=str(self.folder / "server" / "certificates" / "ca.crt"))
        connection = http.client.HTTPSConnection("localhost", port, context=trusted, timeout=10)
        try:
            headers = {"Content-Type": "application/protobuf"} if method == "POST" else {}
            connection.request(method, path, body=b"" if method == "POST" else None, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def run(self) -> subprocess.Popen[str]:
        """`medfedpure federation run`."""
        command = [str(Path(sys.executable).with_name("medfedpure")), "federation", "run", str(self.folder)]
        return subprocess.Popen(
            [*command, "--timeout", "500"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def rounds(self) -> int:
        """How many rounds the server has finished, of all parts together."""
        with suppress(OSError, ValueError):
            results = self.results()
            return sum(len(phase["history"]) for phase in results.get("phases", [results]))
        return 0

    def results(self) -> dict:
        """The server's results.json."""
        return json.loads((self.folder / "server" / "out" / "results.json").read_text())

    def forget(self) -> None:
        """Remove what an earlier run left at the server."""
        shutil.rmtree(self.folder / "server" / "out", ignore_errors=True)

    def end(self) -> list[str]:
        """Ask all daemons to end; the commands of processes that stay nevertheless."""
        self.ended.set()
        for thread in self._supervisors:
            thread.join()
        for pid in processes_of(self.folder):  # daemons and workers, as systemd's KillMode=control-group does
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        for daemon in self.daemons.values():
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(30)
        with suppress(AssertionError):
            wait_until(lambda: not processes_of(self.folder), "the end of the workers", 30)
        left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in processes_of(self.folder)]
        kill_all(self.folder)
        self.filter.close()
        return left

    def logs(self) -> str:
        """The end of every log, for a failing test."""
        return "\n".join(f"== {p.parent.name}\n{p.read_text()[-3000:]}" for p in self.folder.rglob("log.txt"))


@contextmanager
def running_consortium(folder: Path) -> Iterator[Consortium]:
    """All daemons, until the block ends."""
    superlink_port, public_port, *node_ports = free_ports(5)
    folder = tiny_federation(folder / "f", address=f"localhost:{public_port}", superlink_port=superlink_port)
    for number, port in enumerate(node_ports):
        start = folder / "sites" / f"site-{number}" / "start.sh"
        start.write_text(start.read_text().replace(f"--port {19100 + number}", f"--port {port}"))
    made = Consortium(folder, superlink_port, public_port)
    try:
        made.supervise("server")
        wait_until(lambda: made.healthy(superlink_port), "the start of the SuperLink", 60)
        subprocess.run(["sh", folder / "server" / "register.sh"], check=True, capture_output=True)
        for site in SITES:
            made.supervise(f"sites/{site}")
        yield made
    finally:
        made.end()
