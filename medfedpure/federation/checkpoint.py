"""Where a federated run stands, on the server's disk after every round: tensors and figures, nothing private."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors.torch import save

from medfedpure.core import storage
from medfedpure.core.component import check_types
from medfedpure.core.errors import ArtifactError, FederationError
from medfedpure.core.personalization import Tensors
from medfedpure.federation.records import RoundRecord

_PREFIX = "round-"
_ROUNDS, _REPLIED = TypeAdapter(list[RoundRecord]), TypeAdapter(dict[str, int])


@dataclass(frozen=True)
class SavedRun:
    """A run after some of its rounds.

    Attributes:
        run_id: the number under which the clients keep their private tensors; it outlives a restart.
        finished: whether the outcome of the last round has been evaluated, too.
        shared: the shared tensors.
        replied: by client, the last round in which its update arrived.
        rounds: one document per finished round.
    """

    run_id: int
    finished: bool
    shared: Tensors
    replied: dict[str, int]
    rounds: list[dict[str, Any]]


class RunCheckpoint:
    """A folder with the newest state of one run.

    Args:
        folder: made where it is missing.
        recipe: what decides the run; a checkpoint of another recipe is refused, never mixed in.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        self.folder, self.recipe = folder, json.loads(json.dumps(recipe))

    def read(self) -> SavedRun | None:
        """The newest state, or None where there is none.

        Raises:
            FederationError: it is damaged, or belongs to another run.
        """
        saved = self._saved()
        if not saved:
            return None
        try:
            content, shared = storage.read_document(
                saved[-1], kind="federated_run", keys=("recipe", "run", "finished", "replied", "rounds")
            )
        except ArtifactError as error:
            raise FederationError(f"{error}; or remove {saved[-1]} and start anew") from error
        wanted, found = self.recipe, content["recipe"] if isinstance(content["recipe"], dict) else {}
        different = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        if different:
            raise FederationError(
                f"{self.folder} holds another run (differs in {', '.join(different)}): "
                "choose another folder, or remove this one to start anew"
            )
        try:
            check_types(content, {"run": str, "finished": bool, "replied": dict, "rounds": list}, str(saved[-1]))
            rounds = [_with_numbers(document) for document in content["rounds"]]
            _ROUNDS.validate_python(rounds)
            replied = _REPLIED.validate_python(content["replied"], strict=True)
            return SavedRun(int(content["run"], 16), content["finished"], shared, replied, rounds)
        except (ArtifactError, AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise FederationError(
                f"{saved[-1]} is no state of a run as this version saves it ({type(error).__name__}): restore it, or "
                "remove it and start anew"
            ) from error

    def write(self, saved: SavedRun) -> None:
        """Make this the newest state; it is on disk when this returns."""
        document = {
            "kind": "federated_run",
            "recipe": self.recipe,
            "run": f"{saved.run_id:016x}",
            "finished": saved.finished,
            "replied": saved.replied,
            "rounds": [_with_text(document) for document in saved.rounds],
        }
        before = self._saved()
        self.folder.mkdir(parents=True, exist_ok=True)
        # A folder of its own, so that there is a whole state on disk at every moment.
        name = f"{_PREFIX}{len(saved.rounds):05d}{'-finished' if saved.finished else ''}"
        with storage.atomic_folder(self.folder / name) as work:
            storage.write_document(work, document, saved.shared)
        for old in before:
            if old.name != name:
                shutil.rmtree(old, ignore_errors=True)

    def _saved(self) -> list[Path]:
        return sorted(self.folder.glob(f"{_PREFIX}*"))


def digest_of(tensors: Tensors) -> str:
    """A short name for exactly these values."""
    ordered = {key: tensors[key].detach().cpu().contiguous().clone() for key in sorted(tensors)}
    return hashlib.sha256(save(ordered)).hexdigest()[:16]


def _with_text(document: Mapping[str, Any]) -> dict[str, Any]:
    """A round whose figures survive JSON, which knows neither NaN nor infinity."""
    clients = {
        name: {key: float(value).hex() for key, value in figures.items()}
        for name, figures in document["clients"].items()
    }
    return {**document, "clients": clients}


def _with_numbers(document: Mapping[str, Any]) -> dict[str, Any]:
    clients = {
        name: {key: float.fromhex(value) for key, value in figures.items()}
        for name, figures in document["clients"].items()
    }
    return {**document, "clients": clients}
