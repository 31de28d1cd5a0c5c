"""Before anything else is asked of a request: who asks, from where, and whether the service goes on at all."""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from medfedpure.service.limits import Refusal
from medfedpure.service.state import Service

_LOG = logging.getLogger(__name__)
PUBLIC = ("/", "/health", "/ready", "/openapi.json")
GUARDED = ("/metrics", "/v1/verdict", "/v1/verdicts")
_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-real-ip")
"""What a proxy adds. To the service it is this machine, and it may say that it asks for localhost."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Guard:
    """The outermost layer: counts requests, sets headers, and turns away who may not ask.

    Args:
        app: what is guarded.
        service: whose token and state decide.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        request = scope.setdefault("state", {})["request"] = secrets.token_hex(8)

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                if self.service.ending and status < 400:  # of a refusal the body may still come: see heads.py
                    headers["Connection"] = "close"
            await send(message)

        self.service.in_flight += 1
        try:
            self._check(scope)
            asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope  # uvicorn leaves the body out
            await self.app(asked, receive, sending)
        except Refusal as error:
            await refused(error)(scope, receive, sending)
        except Exception:
            _LOG.exception("request %s failed", request)
            if not status:
                await refused(Refusal(500, "the service failed: whoever runs it finds the reason in its log"))(
                    scope, receive, sending
                )
        finally:
            self.service.in_flight -= 1
            known = scope["path"] in PUBLIC + GUARDED
            seconds = time.perf_counter() - began if scope["path"].startswith("/v1/") else None
            self.service.metrics.answered(scope["path"] if known else "other", status, seconds)

    def _check(self, scope: Scope) -> None:
        """Raise Refusal unless this request may go on."""
        headers, token = Headers(scope=scope), self.service.token
        host = headers.get("host", "")
        if "content-length" in headers and "transfer-encoding" in headers:
            # Whoever stands between may take another part of what comes for the next request (RFC 9112, 6.1).
            told = "Content-Length and Transfer-Encoding came together: send one of them"
            raise Refusal(400, told, {"Connection": "close"})
        if token is None and (through := next((name for name in _PROXIES if name in headers), None)):
            raise Refusal(403, f"asked through a proxy ({through}), which others reach: give this service a token")
        if token is None and not (is_loopback(_name_in(host)) and is_loopback((scope.get("client") or ("",))[0])):
            raise Refusal(403, "this service has no token, so that only this machine may ask, as localhost")
        if scope["path"] in PUBLIC:
            return
        if (origin := headers.get("origin")) is not None and origin.partition("://")[2] != host:
            raise Refusal(403, "a page of another origin may not ask: a proxy passes the Host header on")
        if not allows(token, headers):
            raise Refusal(401, "a valid token is wanted: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"})
        if self.service.ending and scope["path"].startswith("/v1/"):
            raise Refusal(503, "the service is ending: ask again later", {"Retry-After": "5"})


def allows(token: str | None, headers: Headers) -> bool:
    """Whether headers bring the token; always where none is wanted."""
    if token is None:
        return True
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return hmac.compare_digest(given.strip().encode(), token.encode()) and scheme.lower() == "bearer"


def refused(error: Refusal) -> JSONResponse:
    """A refusal as it is answered."""
    return JSONResponse({"error": str(error)}, error.status, error.headers)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine and no other can reach it there."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _name_in(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
