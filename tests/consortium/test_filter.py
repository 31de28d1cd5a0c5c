"""What `federation init` writes for the coordinator's nginx and for a site's daemon, run for real."""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from deployment_setting import free_ports, wait_until

from medfedpure.consortium.init import init_federation
from medfedpure.consortium.tls import write_certificates

PLACES = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


class _Said(BaseHTTPRequestHandler):
    """Answers every request with 1 MiB."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert body == b"x" * 2**20
        self.send_response(200)
        self.send_header("Content-Length", str(2**20))
        self.end_headers()
        self.wfile.write(b"y" * 2**20)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A federation's folder, its public port, and in place of the SuperLink a server behind its own certificate."""
    public, port = free_ports(2)
    folder = tmp_path / "a consortium"
    init_federation(folder, 1, address=f"localhost:{public}", superlink_port=port)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificates = folder / "server" / "certificates"
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", port), _Said)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield folder, public
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def ask(port: int, path: str, trusted: Path) -> tuple[int, int]:
    """Status and length of the answer to a large request."""
    context = ssl.create_default_context(cafile=str(trusted))
    connection = http.client.HTTPSConnection("localhost", port, context=context, timeout=20)
    try:
        connection.request("POST", path, body=b"x" * 2**20)
        answer = connection.getresponse()
        return answer.status, len(answer.read())
    finally:
        connection.close()


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.skipif(shutil.which("nginx", path=PLACES) is None, reason="nginx is not installed")
def test_filter_sh_lets_the_fleet_alone_through_by_a_certificate_of_its_own(superlink: tuple[Path, int]) -> None:
    folder, public = superlink
    own = folder / "server" / "certificates"
    # as a consortium does: its own authority signs what sites meet, and nothing else
    write_certificates(folder / "other", {"filter": ("localhost",)})
    for name in ("filter.pem", "filter.key"):
        shutil.copy(folder / "other" / name, own / name)
    running = subprocess.Popen(["sh", folder / "server" / "filter.sh"], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: listens(public), "the start of nginx", 20)
        trusted = folder / "other" / "ca.crt"
        assert ask(public, "/v1/fleet/pull-messages", trusted) == (200, 2**20)
        for path in ("/v1/control/list-runs", "/v1/runtime/get-nodes", "/v1/fleet/../control/list-runs"):
            assert ask(public, path, trusted)[0] == 404, path
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(public, "/health", own / "ca.crt")
    finally:
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=20)
    assert running.returncode == 0
    assert b"[error]" not in said, said
    assert b"[crit]" not in said, said


def test_what_sites_meet_and_what_the_superlink_shows_are_two_certificates(tmp_path: Path) -> None:
    init_federation(tmp_path / "f", 1, address="federation.example.org:443")
    folder = tmp_path / "f" / "server" / "certificates"
    names = {}
    for server in ("filter", "server"):
        made = x509.load_pem_x509_certificate((folder / f"{server}.pem").read_bytes())
        found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names[server] = found.get_values_for_type(x509.DNSName)
    assert names == {"filter": ["federation.example.org"], "server": ["localhost"]}


STUB = """#!/bin/sh
# stands for flower-supernode: refused at first, as after a kill
echo "$@" >> {calls}
test $(wc -l < {calls}) -gt 1 || exit 1
trap 'echo ended >> {calls}; exit 0' TERM
while true; do sleep 0.1; done
"""


def test_a_site_starts_its_node_again_when_it_was_refused_and_ends_it_when_asked(tmp_path: Path) -> None:
    init_federation(tmp_path / "f", 1)
    site, programs, calls = tmp_path / "f" / "sites" / "site-0", tmp_path / "bin", tmp_path / "calls"
    programs.mkdir()
    calls.touch()
    for name, text in (("flower-supernode", STUB.format(calls=calls)), ("sleep", "#!/bin/sh\nexec /bin/sleep 0.1\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = (site / "environment").read_text().splitlines()
    (site / "environment").write_text(
        "\n".join(f'PATH="{programs}:$PATH"' if line.startswith("PATH=") else line for line in environment) + "\n"
    )
    running = subprocess.Popen(["sh", site / "start.sh"], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(calls.read_text().splitlines()) == 2, "the second start", 20)
        time.sleep(0.3)  # until the stub listens to signals
    finally:
        running.send_signal(signal.SIGTERM)
        _, said = running.communicate(timeout=20)
    assert running.returncode == 143
    assert b"is started again" in said
    first, second, end = calls.read_text().splitlines()
    assert first == second
    assert f'--node-config site="{site}/site.toml"' in first
    assert end == "ended"
