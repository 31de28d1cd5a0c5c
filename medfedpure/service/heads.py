"""HTTP as uvicorn reads it, and an end to connections on which what has to come does not come."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medfedpure.service.limits import Limits

_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """One connection; a head has as many seconds as a body, however its bytes are strewn.

    So has what is left of a body that was answered before it came: it is read and thrown away. To close at once would
    reset the connection, and the sender, who still sends, would not hear the answer (RFC 9112, 9.6).
    """

    _awaited: object = None
    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's; from now on a head is awaited."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; is something still awaited, or awaited again?"""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """As uvicorn's; is there more to come of what was answered? Of a connection without, uvicorn ends the rest."""
        super().on_response_complete()
        if self._answered_early():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._forget()
        super().connection_lost(exc)

    def _answered_early(self) -> bool:
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def _watch(self) -> None:
        awaited = self.conn.their_state if self.conn.their_state is h11.IDLE or self._answered_early() else None
        if awaited is self._awaited:
            return
        self._forget()
        if awaited is not None:
            limits: Limits = self.config.app.state.service.limits  # type: ignore[union-attr]
            self._awaited, self._end = awaited, self.loop.call_later(limits.upload_seconds, self._close)

    def _forget(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self._awaited = self._end = None

    def _close(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.write(_LATE)
        self.transport.close()
