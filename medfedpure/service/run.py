"""One process that serves: a socket, a token, and an end that drops nobody."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from PIL import Image

from medfedpure.core.disk.secret import LEAST, MOST, read_secret
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.service.guard import is_loopback
from medfedpure.service.heads import Connection

TOKEN = "MEDFEDPURE_TOKEN"  # noqa: S105 - a name
"""The variable of the environment that holds the token, where no file does."""
_QUIET = 3
"""Ticks, ten a second, without a request before it ends."""


def token_of(file: Path | None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that a file holds, or the environment's `MEDFEDPURE_TOKEN`; None where neither is given.

    Raises:
        ConfigError: the file cannot be read, or others can read it too; the token is short, or no header may hold it.
    """
    where = TOKEN if file is None else str(file)
    if file is not None:
        try:
            token = read_secret(file).decode(errors="replace").strip()
        except ArtifactError as error:
            raise ConfigError(f"the token file {error}") from error
    elif TOKEN in environment:
        token = environment[TOKEN].strip()
    else:
        return None
    if not LEAST <= len(token) <= MOST or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token in {where} is no line of {LEAST} to {MOST} letters and digits: draw one, as by "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    return token


def listen(host: str, port: int, token: str | None) -> socket.socket:
    """A socket that takes requests.

    Args:
        host: name or address of this machine.
        port: 0 takes a free one.
        token: without one only loopback is served.

    Raises:
        ConfigError: no token and not loopback; an address that is not this machine's; a port that is in use.
    """
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and without a token anybody there could ask: give "
            f"--token-file or {TOKEN}, or leave --host out"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"{host}, port {port} cannot be listened on ({error}): give another --host or --port"
        ) from error


class Server(uvicorn.Server):
    """Answers until SIGTERM, SIGINT or SIGHUP; then it refuses, and ends when all that was in flight is answered.

    It stays for some ticks in which nothing is asked, so that who sent a request as the signal came gets an answer too.

    Args:
        app: from `create_app`.
        begun: is called when requests are taken.
    """

    def __init__(self, app: FastAPI, begun: Callable[[], object]) -> None:
        super().__init__(_config(app))
        self.service, self.begun = app.state.service, begun
        self._quiet = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; large pictures and malformed forms are refused with a sentence, and fill no log beside it."""
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        logging.getLogger("python_multipart").setLevel(logging.ERROR)
        await super().startup(sockets)
        self.begun()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, and of SIGHUP as well: what a closed terminal ends drops nobody; nohup has it go on."""
        with ExitStack() as closed:
            closed.enter_context(super().capture_signals())
            if sys.platform != "win32" and threading.current_thread() is threading.main_thread():
                if (before := signal.getsignal(signal.SIGHUP)) is not signal.SIG_IGN:
                    signal.signal(signal.SIGHUP, self.handle_exit)
                    closed.callback(signal.signal, signal.SIGHUP, before)
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal: end when nothing is in flight; a second one: end now."""
        del sig, frame
        if self.service.ending:
            self.should_exit = self.force_exit = True
        self.service.ending = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's; at a second signal nobody is waited for, who takes nothing of his answer either."""
        await super().shutdown(sockets)
        for one in list(self.server_state.connections) if self.force_exit else ():
            one.transport.abort()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: is it over?"""
        self._quiet = self._quiet + 1 if self.service.ending and not self.service.in_flight else 0
        if self._quiet == _QUIET:
            self.should_exit = True
        return await super().on_tick(counter)


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",  # or anybody's bytes that are no HTTP would fill the log
        access_log=False,
        server_header=False,
        proxy_headers=False,
    )
