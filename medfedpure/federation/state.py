"""Private tensors on the disk of the client that owns them.

They are written before the reply is sent, because Flower sends a client's context after its reply
and may lose it. Every round has its own pair of files, so that a client whose reply was lost can
return to the round that the server knows of.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from medfedpure.core import storage
from medfedpure.core.errors import ArtifactError, FederationError
from medfedpure.core.personalization import Tensors

FORMAT = 1
_BEST = "best"


class StaleStateError(FederationError):
    """The private tensors on a client's disk are not those the server expects."""


@dataclass(frozen=True)
class BestState:
    """The personal model that a client's validation images called best.

    Attributes:
        round: after which it was so.
        worth: by `Task.worth`.
        tensors: all of the model.
    """

    round: int
    worth: tuple[float, ...]
    tensors: Tensors


class PrivateStore:
    """The private tensors of one client in one run.

    Args:
        state_dir: folder of all runs; created where it is missing.
        run_id: Flower's number of the run.
        client_id: the client's name.
        strategy: name of the personalization strategy; another strategy's state is refused.
    """

    def __init__(self, state_dir: Path, run_id: int, client_id: str, strategy: str) -> None:
        self.run_id, self.client_id, self.strategy = run_id, client_id, strategy
        self.folder = state_dir / f"run-{run_id:016x}" / client_id

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes off this state; raises ArtifactError where one is at it."""
        self._make_parent()
        with storage.locked(self.folder, f"client {self.client_id} at work"):
            yield

    def write(self, round: int, tensors: Tensors, *, confirmed: int) -> str:
        """Write the state of a round and return its SHA-256; it is on disk when this returns.

        Args:
            round: the round that produced the tensors.
            tensors: any tensors by name.
            confirmed: the last round that the server knows of; older states are removed.
        """
        self._make_parent()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        data = save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        document = {**self._identity(round), "sha256": digest}
        # Tensors first: the document makes them valid, so a crash between the two leaves no half state.
        storage.write_bytes(self._tensors(round), data, mode=0o600)
        storage.write_bytes(self._document(round), (json.dumps(document, indent=2) + "\n").encode(), mode=0o600)
        self._flush_folder()
        self._forget_before(confirmed)
        return digest

    def read(self, round: int, *, sha256: str | None = None) -> Tensors:
        """The state of a round; {} for round 0, before the first participation.

        Args:
            round: the round in which the server last heard of this client.
            sha256: what the client remembers of that state, where it remembers anything.

        Raises:
            StaleStateError: missing, of another round, run, client or strategy, or damaged.
        """
        if round == 0:
            return {}
        path = self._document(round)
        try:
            document = storage.read_json(path)
            data = self._tensors(round).read_bytes()
        except (OSError, ArtifactError) as error:
            raise StaleStateError(
                f"client {self.client_id} has no readable private state of round {round} in {self.folder} ({error}): "
                "restore the folder, or start a new run"
            ) from error
        digest = hashlib.sha256(data).hexdigest()
        wanted = {**self._identity(round), "sha256": sha256 or digest}
        wrong = [key for key in wanted if not isinstance(document, dict) or document.get(key) != wanted[key]]
        if wrong or document["sha256"] != digest:
            raise StaleStateError(
                f"{path} is not the private state of client {self.client_id} after round {round} "
                f"(differs in {', '.join(wrong) or 'sha256'}): restore the folder, or start a new run"
            )
        try:
            return dict(load(data))
        except SafetensorError as error:
            raise StaleStateError(f"{self._tensors(round)} is not a safetensors file: {error}") from error

    def offer(self, round: int, worth: Sequence[float], tensors: Tensors) -> None:
        """Keep a personal model if it is worth more than that of every round before; not finite, it never is."""
        before = self.best(round - 1)
        if not all(map(math.isfinite, worth)) or (before is not None and tuple(worth) <= before.worth):
            return
        self._make_parent()
        self.folder.mkdir(mode=0o700, exist_ok=True)
        data = save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
        digest = hashlib.sha256(data).hexdigest()
        # Under a name of its own, so that a crash between the two leaves the best so far.
        storage.write_bytes(self.folder / f"{_BEST}-{round:05d}.safetensors", data, mode=0o600)
        document = {**self._identity(round), "kind": "best_state", "worth": list(worth), "sha256": digest}
        text = (json.dumps(document, indent=2) + "\n").encode()
        storage.write_bytes(self.folder / f"{_BEST}.json", text, mode=0o600)
        self._flush_folder()
        for path in self.folder.glob(f"{_BEST}-*.safetensors"):
            if path.stem != f"{_BEST}-{round:05d}":
                path.unlink(missing_ok=True)

    def best(self, last: int) -> BestState | None:
        """The best personal model of the rounds to `last`; None where there is none.

        Raises:
            StaleStateError: it is damaged, or another run's, client's or strategy's.
        """
        path = self.folder / f"{_BEST}.json"
        if not path.exists():
            return None
        try:
            document = storage.read_json(path)
            round, worth = int(document["round"]), tuple(map(float, document["worth"]))
            data = (self.folder / f"{_BEST}-{round:05d}.safetensors").read_bytes()
            wanted = {**self._identity(round), "kind": "best_state", "sha256": hashlib.sha256(data).hexdigest()}
            wrong = [key for key in wanted if document.get(key) != wanted[key]]
            tensors = {} if wrong else dict(load(data))
        except (OSError, ArithmeticError, ArtifactError, LookupError, TypeError, ValueError, SafetensorError) as error:
            raise StaleStateError(
                f"{path} is not readable ({error!r}): restore {self.folder}, or start anew"
            ) from error
        if wrong:
            raise StaleStateError(
                f"{path} is not the best state of client {self.client_id} in this run (differs in {', '.join(wrong)}): "
                f"restore {self.folder}, or start anew"
            )
        return BestState(round, worth, tensors) if round <= last else None

    def _make_parent(self) -> None:
        self.folder.parent.parent.mkdir(parents=True, exist_ok=True)
        self.folder.parent.mkdir(mode=0o700, exist_ok=True)

    def _identity(self, round: int) -> dict[str, int | str]:
        return {
            "kind": "private_state",
            "format": FORMAT,
            "run": f"{self.run_id:016x}",
            "client": self.client_id,
            "strategy": self.strategy,
            "round": round,
        }

    def _document(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.json"

    def _tensors(self, round: int) -> Path:
        return self.folder / f"round-{round:05d}.safetensors"

    def _flush_folder(self) -> None:
        """Make the renames themselves durable, where the system can."""
        if os.name != "posix":
            return
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _forget_before(self, confirmed: int) -> None:
        for path in self.folder.glob("round-*.*"):
            if int(path.stem.removeprefix("round-")) < confirmed:
                path.unlink(missing_ok=True)
