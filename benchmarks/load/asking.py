"""One client among many: asks for verdicts on its scans, and now and then for what has to be refused."""

from __future__ import annotations

import asyncio
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import httpx
import torch

from benchmarks.load.heard import ONE, SEVERAL, Heard
from benchmarks.load.scans import Scan, bomb, written
from benchmarks.load.server import LIMITS, TOKEN

BEARER = {"authorization": f"Bearer {TOKEN}"}
RAW = {"content-type": "application/octet-stream"}
FORM = {"content-type": "multipart/form-data; boundary=x"}
_UNUSED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Nothing here speaks TLS, and httpx would read all certificates of the machine for every client."""
SENDING = 0.25
"""Seconds within which a request that was begun has come."""
TORN = 40
"""Bytes that a torn picture lacks."""


def _form(content: bytes, end: bytes = b"\r\n--x--\r\n") -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + content + end


@dataclass(frozen=True)
class Asked:
    """A request, which can be sent again.

    Attributes:
        path: with its query.
        headers: beside the token.
        token: the header of it.
        content: bytes, or a number of bytes that come in pieces, of no stated length.
        files: of a form, in place of content.
    """

    path: str = ONE
    headers: dict[str, str] = field(default_factory=dict)
    token: dict[str, str] = field(default_factory=lambda: BEARER)
    content: bytes | int = b""
    files: list[tuple[str, Any]] | None = None

    def options(self) -> dict[str, Any]:
        """As httpx takes them; a form in one piece, for httpx would send it in hundreds."""
        if self.files is not None:
            form = httpx.Request("POST", "http://localhost", files=self.files)
            headers = {"content-type": form.headers["content-type"], **self.token, **self.headers}
            return {"headers": headers, "content": form.read()}
        content = _in_pieces(self.content) if isinstance(self.content, int) else self.content
        return {"headers": {**self.token, **RAW, **self.headers}, "content": content}


async def _in_pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(size // 2**14 + 1):
        yield bytes(2**14)


_FRAMES = written(torch.zeros(2, 32, 32, dtype=torch.uint8), "DICOM")
REFUSED: dict[str, tuple[int, Callable[[Scan], Asked]]] = {
    "no token": (401, lambda scan: Asked(token={}, content=scan.content)),
    "a wrong token": (401, lambda scan: Asked(token={"authorization": f"Bearer {TOKEN}x"}, content=scan.content)),
    "a page of another origin": (
        403,
        lambda scan: Asked(headers={"origin": "http://other.example"}, content=scan.content),
    ),
    "too many bytes": (413, lambda _: Asked(content=bytes(LIMITS.max_bytes + 1))),
    "too many bytes, of no stated length": (413, lambda _: Asked(content=8 * LIMITS.max_bytes)),
    "too many files": (413, lambda scan: Asked(SEVERAL, files=[("files", scan.content[:99])] * (LIMITS.queue + 1))),
    "a bomb": (413, lambda _: Asked(content=bomb(10_000))),
    "a bomb that Pillow itself refuses": (413, lambda _: Asked(content=bomb(60_000))),
    "no scan": (415, lambda _: Asked(content=b"%PDF-1.7 and more")),
    "a body of another type": (415, lambda _: Asked(headers={"content-type": "text/plain"}, content=b"text")),
    "a torn picture": (422, lambda scan: Asked(content=scan.content[:-TORN])),
    "an empty file": (422, lambda _: Asked()),
    "a DICOM file of frames": (422, lambda _: Asked(content=_FRAMES)),
    "a query that is none": (422, lambda scan: Asked(f"{ONE}?map=2x", content=scan.content)),
    "no form": (400, lambda _: Asked(headers=FORM, content=b"text")),
    "a form that is cut off": (400, lambda scan: Asked(headers=FORM, content=_form(scan.content, b""))),
}
"""What is not answered with a verdict: its status, and how it is made of a scan."""


class Ended(Exception):
    """The service says that it ends, or is gone."""


@dataclass
class End:
    """When the service was told to end.

    Attributes:
        told: on the monotonic clock; infinite before.
    """

    told: float = math.inf

    @property
    def is_told(self) -> bool:
        """Whether it may refuse now."""
        return time.monotonic() >= self.told

    def excuses(self, began: float) -> bool:
        """Whether what was begun then need not be answered: it may have come when the last was."""
        return began > self.told - SENDING


@dataclass
class Client:
    """One who asks until he is told to end.

    Args:
        number: of this client, which his choices follow from.
        port: of the service on this machine.
        scans: that are his.
        heard: takes in what he hears.
        end: of the service, from which on it may refuse.
        odd: share of requests that are not to be answered with a verdict.
    """

    number: int
    port: int
    scans: list[Scan]
    heard: Heard
    end: End = field(default_factory=End)
    odd: float = 0.35

    async def ask_until(self, over: Callable[[], bool]) -> None:
        """Ask one thing after the other; ends when it is over, or the service is."""
        chance = random.Random(self.number)  # noqa: S311 - it picks, and keeps no secret
        verdicts = (self._one, self._one, self._raw, self._batch)
        oddities = (*[self._refused] * 12, self._slow_body, self._slow_head, self._cut_off)
        address = f"http://127.0.0.1:{self.port}"
        async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False, verify=_UNUSED) as client:
            with suppress(Ended):
                while not over():
                    await chance.choice(oddities if chance.random() < self.odd else verdicts)(client, chance)

    async def _send(self, client: httpx.AsyncClient, asked: Asked) -> tuple[httpx.Response, float]:
        """The answer, and the seconds that it took; a full queue is asked again.

        Raises:
            Ended: as the service was told to.
        """
        while True:
            began = time.monotonic()
            try:
                answer = await client.post(asked.path, **asked.options())
            except httpx.TransportError as error:
                if self.end.excuses(began):
                    self.heard.unanswered += 1
                else:
                    self.heard.faults.append(f"client {self.number} got no answer from {asked.path}: {error!r}")
                raise Ended from error
            seconds = time.monotonic() - began
            self.heard.statuses[(asked.path.partition("?")[0], answer.status_code)] += 1
            if answer.status_code == 429:
                self.heard.demand(answer.headers.get("retry-after") == "1", "429 does not say when to ask again")
                await asyncio.sleep(1)
            elif answer.status_code == 503:
                self.heard.demand(self.end.is_told, f"503 came before the end: {answer.text}")
                self.heard.demand("retry-after" in answer.headers, "503 does not say when to ask again")
                raise Ended
            else:
                return answer, seconds

    async def _judged(self, client: httpx.AsyncClient, asked: Asked, wanted: list[Scan | None]) -> None:
        """Ask for verdicts and hold them against what is right; None is a file that has to be refused."""
        answer, seconds = await self._send(client, asked)
        if answer.status_code != 200:
            self.heard.faults.append(f"{asked.path} with scans was answered {answer.status_code}: {answer.text}")
            return
        said = answer.json()
        rows = said.get("rows", [said])
        self.heard.verdicts(said["request"], rows, seconds)
        self.heard.demand(len(rows) == len(wanted), f"{len(wanted)} files were answered by {len(rows)} rows")
        for scan, row in zip(wanted, rows, strict=False):
            if scan is not None:
                self.heard.faults += scan.faults(row)
            else:
                refused = (row["status"], row["score"]) == (422, None) and row["error"]
                self.heard.demand(refused, f"a torn file among others was answered {row}")

    async def _one(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        scan, path = chance.choice(self.scans), chance.choice((ONE, f"{ONE}?scan=true&cleaned=true"))
        await self._judged(client, Asked(path, files=[("file", (scan.name, scan.content))]), [scan])

    async def _raw(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        scan = chance.choice(self.scans)
        await self._judged(client, Asked(headers=RAW, content=scan.content), [replace(scan, name=None)])

    async def _batch(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        wanted: list[Scan | None] = [*chance.sample(self.scans, min(4, len(self.scans)))]
        wanted.insert(chance.randint(0, len(wanted)), None)
        torn = ("torn", chance.choice(self.scans).content[:-TORN])
        files = [("files", torn if scan is None else (scan.name, scan.content)) for scan in wanted]
        await self._judged(client, Asked(SEVERAL, files=files), wanted)

    async def _refused(self, client: httpx.AsyncClient, chance: random.Random) -> None:
        case = chance.choice(list(REFUSED))
        status, make = REFUSED[case]
        answer, seconds = await self._send(client, make(chance.choice(self.scans)))
        self.heard.refused(case, status, answer.status_code, seconds)
        self.heard.demand(list(answer.json()) == ["error"], f"{case} was answered without a sentence: {answer.text}")

    # -- what no client that keeps to HTTP would send ----------------------------------------------------------------

    async def _slow_body(self, _: httpx.AsyncClient, chance: random.Random) -> None:
        status = await self._trickle("a body that trickles", chance, _head(1000), b"\x89PNG")
        if status is not None:
            self.heard.statuses[(ONE, status)] += 1

    async def _slow_head(self, _: httpx.AsyncClient, chance: random.Random) -> None:
        await self._trickle("a head that trickles", chance, b"", b"GET /health HT")

    async def _trickle(self, case: str, chance: random.Random, first: bytes, begun: bytes) -> int | None:
        """The status of a request whose bytes come one by one, and never all; a full queue is no fault of his."""
        began = time.monotonic()
        async with self._connected() as (reading, writing):
            writing.write(first + begun)
            heard = asyncio.ensure_future(reading.read(4096))
            while not (await asyncio.wait({heard}, timeout=chance.uniform(0.1, 0.4)))[0]:
                writing.write(b"x")
            answer = heard.result()
        if not answer.startswith(b"HTTP/1.1 "):
            self.heard.faults.append(f"{case} was answered {answer!r}")
            return None
        status = int(answer[9:12])
        if status == 503 and self.end.is_told:
            raise Ended
        if status != 429:
            self.heard.refused(case, 408, status, None)
            late = time.monotonic() - began - LIMITS.upload_seconds
            self.heard.demand(0 <= late <= LIMITS.upload_seconds, f"{case} was ended {late:.1f} s behind its time")
        return status

    async def _cut_off(self, _: httpx.AsyncClient, chance: random.Random) -> None:
        content = chance.choice(self.scans).content
        whole = chance.random() < 0.5
        async with self._connected() as (_, writing):
            writing.write(_head(len(content)) + (content if whole else content[:-9]))
            await writing.drain()
            await asyncio.sleep(0.05)
        self.heard.cut["behind a body" if whole else "in a body"] += 1

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection as it is; it is cut off at the end.

        Raises:
            Ended: the service is gone.
        """
        began = time.monotonic()
        try:
            reading, writing = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                yield reading, writing
            finally:
                writing.transport.abort()
        except OSError as error:
            if self.end.excuses(began):
                self.heard.unanswered += 1
            else:
                self.heard.faults.append(f"client {self.number} lost a connection: {error!r}")
            raise Ended from error


def _head(length: int) -> bytes:
    """Of a request with a picture of that many bytes."""
    lines = (f"POST {ONE} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {TOKEN}", "Content-Type: image/png")
    return "\r\n".join((*lines, f"Content-Length: {length}", "", "")).encode()
