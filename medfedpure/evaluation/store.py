"""Finished rungs of an evaluation on disk, and what tells one defence from another."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy
import torch
from pydantic import BaseModel
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from medfedpure.core.attack import Attack
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.core.results import State
from medfedpure.core.storage import atomic_folder, read_document, read_json, write_document, write_json
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.parallel.memory import forget_peak_memory, peak_memory_mb


class Store:
    """Finished rungs in a folder, or nowhere, and what they took.

    Args:
        out: the folder; None keeps nothing.
        setting: what is evaluated, and how.
        modules: whose device's memory is counted.

    Raises:
        ConfigError: the folder holds an evaluation of something else, or another run's results.
    """

    def __init__(self, out: Path | None, setting: dict[str, Any], modules: Iterable[nn.Module] = ()) -> None:
        self.out, self.modules, self.start = out, list(modules), time.perf_counter()
        self.before: dict[str, Any] = {"seconds": 0.0, "peak_memory_mb": None}
        self.beyond: Callable[[], float | None] = lambda: None  # what other processes of this call have held at most
        forget_peak_memory(self.modules)
        if out is None:
            return
        path = out / "setting.json"
        if path.exists():
            found, wanted = read_json(path), json.loads(json.dumps(setting))
            if not isinstance(found, dict):
                raise ArtifactError(f"{path} holds no setting of an evaluation: choose another folder")
            if found != wanted:
                differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
                raise ConfigError(
                    f"{out} holds another evaluation ({', '.join(differing)} differ): {_advice(differing, found)}"
                )
        else:
            if (out / "results.json").exists() or (out / "config.toml").exists():
                raise ConfigError(f"{out} holds another run's results, which this would replace: choose another folder")
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, setting)
        if (out / "costs.json").exists():
            self.before = read_json(out / "costs.json")

    def costs(self) -> dict[str, Any]:
        """Seconds and peak memory of all calls; of one that was killed, until its last finished rung."""
        found = (self.before["peak_memory_mb"], peak_memory_mb(self.modules), self.beyond())
        peaks = [peak for peak in found if peak is not None]
        seconds = self.before["seconds"] + time.perf_counter() - self.start
        return {"seconds": seconds, "peak_memory_mb": max(peaks, default=None)}

    def load(self, *name: str, room: str = "rungs") -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was kept under a name, or None."""
        if self.out is None or not (path := self._path(name, room)).exists():
            return None
        return read_document(path, kind="evaluation")

    def keep(self, document: dict[str, Any], tensors: dict[str, Tensor], *name: str, room: str = "rungs") -> None:
        """Write it, whole or not at all."""
        if self.out is not None:
            with atomic_folder(self._path(name, room)) as work:
                write_document(work, {"kind": "evaluation", **document}, tensors)
            write_json(self.out / "costs.json", self.costs())

    def forget_parts(self, *name: str) -> None:
        """Remove the chunks that were kept under a name, of what is now kept as a whole."""
        if self.out is not None:
            shutil.rmtree(self._path(name, "chunks"), ignore_errors=True)

    def _path(self, name: Sequence[str], room: str) -> Path:
        assert self.out is not None
        return self.out.joinpath(room, *map(folder_name, name))


def _advice(differing: list[str], found: dict[str, Any]) -> str:
    """What to do where a folder holds another evaluation."""
    if differing == ["threads"]:
        return f"it was begun with {found['threads']}: call torch.set_num_threads, or choose another folder"
    if "versions" in differing:
        return "what other versions began they alone can finish: choose another folder"
    return "choose another folder"


def folder_name(text: str) -> str:
    """A name of any text that every file system takes, and that no other text gets."""
    plain = "".join(c if c.isalnum() else "-" for c in text[:40])
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def digest_of(chain: DefendedClassifier) -> str:
    """SHA-256 of everything that decides what a chain answers."""
    parts = [part for part in (chain.detector, chain.purifier) if part is not None]
    plain: dict[str, Any] = {"policy": chain.policy, "vote": asdict(chain.vote), "classifier": recipe(chain.classifier)}
    if chain.calibration is not None:
        plain["calibration"] = [chain.calibration.target_fpr, chain.calibration.scope]
    if chain.acceleration != Acceleration():
        plain["acceleration"] = asdict(chain.acceleration)
    tensors = {f"classifier.{key}": value for key, value in weights_of(chain.classifier).items()}
    for part in parts:
        state = part.fitted_state() if part.fitted else None
        plain[part.kind] = [
            part.name,
            exactly(part.config),
            None if state is None else exactly(state.values),
        ]
        tensors |= {f"{part.kind}.{key}": value for key, value in ({} if state is None else state.tensors).items()}
    if chain.calibration is not None:
        tensors["calibration"] = chain.calibration.scores
    return digest(tensors, json.dumps(plain, sort_keys=True))


def digest_of_attack(attack: Attack) -> str:
    """SHA-256 of an attack's class, configuration and what it has learned."""
    state = attack.fitted_state() if attack.fitted else State()
    return digest(state.tensors, json.dumps([_kind_of(attack), exactly(attack.config), exactly(state.values)]))


def recipe(module: nn.Module) -> list[Any]:
    """What tensors do not say of a network: the class and the public settings of each of its modules."""
    found = []
    for name, part in module.named_modules():
        settings = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            settings["extra state"] = part.get_extra_state()
        found.append([name, _kind_of(part), exactly(settings)])
    return found


def exactly(value: Any) -> Any:
    """The same for JSON to write, no digit lost: tensors and arrays as digests, what has no values as its type."""
    if isinstance(value, numpy.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BaseModel):
        return [_kind_of(value), exactly(dict(value))]
    if is_dataclass(value) and not isinstance(value, type):
        return [_kind_of(value), exactly({part.name: getattr(value, part.name) for part in fields(value)})]
    if isinstance(value, Mapping):
        return {str(key): exactly(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, list | tuple):
        return [exactly(item) for item in value]
    if isinstance(value, numpy.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(numpy.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    if isinstance(value, Tensor):
        return digest({"": value})
    return str(value) if isinstance(value, torch.dtype | torch.device) else _kind_of(value)


def _kind_of(value: Any) -> str:
    kind = value if isinstance(value, type | FunctionType) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Every tensor of a network, buffers that are not saved with it included."""
    saved = {key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    return {**dict(module.named_buffers()), **saved}


def digest_of_network(module: nn.Module) -> str:
    """SHA-256 of a network's tensors and settings."""
    return digest(weights_of(module), json.dumps(recipe(module)))


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of named tensors and a text, whatever device the tensors are on."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    return hashlib.sha256(text.encode() + save_tensors(plain)).hexdigest()


def recorded_threads(out: Path) -> int | None:
    """What an evaluation that is continued in this folder was begun with; None where there is none."""
    path = out / "setting.json"
    found = read_json(path) if path.is_file() else None
    threads = found.get("threads") if isinstance(found, dict) else None
    return threads if isinstance(threads, int) and threads > 0 else None
