"""A small defence, and a service around it that answers on a port of its own while a block lasts."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image

import medfedpure
from medfedpure.service.app import create_app
from medfedpure.service.run import Server, listen
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(120, size=16)
TOKEN = "a-token-of-24-characters"
SEED = 7


def defence(purifier: str = "smoothing", detector: str = "feature_squeezing") -> medfedpure.DefendedClassifier:
    """A calibrated chain that flags about a third of its images; "smoothing" draws noise."""
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, 1),
        detector=medfedpure.create("detector", detector),
        purifier=medfedpure.create("purifier", purifier),
    )
    return made.calibrate(DATA, 0.3, seed=1)


def png(place: int) -> bytes:
    """The file of one image of DATA."""
    written = io.BytesIO()
    Image.fromarray(DATA.pixels[place, 0].numpy()).save(written, "PNG")
    return written.getvalue()


@dataclass
class Running:
    """A service that answers.

    Attributes:
        app: of it.
        server: that runs it.
        port: it listens on.
        client: asks it.
    """

    app: FastAPI
    server: Server
    port: int
    client: httpx.Client


@contextmanager
def running(chain: medfedpure.DefendedClassifier, token: str | None = None, **options: Any) -> Iterator[Running]:
    """A service in a thread; it ends with the block."""
    app = create_app(chain, token=token, **options)
    begun = threading.Event()
    with listen("127.0.0.1", 0, token) as listening:
        server = Server(app, begun.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        port = listening.getsockname()[1]
        thread.start()
        try:
            assert begun.wait(20), "the service did not begin"
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False) as client:
                yield Running(app, server, port, client)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive(), "the service did not end"


def until(true: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for something to become true; it has to."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    assert true(), f"not within {seconds} seconds"


@pytest.fixture(scope="session")
def chain():
    return defence()


@pytest.fixture(scope="module")
def service(chain):
    with running(chain, seed=SEED, made_by="me") as found:
        yield found
