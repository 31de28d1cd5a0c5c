"""The service under requests that nobody honest sends, and networks, disks and processes that fail."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
from serving import TOKEN, Running, png, running, until

from benchmarks.weather.bundles import defence
from benchmarks.weather.cases import Case, Seen, Wrong, full_disk, refused
from benchmarks.weather.scans_made import DICOM, PICTURES, bomb, picture
from medfedpure.service.audit import AuditLog, check
from medfedpure.service.limits import Limits
from medfedpure.service.run import listen

_LIMITS = Limits(queue=4, max_bytes=200_000, max_pixels=128 * 128, upload_seconds=1.0)
_ALIVE = "the service answers the next one"
_HEAD = "POST /v1/verdict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@contextmanager
def _service(**options: Any) -> Iterator[Running]:
    """A service that still gives verdicts, and holds no place of its queue, when a block is over."""
    with running(defence(), limits=_LIMITS, seed=7, **options) as found:
        yield found
        # Of connections that were given up some are only now accepted, and hold a place for a moment.
        until(lambda: found.client.post("/v1/verdict", files={"file": png(0)}).status_code == 200)
        until(lambda: found.app.state.service.places.taken == 0)


def _told(answer: httpx.Response, wanted: int) -> str:
    """A refusal as the service says it: one status, one sentence, nothing of Python's."""
    if answer.status_code != wanted:
        raise Wrong(f"{wanted} is wanted, {answer.status_code} came: {answer.text[:100]}")
    said = str(answer.json()["error"])
    if "Traceback" in said or "/usr" in said or "Error:" in said:
        raise Wrong(f"the answer tells of the inside: {said[:100]}")
    return f"{answer.status_code}: {said}"


def _asked(status: int, act: Callable[[httpx.Client], httpx.Response], **options: Any) -> Callable[[Path], Seen]:
    def run(_: Path) -> Seen:
        with _service(**options) as service:
            said = _told(act(service.client), status)
        return Seen(said, _ALIVE)

    return run


def _file(content: bytes, name: str = "a.png") -> Callable[[httpx.Client], httpx.Response]:
    return lambda client: client.post("/v1/verdict", files={"file": (name, content)})


def _body(content: bytes, **headers: str) -> Callable[[httpx.Client], httpx.Response]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda client: client.post("/v1/verdict", content=content, headers=named)


def _chunks(client: httpx.Client) -> httpx.Response:
    """More than is allowed, without saying how much."""
    return client.post(
        "/v1/verdict", content=(bytes(50_000) for _ in range(6)), headers={"content-type": "application/octet-stream"}
    )


def _bad_files(folder: Path) -> Seen:
    """Every wrong DICOM file and picture as an upload: a refusal or a verdict each, and never a 500."""
    with _service() as service:
        counts: dict[int, int] = {}
        for place, write in enumerate([*DICOM.values(), *PICTURES.values()]):
            write(folder / str(place))
            content = (folder / str(place)).read_bytes()
            answer = service.client.post("/v1/verdict", files={"file": content})
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
    if counts.keys() - {200, 413, 415, 422}:
        raise Wrong(f"statuses {counts}")
    return Seen(", ".join(f"{count} times {status}" for status, count in sorted(counts.items())), _ALIVE)


def _names(folder: Path) -> Seen:
    """Names of files that lead elsewhere, or hold what a terminal obeys."""
    names = [
        "../../../etc/passwd",
        "/etc/passwd",
        "a\x1b[2J.png",
        "..\\..\\a",
        "=1+1",
        "x" * 5000,
        "%2e%2e%2fa",
        "\u202e",
    ]
    before = sorted(path.name for path in folder.iterdir())
    with _service() as service:
        for name in names:
            answer = service.client.post("/v1/verdicts", files=[("files", (name, png(1)))])
            if answer.status_code == 400 and len(name) > 1000:  # longer than heads of parts may be
                continue
            if answer.status_code != 200:
                raise Wrong(f"{name:.20} is answered by {answer.status_code}")
            row = answer.json()["rows"][0]
            if {"\x1b", "\n"} & set(answer.text) or row["status"] != 200:
                raise Wrong(f"the row of {name!r} is {row}")
    if sorted(path.name for path in folder.iterdir()) != before:
        raise Wrong("a file was written")
    return Seen(f"{len(names)} verdicts or refusals, no control character in the answer", "nothing was written")


def _raw(content: bytes, wanted: bytes) -> Callable[[Path], Seen]:
    """Bytes that no client sends; what the first line of the answer is."""

    def run(_: Path) -> Seen:
        with _service() as service, socket.create_connection(("127.0.0.1", service.port), 20) as made:
            with suppress(OSError):  # closed while it was sent, which is an answer as well
                made.sendall(content)
            said = _first_line(made)
            if wanted not in said:
                raise Wrong(f"the answer begins with {said!r}")
        return Seen(said.decode() or "the connection is closed", _ALIVE)

    return run


def _first_line(made: socket.socket) -> bytes:
    try:
        return made.recv(4096).partition(b"\r\n")[0]
    except ConnectionResetError:
        return b""


