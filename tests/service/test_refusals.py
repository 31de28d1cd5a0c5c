"""Whatever should not be answered gets its status and a sentence, and leaves nothing behind."""

import asyncio
import gzip
import importlib
import io
import socket
import struct
import sys
import tempfile
import time
import zlib
from dataclasses import replace

import httpx
import pytest
from PIL import Image
from serving import TOKEN, chain, defence, png, running, service, until

from medfedpure.core.errors import ConfigError, MissingExtraError
from medfedpure.service.app import create_app
from medfedpure.service.guard import is_loopback
from medfedpure.service.limits import Limits
from medfedpure.service.run import TOKEN as VARIABLE
from medfedpure.service.run import listen, token_of

LIMITS = Limits(queue=3, max_bytes=20_000, max_pixels=100 * 100, upload_seconds=2.0)


@pytest.fixture(scope="module")
def strict(chain):
    with running(chain, limits=LIMITS) as found:
        yield found


def picture(width, height, format="PNG"):
    written = io.BytesIO()
    Image.new("L", (width, height)).save(written, format)
    return written.getvalue()


def bomb(side):
    """A PNG whose head claims a square of that side, and whose body is a few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def packed_volume():
    """A NIfTI file of two slices of 4 x 4 bytes, as scanners pack them."""
    head = struct.pack("<i36x8h14x2h36xf", 348, 3, 4, 4, 2, 1, 1, 1, 1, 2, 8, 352).ljust(344, b"\0")
    return gzip.compress(head + b"n+1\0" + bytes(4 + 32))


def form(*parts, end="--x--\r\n", name="a.png"):
    head = f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    return b"".join(b"--x\r\n" + head.encode() + part + b"\r\n" for part in parts) + end.encode()


RAW, FORM = {"content-type": "application/octet-stream"}, {"content-type": "multipart/form-data; boundary=x"}
REFUSED = {
    "too many bytes": (413, "20000 bytes", bytes(20_001), RAW),
    "too many pixels": (413, "101 x 5", picture(101, 5), RAW),
    "a bomb": (413, "more than 10000 pixels", bomb(5000), RAW),
    "a bomb that Pillow itself refuses": (413, "more than 10000 pixels", bomb(60_000), RAW),
    "a form in its default type": (
        415,
        "x-www-form-urlencoded came",
        png(0),
        {"content-type": "application/x-www-form-urlencoded"},
    ),
    "no picture": (415, "no DICOM, JPEG, PNG", b"%PDF-1.7 and more", RAW),
    "empty": (422, "empty file", b"", RAW),
    "damaged": (422, "cannot be read", png(0)[:-40], RAW),
    "a volume": (415, "`medfedpure predict` read it", packed_volume(), RAW),
    "a name of thousands of characters": (400, "names of less than 4000", form(png(0), name=9000 * "a"), FORM),
    "no boundary": (400, "malformed", b"text", {"content-type": "multipart/form-data"}),
    "no form": (400, "malformed", b"text", FORM),
    "a form without a file": (
        422,
        "0 files",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n',
        FORM,
    ),
    "a form that is cut off": (400, "cut off", form(png(0), end=""), FORM),
    "two files": (422, "/v1/verdicts takes several", form(png(0), png(1)), FORM),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_gets_its_status_and_a_sentence(strict, case):
    status, words, content, headers = REFUSED[case]
    answer = strict.client.post("/v1/verdict", content=content, headers=headers)
    assert (answer.status_code, words in answer.json()["error"]) == (status, True), answer.text
    assert strict.app.state.service.places.taken == 0


def test_the_body_without_a_length_is_counted(strict):
    for pieces in (2, 400):  # to close before all has come would reset the connection, and take the answer along
        answer = strict.client.post("/v1/verdict", content=iter([bytes(15_000)] * pieces), headers=RAW)
        assert answer.status_code == 413
        assert "connection" not in answer.headers


def test_more_files_than_the_queue_has_places(strict):
    for count in (4, 5):
        answer = strict.client.post("/v1/verdicts", files=[("files", png(place)) for place in range(count)])
        assert (answer.status_code, "error" in answer.json()) == (413, True), answer.text
    raw = strict.client.post("/v1/verdicts", content=png(0), headers=RAW)
    assert (raw.status_code, "multipart/form-data" in raw.json()["error"]) == (415, True)


def test_other_paths_methods_and_options(strict):
    for method, path, status in (("GET", "/v1", 404), ("GET", "/v1/verdict", 405), ("POST", "/v1/verdict?map=2x", 422)):
        answer = strict.client.request(method, path)
        assert (answer.status_code, list(answer.json())) == (status, ["error"])


def begin(service, length=1000, sent=b"\x89PNG"):
    """A connection on which a request has begun and not ended."""
    connection = socket.create_connection(("127.0.0.1", service.port))
    head = (
        f"POST /v1/verdict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n"
    )
    connection.sendall(head.encode() + sent)
    return connection


def trickle(connection, seconds):
    """Send byte after byte of a body."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connection.sendall(b"x")
        time.sleep(0.05)


