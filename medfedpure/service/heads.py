"""HTTP as uvicorn reads it, and an end to connections on which what has to come, or to be taken, is not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medfedpure.service.limits import Limits

_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """One connection; a head has as many seconds as a body, however its bytes are strewn.

    So has what is left of a body that was answered before it came: it is read and thrown away. To close at once would
    reset the connection, and the sender, who still sends, would not hear the answer (RFC 9112, 9.6). Whoever takes
    nothing of an answer for as long is cut off: the service could never end while it waits for him.

    Attributes:
        closed: whether it is over; of an answer something may still be on its way.
    """

    _awaited: object = None
    _end: asyncio.TimerHandle | None = None
    _cut: asyncio.TimerHandle | None = None
    closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's; from now on a head is awaited."""
        self._under = transport
        super().connection_made(_Transport(transport, self))  # type: ignore[arg-type]
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; is something still awaited, or awaited again? Once it is over, it is thrown away."""
        if not self.closed:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """As uvicorn's; is there more to come of what was answered?"""
        super().on_response_complete()
        if self._answered_early():
            self._watch()

    def pause_writing(self) -> None:
        """As uvicorn's; the other side has to take something from now on."""
        super().pause_writing()
        self._cut_later()

    def resume_writing(self) -> None:
        """As uvicorn's; it did."""
        super().resume_writing()
        if self._cut is not None and not self.closed:
            self._cut.cancel()

    def close(self) -> None:
        """End the connection once the answer is sent, and the other side, where it still sends, has heard it."""
        sends = self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        self._leave(hear=sends and not self._under.is_closing())

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self.closed = True
        self._forget()
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)

    def _answered_early(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _watch(self) -> None:
        awaited = self.conn.their_state if self.conn.their_state is h11.IDLE or self._answered_early() else None
        if awaited is self._awaited or self.closed:
            return
        self._forget()
        if awaited is not None:
            self._awaited, self._end = awaited, self.loop.call_later(self._seconds(), self._late)

    def _forget(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._awaited = self._end = None

    def _late(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.write(_LATE)
        self._leave(hear=False)

    def _leave(self, hear: bool) -> None:
        if self.closed:
            return
        self.closed = True
        self._forget()
        if hear:
            self._under.write_eof()
            self._under.resume_reading()
        else:
            self._under.close()
        self._cut_later()

    def _cut_later(self, before: int | None = None) -> None:
        """Cut it off after the seconds, unless some of what is left to be sent was taken by then."""
        due = self._under.get_write_buffer_size() if before is None else before

        def cut() -> None:
            if 0 < (left := self._under.get_write_buffer_size()) < due:
                self._cut_later(left)
            else:
                self._under.abort()

        if self._cut is not None:
            self._cut.cancel()
        self._cut = self.loop.call_later(self._seconds(), cut)

    def _seconds(self) -> float:
        limits: Limits = self.config.app.state.service.limits  # type: ignore[union-attr]
        return limits.upload_seconds


class _Transport:
    """A transport as uvicorn sees it, which ends as its connection says."""

    def __init__(self, under: asyncio.Transport, connection: Connection) -> None:
        self._under, self._connection = under, connection
        self.close: Callable[[], None] = connection.close

    def is_closing(self) -> bool:
        """Whether it is over, or about to be."""
        return self._connection.closed or self._under.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._under, name)
