"""`predict --engine ray`: files dealt by Ray Data to one worker a device, here or on a cluster that is there.

What travels are names of files and rows. A worker loads the defence and reads files by itself, so both lie where every
worker finds them. Where one dies, workers are started anew for the files that have no answer yet: of what a worker had
not handed over whole, nothing was kept.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from medfedpure.core.errors import ConfigError, DataError, MedFedPureError, MissingExtraError
from medfedpure.data.readers.pseudonyms import Pseudonyms
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.parallel.jobs import devices_of, threads_of
from medfedpure.training.allocator import keep_freed_memory
from medfedpure.verdicts.ahead import decoded
from medfedpure.verdicts.decoding import FileDecoder
from medfedpure.verdicts.engine import Answer, Asked, How
from medfedpure.verdicts.listening import Judged
from medfedpure.verdicts.predict import verdicts

DEATHS = 3
"""How often workers may die without an answer in between: a file that ends its worker would do so for ever."""
SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_worker_niceness": "0",
}
"""Against what Ray sends, rebuilds and says by itself, and workers that give way to all else; an environment that
already decides has its way."""
_STORE = 200 * 2**20
"""Bytes for names and rows under way, in a cluster that is started here."""


@dataclass(frozen=True)
class RayEngine:
    """An `Engine` of workers in a Ray cluster.

    Attributes:
        load: gives the defence, in each worker; it travels, as a function that can be imported does.
        devices: a worker for each: ("cpu", "cpu") or ("cuda:0", "cuda:1"). On a cluster that is there Ray chooses the
            GPUs, and only their number counts.
        address: of a cluster, as Ray names it; by default RAY_ADDRESS, else one is started here and ended again.

    Raises:
        ConfigError: no such devices, or one GPU twice.
        MissingExtraError: Ray Data is not installed.
    """

    load: Callable[[], DefendedClassifier]
    devices: Sequence[str] = ("cpu",)
    address: str | None = None

    def __post_init__(self) -> None:
        named = [torch.device(name) for name in devices_of(list(self.devices), None)]
        if named[0].type not in ("cpu", "cuda") or (named[0].type == "cuda" and len(set(named)) < len(named)):
            raise ConfigError(
                f"workers of Ray are on the CPU, or on a GPU each, such as cuda:0,cuda:1; got {', '.join(self.devices)}"
            )
        if lacking := [name for name in ("ray", "pyarrow", "pandas") if importlib.util.find_spec(name) is None]:
            raise MissingExtraError(
                f"the engine ray needs {', '.join(lacking)}: pip install 'medfedpure[ray]'; the local engine needs none"
            )

    def answers(self, asked: Sequence[Asked], how: How) -> Generator[Sequence[Answer], None, None]:
        """See `Engine`. ConfigError: the cluster is not reached, or has fewer processors or GPUs than devices."""
        if not asked:
            return
        for name, value in SWITCHES.items():
            os.environ.setdefault(name, value)
        import ray.data  # sets its own logging up

        gpu = torch.device(self.devices[0]).type == "cuda"
        done, deaths = 0, 0
        with self._cluster(gpu), _quiet():
            while done < len(asked):
                try:
                    for answers in self._dealt(asked[done:], how, gpu):
                        done, deaths = done + len(answers), 0
                        yield answers
                except ray.exceptions.RayError as error:
                    deaths += 1
                    if deaths == DEATHS or _raised(error) is not None:
                        raise _told(error) from error

    def _dealt(self, asked: Sequence[Asked], how: How, gpu: bool) -> Iterator[Sequence[Answer]]:
        import ray.data

        workers = len(self.devices)
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.raise_original_map_exception = True
        a_block = max(1, min(how.batch_size, -(-len(asked) // workers)))
        items = [{"asked": packed(one)} for one in asked]
        with ray.data.DataContext.current(context):
            said = ray.data.from_items(items, override_num_blocks=-(-len(asked) // a_block)).map_batches(
                Worker,
                batch_size=None,
                compute=ray.data.ActorPoolStrategy(size=workers),
                fn_constructor_args=(
                    self.load,
                    how,
                    "cuda" if gpu else "cpu",
                    threads_of(None, workers),
                    str(Path.cwd()),
                ),
                num_cpus=1,
                num_gpus=1 if gpu else 0,
                max_restarts=0,
            )
            for block in said.iter_batches(batch_size=None, batch_format="numpy"):
                yield [unpacked(text) for text in block["answer"]]

    @contextmanager
    def _cluster(self, gpu: bool) -> Iterator[None]:
        """One to work on, with room for the workers; what was there before stays."""
        import ray

        before = ray.is_initialized()
        if not before:
            address = self.address or os.environ.get("RAY_ADDRESS") or "local"
            wanted: dict[str, Any] = {"address": address, "log_to_driver": False, "logging_level": logging.ERROR}
            if address == "local":
                wanted |= {"num_cpus": len(self.devices), "include_dashboard": False, "object_store_memory": _STORE}
            try:
                _knock(address)
                with only_these(self.devices) if gpu and address == "local" else nullcontext():
                    ray.init(**wanted)
            except (OSError, ValueError, RuntimeError) as error:
                raise ConfigError(f"no Ray cluster at {address!r} ({error}): start one, or name none") from error
        try:
            kind = "GPU" if gpu else "CPU"
            there = ray.cluster_resources().get(kind, 0)
            if there < len(self.devices):
                raise ConfigError(
                    f"the cluster has {there:g} {kind}s, {len(self.devices)} devices are named: name fewer"
                )
            yield
        finally:
            if not before:
                ray.shutdown()


class Worker:
    """What judges files, in a process of Ray's.

    Args:
        load: gives the defence.
        how: to judge.
        device: "cpu" or "cuda", which is the GPU that Ray gave.
        threads: of torch.
        folder: where relative names lead from.
    """

    def __init__(
        self, load: Callable[[], DefendedClassifier], how: How, device: str, threads: int, folder: str
    ) -> None:
        self._load, self._how, self._device, self._threads, self._folder = load, how, device, threads, folder

    @cached_property
    def _speaker(self) -> tuple[DefendedClassifier, FileDecoder]:
        """Loaded with the first block: of what is raised sooner, Ray hands nothing but the text over."""
        os.chdir(self._folder)
        torch.set_num_threads(self._threads)
        keep_freed_memory()
        chain, how = self._load().to(self._device), self._how
        assert chain.image_facts is not None
        names = None if how.key_file is None else Pseudonyms.from_file(how.key_file)
        return chain, FileDecoder(chain.image_facts, names, how.shown)

    def __call__(self, block: dict[str, Any]) -> dict[str, list[str]]:
        """The answers to a block of files, in their order; see `RayEngine`."""
        given = [json.loads(text) for text in block["asked"]]
        asked = [Asked(Path(one["path"]), frozenset(one["done"])) for one in given]
        return {"answer": [json.dumps(asdict(one)) for one in judge(*self._speaker, asked, self._how)]}


def packed(asked: Asked) -> str:
    """A file as it travels: in ASCII, whatever bytes are in its name."""
    return json.dumps({"path": str(asked.path), "done": sorted(asked.done)})


def unpacked(text: str) -> Answer:
    """An answer as it came."""
    return Answer(**json.loads(text))


def judge(chain: DefendedClassifier, decoder: FileDecoder, asked: Sequence[Asked], how: How) -> list[Answer]:
    """An answer for each file, in order; files are decoded beside the computing.

    Args:
        chain: that speaks.
        decoder: of the files.
        asked: files, and which of their images need no row.
        how: to judge.
    """
    answers = [Answer() for _ in asked]
    owners: list[int] = []

    def images() -> Iterator[Judged]:
        paths = [one.path for one in asked]
        with closing(decoded(paths, decoder.read, how.workers, 2 * how.batch_size)) as found:
            for place, (path, frames) in enumerate(found):
                if isinstance(frames, MissingExtraError):
                    answers[place] = Answer(lacking=str(frames))
                elif isinstance(frames, DataError):
                    owners.append(place)
                    yield Judged.unread(path, frames)
                else:
                    answers[place] = Answer(dim=frames.dim)
                    for frame in (frame for frame in range(len(frames)) if frame not in asked[place].done):
                        owners.append(place)
                        yield Judged(path, frame, frames)

    left = images()
    while batch := list(islice(left, how.batch_size)):
        _, rows = verdicts(chain, batch, how.seed, how.target_fpr)
        for owner, row in zip(owners, rows, strict=True):
            answers[owner].rows.append(row)
        owners.clear()
    return answers


@contextmanager
def only_these(devices: Sequence[str]) -> Iterator[None]:
    """Show Ray, while it starts here, the GPUs that are named and no others. ConfigError: one is not shown to us."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    places = [torch.device(name).index or 0 for name in devices]
    if before is not None:
        seen = before.split(",")
        if hidden := [name for name, place in zip(devices, places, strict=True) if place >= len(seen)]:
            raise ConfigError(f"{hidden[0]} is not there: CUDA_VISIBLE_DEVICES is {before!r}")
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seen[place] for place in places)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, places))
    try:
        yield
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _knock(address: str) -> None:
    """OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data tells of its plans, and whole traces, on the terminal: what went wrong is told in words."""
    log = logging.getLogger("ray.data")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _raised(error: BaseException | None) -> BaseException | None:
    """What a worker raised by itself; None where it was ended."""
    while error is not None:
        if not type(error).__module__.startswith("ray."):
            return error
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _told(error: Exception) -> MedFedPureError:
    """Our own error of a worker as it was raised there, any other in a sentence."""
    raised = _raised(error)
    if isinstance(raised, MedFedPureError):
        return raised
    last = (str(raised or error).strip().splitlines() or [""])[-1]
    return MedFedPureError(
        f"the workers of Ray ended before the last file ({type(raised or error).__name__}: {last}); rows that were "
        "written are kept, and the same call goes on"
    )
