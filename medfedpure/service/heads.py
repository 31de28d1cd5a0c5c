"""HTTP as uvicorn reads it, and an end to connections on which the head of a request does not come."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from medfedpure.service.limits import Limits

_LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class Connection(H11Protocol):
    """One connection; a head has as many seconds as a body, however its bytes are strewn."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's; from now on a head is awaited."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's; is a head still awaited, or awaited again?"""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._end is None:
            limits: Limits = self.config.app.state.service.limits  # type: ignore[union-attr]
            self._end = self.loop.call_later(limits.upload_seconds, self._close)

    def _forget(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _close(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.write(_LATE)
            self.transport.close()