def _slow(head: bytes, piece: bytes, count: int) -> Callable[[Path], Seen]:
    """Several connections that send a little now and then; others are answered meanwhile."""

    def run(_: Path) -> Seen:
        with _service() as service:
            made = [socket.create_connection(("127.0.0.1", service.port), 20) for _ in range(count)]
            began = time.monotonic()
            for one in made:
                one.sendall(head)
            if service.client.get("/health").status_code != 200:
                raise Wrong("nobody else is answered meanwhile")
            ended = 0
            while ended < count and time.monotonic() - began < 15:
                time.sleep(0.3)
                ended = sum(_is_over(one, piece) for one in made)
            for one in made:
                one.close()
            if ended < count:
                raise Wrong(f"{count - ended} of {count} connections are still held after 15 seconds")
        return Seen(f"{count} connections ended within {time.monotonic() - began:.0f} s", _ALIVE)

    return run


def _is_over(made: socket.socket, piece: bytes) -> bool:
    """Whether the other side answered or closed."""
    made.settimeout(0.01)
    try:
        made.recv(4096)
        return True
    except TimeoutError:
        pass
    except OSError:
        return True
    try:
        made.sendall(piece)
    except OSError:
        return True
    return False


def _cut_off(_: Path) -> Seen:
    """Uploads that are cut off in the middle, twenty times."""
    content = png(0)
    with _service() as service:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", service.port), 20) as made:
                made.sendall(f"{_HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content[:40])
    return Seen("20 uploads cut off", f"{_ALIVE}; no place of the queue is lost")


def _gone_before_the_answer(_: Path) -> Seen:
    content = png(0)
    with _service() as service:
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", service.port), 20) as made:
                made.sendall(f"{_HEAD}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return Seen("10 whole uploads, nobody waits for an answer", f"{_ALIVE}; no place of the queue is lost")


def _many(_: Path) -> Seen:
    """200 connections at once that say nothing."""
    with _service() as service:
        made = [socket.create_connection(("127.0.0.1", service.port), 20) for _ in range(200)]
        answer = service.client.post("/v1/verdict", files={"file": png(0)})
        for one in made:
            one.close()
        if answer.status_code != 200:
            raise Wrong(f"{answer.status_code} came")
    return Seen("200 silent connections; a verdict is given meanwhile", _ALIVE)


def _too_many(_: Path) -> Seen:
    """More images at a time than the queue holds."""
    with _service() as service:
        files = [("files", (f"{place}.png", png(place))) for place in range(5)]
        said = _told(service.client.post("/v1/verdicts", files=files), 413)
    return Seen(said, f"{_ALIVE}; no place of the queue is lost")


def _full_log(folder: Path) -> Seen:
    with AuditLog(folder / "log") as log, _service(audit=log) as service:
        service.client.post("/v1/verdict", files={"file": png(0)})
        size = (folder / "log").stat().st_size
        with full_disk(size + 100):
            said = _told(service.client.post("/v1/verdict", files={"file": png(1)}), 503)
            if (folder / "log").stat().st_size != size:
                raise Wrong("half a row stands in the log")
    if (found := check(folder / "log")).fault is not None:
        raise Wrong(f"the log: {found.fault}")
    return Seen(said, "the log holds together, every verdict that was told is in it; it goes on by itself")


def _edited_log(folder: Path) -> Seen:
    with AuditLog(folder / "log") as log:
        log.append([{"event": "verdict", "label": 0}, {"event": "verdict", "label": 0}])
    content = (folder / "log").read_bytes()
    (folder / "log").write_bytes(content.replace(b'"label": 0', b'"label": 1', 1))
    found = check(folder / "log")
    if found.fault is None:
        raise Wrong("the check says that all of it holds")
    return Seen(found.describe(), "the rows before it")


def _no_log(folder: Path) -> Seen:
    (folder / "log").write_bytes(b"a,b\n1,2\n")

    def begin() -> None:
        with AuditLog(folder / "log"):
            raise Wrong("it is continued")

    said = refused(begin)
    if (folder / "log").read_bytes() != b"a,b\n1,2\n":
        raise Wrong("the file was changed")
    return Seen(said, "the file")


def _port_in_use(_: Path) -> Seen:
    with socket.create_server(("127.0.0.1", 0)) as other:
        return Seen(refused(lambda: listen("127.0.0.1", other.getsockname()[1], None)), "whoever listens there")


def _open_to_all(_: Path) -> Seen:
    return Seen(refused(lambda: listen("0.0.0.0", 0, None)), "no port is opened")  # noqa: S104 - it is refused


def _command(folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """The command as a process, and its port."""
    defence().save(folder / "saved")
    (folder / "token").touch(0o600)
    (folder / "token").write_text(TOKEN)
    words = ["serve", "saved", "--port", "0", "--token-file", "token", "--audit", "log", "--threads", "1"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path.cwd())}
    made = subprocess.Popen(
        [sys.executable, "-m", "medfedpure", *words], cwd=folder, env=environment, stdout=subprocess.PIPE
    )
    assert made.stdout is not None
    said = made.stdout.readline().decode()
    return made, int(said.partition(";")[0].rpartition(":")[2])


def _signalled(number: int, code: int) -> Callable[[Path], Seen]:
    """A signal while uploads come and verdicts are asked for; then the log is looked at."""

    def run(folder: Path) -> Seen:
        process, port = _command(folder)
        try:
            ask = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            head = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/png"}
            for place in range(3):
                ask.request("POST", "/v1/verdict", png(place), head)
                ask.getresponse().read()
            process.send_signal(number)
            ended = process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]
        if ended != code:
            raise Wrong(f"it ends with {ended}")
        found = check(folder / "log")
        rows = [json.loads(line) for line in (folder / "log").read_bytes().splitlines()]
        count = sum(row["event"] == "verdict" for row in rows)
        if found.fault or count != 3:
            raise Wrong(f"the log: {found.describe()}; {count} verdicts")
        with AuditLog(folder / "log"):
            pass
        return Seen(f"it ends with {ended}", "three verdicts that were told are in the log, which is continued")

    return run


_OCTETS = {"content_type": "application/octet-stream"}
_FORM = {"content_type": "multipart/form-data; boundary=x"}
_PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'


def cases() -> Iterator[Case]:
    """All of them."""
    inputs: dict[str, Callable[[Path], Seen]] = {
        "every wrong DICOM file and picture as an upload": _bad_files,
        "names of files that lead elsewhere": _names,
        "more bytes than allowed": _asked(413, _body(bytes(200_001), **_OCTETS)),
        "more bytes than allowed, of a length that is not told": _asked(413, _chunks),
        "more pixels than allowed": _asked(413, _file(picture(size=(129, 4)))),
        "a bomb of 60000 pixels squared": _asked(413, _file(bomb(60_000))),
        "no byte": _asked(422, _body(b"", **_OCTETS)),
        "a text": _asked(415, _file(b"no picture")),
        "a body of JSON": _asked(415, _body(b"{}", content_type="application/json")),
        "a form without a boundary": _asked(400, _body(b"x", content_type="multipart/form-data")),
        "a form that is none": _asked(400, _body(b"x", **_FORM)),
        "a form that is cut off": _asked(400, _body(_PART + png(0), **_FORM)),
        "a form with a boundary of 5000 letters": _asked(
            400, _body(b"x", content_type=f"multipart/form-data; boundary={'x' * 5000}")
        ),
        "a form without a file": _asked(
            422, _body(_PART.replace(b'; filename="a.png"', b"") + b"b\r\n--x--\r\n", **_FORM)
        ),
        "a form part with 20000 headers": _asked(400, _body(b"--x\r\n" + b"a: b\r\n" * 20_000, **_FORM)),
        "more images than places": _too_many,
        "a word for true in the query": _asked(
            422, lambda client: client.post("/v1/verdict?map=perhaps", files={"file": png(0)})
        ),
        "an unknown path": _asked(404, lambda client: client.get("/../../etc/passwd")),
        "another method": _asked(405, lambda client: client.delete("/v1/verdict")),
        "another host's name": _asked(403, lambda client: client.get("/ready", headers={"host": "evil.example"})),
        "a page of another origin": _asked(
            403,
            lambda client: client.post(
                "/v1/verdict", files={"file": png(0)}, headers={"origin": "http://evil.example"}
            ),
        ),
        "no HTTP": _raw(b"\x16\x03\x01\x02\x00\x01\x00" * 10 + b"\r\n\r\n", b"400"),
        "headers of 1 MiB": _raw(_HEAD.encode() + b"X: " + b"x" * 2**20 + b"\r\n\r\n", b""),
        "50000 headers": _raw(_HEAD.encode() + b"X: x\r\n" * 50_000 + b"\r\n", b""),
        "two lengths that differ": _raw(_HEAD.encode() + b"Content-Length: 1\r\nContent-Length: 9\r\n\r\nabc", b"400"),
        "a negative length": _raw(_HEAD.encode() + b"Content-Length: -5\r\n\r\nabc", b"400"),
        "a length and chunks": _raw(
            _HEAD.encode() + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
            b"4",
        ),
        "a chunk without end": _raw(_HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n", b"4"),
        "a log that was edited": _edited_log,
        "another file in place of the log": _no_log,
        "an address that all can reach, without a token": _open_to_all,
    }
    faults: dict[str, Callable[[Path], Seen]] = {
        "heads that come a letter at a time": _slow(b"POST /v1/ver", b"x", 20),
        "bodies that come a byte at a time": _slow(f"{_HEAD}Content-Length: 1000\r\n\r\n".encode(), b"x", 3),
        "uploads that are cut off": _cut_off,
        "who asks does not wait": _gone_before_the_answer,
        "200 connections that say nothing": _many,
        "a full disk under the log": _full_log,
        "a port that is in use": _port_in_use,
        "told to end": _signalled(signal.SIGTERM, 0),
        "killed": _signalled(signal.SIGKILL, -signal.SIGKILL),
    }
    for name, act in inputs.items():
        yield Case("serve", name, "input", act)
    for name, act in faults.items():
        yield Case("serve", name, "fault", act)
