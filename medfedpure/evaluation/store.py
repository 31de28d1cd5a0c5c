"""Finished rungs of an evaluation on disk, and what tells one defence from another."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from medfedpure.core.errors import ConfigError
from medfedpure.core.storage import atomic_folder, read_document, write_document, write_json
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.cost import peak_memory_mb


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
        if out is None:
            return
        path = out / "setting.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if found != json.loads(json.dumps(setting)):
                differing = ", ".join(key for key in setting if found.get(key) != setting[key])
                raise ConfigError(f"{out} holds another evaluation ({differing} differ): choose another folder")
        else:
            if (out / "results.json").exists() or (out / "config.toml").exists():
                raise ConfigError(f"{out} holds another run's results, which this would replace: choose another folder")
            out.mkdir(parents=True, exist_ok=True)
            write_json(path, setting)
        if (out / "costs.json").exists():
            self.before = json.loads((out / "costs.json").read_text(encoding="utf-8"))

    def costs(self) -> dict[str, Any]:
        """Seconds and peak memory of all calls; of one that was killed, until its last finished rung."""
        peaks = [peak for peak in (self.before["peak_memory_mb"], peak_memory_mb(self.modules)) if peak is not None]
        seconds = self.before["seconds"] + time.perf_counter() - self.start
        return {"seconds": seconds, "peak_memory_mb": max(peaks, default=None)}

    def load(self, *name: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """What was kept under a name, or None."""
        if self.out is None or not (path := self._path(name)).exists():
            return None
        return read_document(path, kind="evaluation")

    def keep(self, document: dict[str, Any], tensors: dict[str, Tensor], *name: str) -> None:
        """Write it, whole or not at all."""
        if self.out is not None:
            with atomic_folder(self._path(name)) as work:
                write_document(work, {"kind": "evaluation", **document}, tensors)
            write_json(self.out / "costs.json", self.costs())

    def _path(self, name: Sequence[str]) -> Path:
        assert self.out is not None
        return self.out.joinpath("rungs", *map(folder_name, name))


def folder_name(text: str) -> str:
    """A name of any text that every file system takes, and that no other text gets."""
    plain = "".join(c if c.isalnum() else "-" for c in text)
    return f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def digest_of(chain: DefendedClassifier) -> str:
    """SHA-256 of everything that decides what a chain answers."""
    parts = [part for part in (chain.detector, chain.purifier) if part is not None]
    plain: dict[str, Any] = {"policy": chain.policy, "vote": asdict(chain.vote), "classifier": recipe(chain.classifier)}
    plain["calibration"] = None if chain.calibration is None else chain.calibration.describe()
    if chain.acceleration != Acceleration():
        plain["acceleration"] = asdict(chain.acceleration)
    tensors = {f"classifier.{key}": value for key, value in chain.classifier.state_dict().items()}
    for part in parts:
        state = part.fitted_state() if part.fitted else None
        plain[part.kind] = [
            part.name,
            part.config.model_dump(mode="json"),
            None if state is None else dict(state.values),
        ]
        tensors |= {f"{part.kind}.{key}": value for key, value in ({} if state is None else state.tensors).items()}
    if chain.calibration is not None:
        tensors["calibration"] = chain.calibration.scores
    return digest(tensors, json.dumps(plain, sort_keys=True, default=str))


def recipe(module: nn.Module) -> list[Any]:
    """What tensors do not say of a network: the class and the plain settings of each of its modules."""
    found = []
    for name, part in module.named_modules():
        settings = {
            key: value
            for key, value in vars(part).items()
            if not key.startswith("_") and key != "training" and isinstance(value, bool | int | float | str | tuple)
        }
        found.append([name, f"{type(part).__module__}.{type(part).__qualname__}", dict(sorted(settings.items()))])
    return found


def digest_of_network(module: nn.Module) -> str:
    """SHA-256 of a network's tensors and settings."""
    return digest(module.state_dict(), json.dumps(recipe(module), default=str))


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of named tensors and a text, whatever device the tensors are on."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    return hashlib.sha256(text.encode() + save_tensors(plain)).hexdigest()
