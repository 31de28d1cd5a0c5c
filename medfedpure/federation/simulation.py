"""The same apps in Flower's simulation engine: every client message in a Ray worker process."""

from __future__ import annotations

import contextvars
import importlib.util
import logging
import os
import random
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from medfedpure.core import storage
from medfedpure.core.errors import FederationError, MissingExtraError
from medfedpure.core.personalization import Scalar
from medfedpure.data.stored import read_images, write_images
from medfedpure.federation.client import ClientSide, make_client_app
from medfedpure.federation.grid import Tap, TappedGrid, acting_as_server
from medfedpure.federation.records import Site
from medfedpure.federation.server import RoundLoop


@dataclass(frozen=True)
class StoredSites:
    """The sites of a simulation, read by each worker from disk when it first needs them.

    Flower pickles the client app into every message, so the app must not hold the images.
    """

    folders: tuple[Path, ...]

    def __call__(self, node_config: Mapping[str, Scalar]) -> Site:
        """The site of a node, by its `partition-id`."""
        return _read_site(self.folders[int(node_config["partition-id"])])


def store_sites(sites: Sequence[Site], folder: Path) -> StoredSites:
    """Write every site into a folder of its own."""
    folders = []
    for place, site in enumerate(sites):
        target = folder / str(place)
        target.mkdir(mode=0o700)
        (target / "site").mkdir()
        parts = {"train": site.train, "validation": site.validation}
        for name, data in parts.items():
            if data is not None:
                (target / name).mkdir()
                write_images(target / name, data)
        storage.write_document(target / "site", {"kind": "site", "client": site.client_id})
        folders.append(target)
    return StoredSites(tuple(folders))


@lru_cache(maxsize=16)
def _read_site(folder: Path) -> Site:
    site, _ = storage.read_document(folder / "site", kind="site")
    validation = read_images(folder / "validation") if (folder / "validation").is_dir() else None
    return Site(site["client"], read_images(folder / "train"), validation)


def simulate(side: ClientSide, sites: Sequence[Site], loop: RoundLoop, tap: Tap | None = None) -> None:
    """Run a loop with one simulated node per site.

    Ray is started with as many CPUs as there are (no more than the clients can use) and shut down
    at the end.

    Raises:
        MissingExtraError: Ray is not installed.
        FederationError: Ray runs already in this process, does not start, or the loop failed.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("runtime='simulation' needs Ray: pip install 'medfedpure[simulation]'")
    import ray
    from flwr.simulation import run_simulation

    if ray.is_initialized():
        raise FederationError(
            "Ray already runs in this process, and the simulation would shut it down: call ray.shutdown() first"
        )
    cancelled = threading.Event()
    loop.cancelled = cancelled
    outcome: list[BaseException] = []
    threads = min(side.threads, _cpus())
    with tempfile.TemporaryDirectory(prefix="medfedpure-sites-") as folder:
        app = make_client_app(replace(side, site_of=store_sites(sites, Path(folder))))
        try:
            with _undisturbed(), acting_as_server(0):
                run_simulation(
                    server_app=_server_app(loop, outcome, tap),
                    client_app=app,
                    num_supernodes=len(sites),
                    backend_config={
                        "client_resources": {"num_cpus": threads, "num_gpus": loop.side.config.gpus_per_client},
                        "init_args": {
                            "num_cpus": min(_cpus(), threads * len(sites)),
                            "include_dashboard": False,
                            "log_to_driver": False,
                            "logging_level": logging.ERROR,
                        },
                    },
                )
        except RuntimeError as error:
            raise FederationError(
                f"Flower's simulation engine failed ({error}): its log names the reason, "
                "and runtime='in_process' runs without it"
            ) from error
        finally:
            cancelled.set()
            if ray.is_initialized():
                ray.shutdown()
    if outcome:
        raise outcome[0]


def _server_app(loop: RoundLoop, outcome: list[BaseException], tap: Tap | None) -> ServerApp:
    """The loop in the thread that Flower gives it, with this thread's progress listener.

    What it raises is kept for the caller: Flower would wait for a context that never comes.
    """
    surroundings = contextvars.copy_context()
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        try:
            surroundings.run(loop.run, grid if tap is None else TappedGrid(grid, tap), context)
        except Exception as error:
            outcome.append(error)

    app.main()(main)
    return app


def _cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what Flower and Ray do to the process: environment, and Python's random state."""
    environment, state = dict(os.environ), random.getstate()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        yield
    finally:
        random.setstate(state)
        for key in os.environ.keys() - environment.keys():
            del os.environ[key]
        os.environ.update(environment)


class _NoDeprecation(logging.Filter):
    """Drops Flower's notes that its Python entry point is deprecated; there is no successor in Python."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "DEPRECATED FEATURE" not in str(record.msg)


@contextmanager
def quiet_flower() -> Iterator[None]:
    """Only warnings and errors of Flower's logger inside the block."""
    logger, dropped = logging.getLogger("flwr"), _NoDeprecation()
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.addFilter(dropped)
    try:
        yield
    finally:
        logger.removeFilter(dropped)
        logger.propagate = propagate
        logger.setLevel(level)
