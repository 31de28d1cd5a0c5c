"""The command as a process: it begins, refuses when it is told to end, answers what is in flight, and ends well."""

import os
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest
from serving import TOKEN, chain, defence, png, until
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.errors import ConfigError
from medfedpure.service.app import create_app
from medfedpure.service.audit import check
from medfedpure.service.run import Server


def test_sigterm_drops_nothing_that_is_in_flight(tmp_path):
    defence().save(tmp_path / "guarded")
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(TOKEN)
    words = ["serve", "guarded", "--port", "0", "--token-file", "token", "--audit", "log", "--threads", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "20"}
    process = subprocess.Popen(
        [sys.executable, "-m", "medfedpure", *words], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        said = process.stdout.readline()
        port = int(re.match(r"listening on http://127\.0\.0\.1:(\d+);", said)[1])
        content, bearer = png(0), {"authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=bearer, timeout=20, trust_env=False) as client:
            assert client.post("/v1/verdict", files={"file": content}).status_code == 200
            uploading = socket.create_connection(("127.0.0.1", port))
            head = (
                f"POST /v1/verdict HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: image/png\r\n"
            )
            uploading.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:50])
            until(lambda: "medfedpure_queue_images 1.0" in client.get("/metrics").text)
            process.send_signal(signal.SIGTERM)
            until(lambda: client.get("/ready").status_code == 503)
            refused = client.post("/v1/verdict", files={"file": content})
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            uploading.sendall(content[50:])
            answer = uploading.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer.lower()  # or the next request on it would be lost
            uploading.close()
        assert process.wait(20) == 0
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    found = check(tmp_path / "log")
    assert (found.rows, found.fault) == (4, None)  # begun, two verdicts, ended


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no such signal")
@pytest.mark.parametrize("nohup", [False, True])
def test_a_terminal_that_closes_ends_it_unless_nohup_says_otherwise(chain, nohup):
    server = Server(create_app(chain, token=None), lambda: None)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if nohup else signal.SIG_DFL)
    try:
        with server.capture_signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert server.service.ending is not nohup
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if nohup else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        words = ["serve", str(tmp_path / "nothing"), "--port", str(taken.getsockname()[1])]
        with pytest.raises(ConfigError, match="cannot be listened on"):
            CliRunner().invoke(app, words, catch_exceptions=False)