def heard(connection):
    """A whole answer, which is an object of JSON."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096) or pytest.fail(f"the connection ended behind {answer!r}")
    return answer


def test_a_full_queue_says_when_to_ask_again_and_a_slow_upload_is_ended(strict):
    places = strict.app.state.service.places
    slow = [begin(strict) for _ in range(3)]
    until(lambda: places.taken == 3)
    full = strict.client.post("/v1/verdict", content=png(0), headers=RAW)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    for connection in slow:
        assert heard(connection).startswith(b"HTTP/1.1 408 ")
        connection.close()
    assert strict.client.post("/v1/verdict", content=png(0), headers=RAW).status_code == 200
    assert places.taken == 0


def test_a_head_that_comes_slowly_is_ended_also_behind_a_request_that_did_not(chain):
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with running(chain, limits=Limits(upload_seconds=0.5)) as service:
        for first in (b"", ask):
            with socket.create_connection(("127.0.0.1", service.port)) as connection:
                connection.settimeout(20)
                if first:
                    connection.sendall(first)
                    assert heard(connection).startswith(b"HTTP/1.1 200 ")
                for byte in ask[:6]:
                    connection.sendall(bytes([byte]))
                assert connection.recv(4096).startswith(b"HTTP/1.1 408 ")
                assert connection.recv(4096) == b""
        with socket.create_connection(("127.0.0.1", service.port)) as silent:
            silent.settimeout(20)
            assert silent.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert service.client.get("/health").status_code == 200


def test_a_body_that_was_answered_before_it_came_does_not_hold_its_connection(chain):
    with running(chain, TOKEN, limits=Limits(upload_seconds=0.5)) as service:
        with begin(service, 1000) as connection:
            connection.settimeout(20)
            assert heard(connection).startswith(b"HTTP/1.1 401 ")
            began = time.monotonic()
            with pytest.raises(ConnectionError):
                trickle(connection, 10)
            assert time.monotonic() < began + 5
        with begin(service, 1000) as connection:  # whoever sends the rest in time may ask again
            connection.settimeout(20)
            assert heard(connection).startswith(b"HTTP/1.1 401 ")
            connection.sendall(bytes(996) + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert heard(connection).startswith(b"HTTP/1.1 200 ")


def test_a_connection_that_is_cut_off_leaves_nothing(chain):
    with running(chain, limits=replace(LIMITS, max_wait_ms=1500)) as service:
        state = service.app.state.service
        for content, length in ((b"\x89PNG", 1000), (png(0), len(png(0)))):  # while it is sent, and while it waits
            with begin(service, length, content):
                until(lambda: state.in_flight)
            until(lambda: state.in_flight == state.places.taken == state.batcher.length == 0)
        assert service.client.post("/v1/verdict", content=png(0), headers=RAW).status_code == 200
        assert b'status="499"' in state.metrics.text()


def test_no_upload_lies_on_a_disk(chain, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent/folder")
    written = io.BytesIO()
    Image.effect_noise((1500, 1500), 90).save(written, "PNG")
    assert len(written.getvalue()) > 1_500_000
    with running(chain) as service:
        assert service.client.post("/v1/verdict", files={"file": written.getvalue()}).status_code == 200


# -- who may ask ---------------------------------------------------------------------------------------------------


def test_a_token_is_wanted_where_there_is_one(chain):
    with running(chain, TOKEN) as service:
        for path, method in (("/metrics", "GET"), ("/v1/verdict", "POST"), ("/v1/verdicts", "POST")):
            for headers in ({}, {"authorization": f"Bearer {TOKEN}x"}, {"authorization": f"Basic {TOKEN}"}):
                answer = service.client.request(method, path, headers=headers)
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        right = {"authorization": f"bearer {TOKEN}"}
        assert service.client.post("/v1/verdict", files={"file": png(0)}, headers=right).status_code == 200
        assert service.client.get("/metrics", headers=right).status_code == 200
        for path in ("/", "/health", "/openapi.json"):
            assert service.client.get(path).status_code == 200
        assert service.client.get("/ready").json() == {"ready": True}
        assert "drift" in service.client.get("/ready", headers=right).json()


def test_without_a_token_only_this_machine_may_ask_and_no_other_page(strict):
    for host in ("localhost", "localhost:80", "127.0.0.1", "[::1]:8000"):
        assert strict.client.get("/health", headers={"host": host}).status_code == 200, host
    for host in ("evil.example", "localhost.evil.example", "10.0.0.1:8000", "[2001:db8::1]", ""):
        assert strict.client.get("/health", headers={"host": host}).status_code == 403, host
    for origin in ("http://evil.example", "null", f"http://localhost:{strict.port + 1}"):
        answer = strict.client.post("/v1/verdict", files={"file": png(0)}, headers={"origin": origin})
        assert (answer.status_code, "Host header" in answer.json()["error"]) == (403, True), origin
    own = {"origin": f"http://127.0.0.1:{strict.port}"}
    assert strict.client.post("/v1/verdict", files={"file": png(0)}, headers=own).status_code == 200


@pytest.mark.parametrize("name", ["Forwarded", "Via", "X-Forwarded-For", "X-Real-IP"])
def test_without_a_token_nobody_asks_through_a_proxy_of_this_machine(strict, chain, name):
    told = strict.client.get("/health", headers={name: "192.0.2.7"})
    assert (told.status_code, "give this service a token" in told.json()["error"]) == (403, True)
    with running(chain, TOKEN) as service:
        assert service.client.get("/health", headers={name: "192.0.2.7"}).status_code == 200


def test_a_stranger_is_refused_whatever_he_says_his_host_is(chain):
    transport = httpx.ASGITransport(create_app(chain, token=None), client=("192.0.2.7", 5))

    async def ask():
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/health")

    assert asyncio.run(ask()).status_code == 403


def test_every_answer_has_its_headers_and_none_lets_other_origins_in(strict):
    for path, status in (("/", 200), ("/health", 200), ("/nothing", 404), ("/v1/verdict", 405)):
        answer = strict.client.get(path, headers={"origin": f"http://127.0.0.1:{strict.port}"})
        assert answer.status_code == status
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert not [name for name in answer.headers if name.startswith("access-control") or name == "server"]


def test_an_address_that_others_reach_needs_a_token():
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="without a token anybody there could ask"):
            listen(host, 0, None)
    listen("0.0.0.0", 0, TOKEN).close()
    with listen("127.0.0.1", 0, None) as taken, pytest.raises(ConfigError, match="cannot be listened on"):
        listen("127.0.0.1", taken.getsockname()[1], None)


def test_a_token_comes_from_a_file_or_the_environment(tmp_path):
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert token_of(tmp_path / "token", {VARIABLE: "another-one-that-is-long"}) == TOKEN
    assert token_of(None, {VARIABLE: TOKEN}) == TOKEN
    assert token_of(None, {}) is None
    for bad in ("short", "", "with a space and long", "with-an-umlaut-ä-and-long"):
        (tmp_path / "token").write_text(bad)
        for given in ((tmp_path / "token", {}), (None, {VARIABLE: bad})):
            with pytest.raises(ConfigError, match="16 to 4096 letters and digits"):
                token_of(*given)
    with pytest.raises(ConfigError, match="cannot be read"):
        token_of(tmp_path / "gone", {})


def test_a_fault_of_the_service_is_a_status_and_no_secret(chain):
    broken = defence()
    with running(broken) as service:
        state, read = service.app.state.service, service.app.state.service.reader.read
        state.reader.read = lambda content: read(content) if content == png(1) else 1 / 0
        rows = service.client.post("/v1/verdicts", files=[("files", png(0)), ("files", png(1))]).json()["rows"]
        assert [row["status"] for row in rows] == [500, 200]
        state.reader.read, state.metrics.tell = read, lambda _: 1 / 0
        answer = service.client.post("/v1/verdict", files={"file": png(0)})
        assert answer.status_code == 500
        assert "zero" not in answer.text + rows[0]["error"]
        assert answer.headers["x-frame-options"] == "DENY"
        until(lambda: state.places.taken == state.in_flight == 0)


def test_where_the_extra_is_missing_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in ("app", "guard", "metrics", "state"):
        monkeypatch.delitem(sys.modules, f"medfedpure.service.{name}")
    with pytest.raises(MissingExtraError, match=r"medfedpure\[serve\]"):
        importlib.import_module("medfedpure.service.app")
