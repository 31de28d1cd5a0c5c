"""The units of the study, in order of worth: each keeps one JSON file, and goes on where it was cut off. On one core
each takes an hour or less, but for ladders of chains that draw noise.

Only the federations need Flower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import measure
from benchmarks.study.bench import ARMS, DETERMINISTIC, Bench
from benchmarks.study.how import EPS, START, How
from benchmarks.study.places import PLACES
from medfedpure.core.storage import write_json
from medfedpure.evaluation.versions import versions

TRAINED = ("plain", "robust", "robust_long")
CHOICE = ("robust", "paper", "purify_all", "robust_chain", "robust_purify_all")
"""Arms that are compared on validation groups, those of the recipe `robust` and of `paper`; the mix was made there."""


@dataclass(frozen=True)
class Unit:
    """One thing to do.

    Attributes:
        place: where, one of PLACES.
        kind: train, static, ladder, choose, federate, clients or insiders.
        what: a classifier, an arm, or a strategy and what its clients train.
        needs: names of units of this place that come first.
    """

    place: str
    kind: str
    what: str
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Within its place."""
        return f"{self.kind}_{self.what}"

    @property
    def key(self) -> str:
        """Of this unit alone."""
        return f"{self.place}/{self.name}"

    def path(self, results: Path, how: How) -> Path:
        """Its JSON file."""
        return results / how.name / self.place / f"{self.name}.json"


def catalog(how: How) -> list[Unit]:
    """All units, those that the page needs most first."""
    folds = [f"br35h_fold_{number}" for number in how.folds]
    diffusion = tuple(name for name in ARMS if name not in DETERMINISTIC)
    found: list[Unit] = []
    for place in folds:
        found += _trainings(place)
        found += _measured(place, ("undefended", "robust", "median", "mixed"))
        found += [Unit(place, "train", "denoiser", ("train_plain",)), *_measured(place, ("tuned",))]
        found += [unit for unit in _measured(place, diffusion) if unit.kind == "static"]
    ladders = [unit for place in folds for unit in _measured(place, diffusion) if unit.kind == "ladder"]
    found += [unit for unit in ladders if unit.what != "voted"]
    for place in ("pneumoniamnist", "brain4_fold_0"):
        found += [*_trainings(place, TRAINED[:2]), *_measured(place, ("undefended", "robust_short"))]
    found += [*_trainings("br35h_leaking"), *_measured("br35h_leaking", ("undefended", "robust"))]
    found += _measured(folds[0], ("robust_short",))
    for place, federation in how.federations.items():
        whats = [f"{strategy}_{kind}" for kind in federation.steps for strategy in federation.strategies]
        for what in sorted(whats, key=lambda name: name != START):
            first = () if what.endswith("plain") else (f"federate_{START}",)
            found.append(Unit(place, "federate", what, first))
            found += [Unit(place, kind, what, (f"federate_{what}",)) for kind in ("clients", "insiders")]
    needs = {unit.key: unit.needs for unit in found}
    # Against attackers who know it a vote takes five times what `paper` takes: last, and for whoever has a GPU.
    voted = [unit for unit in ladders if unit.what == "voted"]
    return [*found, *(Unit(folds[0], "choose", name, needs[f"{folds[0]}/static_{name}"]) for name in CHOICE), *voted]


def _trainings(place: str, names: Iterable[str] = TRAINED) -> list[Unit]:
    found: list[Unit] = []
    for name in names:
        found.append(Unit(place, "train", name, tuple(unit.name for unit in found[-1:])))
    return found


def _measured(place: str, arms: Iterable[str]) -> list[Unit]:
    found = []
    for name in arms:
        reader = ARMS[name][0]
        if name == "mixed":
            found.append(Unit(place, "train", "mixed", ("train_plain", "train_robust_long")))
        if name == "tuned":
            found.append(Unit(place, "train", "tuned", ("train_plain", "train_denoiser")))
        needs = (f"train_{reader}", *(() if name in DETERMINISTIC else ("train_denoiser",)))
        found += [Unit(place, kind, name, needs) for kind in ("static", "ladder")]
    return found


@dataclass(frozen=True)
class Study:
    """Where everything is.

    Attributes:
        data: folder of data sets.
        out: keeps models and finished attacks.
        results: keeps JSON.
    """

    how: How
    data: Path
    out: Path
    results: Path
    seed: int
    say: Callable[[str], None]

    def done(self, unit: Unit) -> bool:
        """Whether its JSON is there."""
        return unit.path(self.results, self.how).exists()

    def folder(self, unit: Unit) -> Path:
        """What is trained of its place."""
        return self.out / self.how.name / unit.place

    def begun(self, unit: Unit) -> bool:
        """Whether an earlier try left something to go on from: its seconds are not those of a whole one."""
        if unit.kind in ("train", "federate"):
            return (self.folder(unit) / f"{unit.what}_checkpoint").exists()
        kept = {"ladder": unit.what, "choose": unit.name, "clients": f"{unit.what}_client_0"}
        return unit.kind in kept and (self.folder(unit) / "evaluations" / kept[unit.kind]).exists()

    def do(self, unit: Unit) -> None:
        """Train or measure, and write the JSON.

        Raises:
            SystemExit: what it needs is not done.
        """
        units = {other.key: other for other in catalog(self.how)}
        missing = [name for name in unit.needs if not self.done(units[f"{unit.place}/{name}"])]
        if missing:
            raise SystemExit(f"{unit.key} needs {', '.join(missing)} of {unit.place}: do these first")
        whole, place = not self.begun(unit), PLACES[unit.place]
        parts = place.parts(self.data, self.how, self.seed)
        bench = Bench(parts, self.folder(unit), self.seed, self.say, self.how, place.turns, device())
        path = unit.path(self.results, self.how)
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        found = _DO[unit.kind](bench, unit)
        seconds = time.perf_counter() - began
        write_json(path.parent / "images.json", measure.images_of(bench))
        head = {"unit": unit.key, "size": self.how.name, "seed": self.seed, "seconds": round(seconds, 1)}
        write_json(path, {**head, "whole": whole, "device": _machine(), **found, "versions": versions()})


def _train(bench: Bench, unit: Unit) -> dict[str, Any]:
    if unit.what == "denoiser":
        purifier: Any = bench.purifier()
        return {"parameters": sum(value.numel() for value in purifier.network.parameters())}
    model = bench.classifier(unit.what)
    if unit.what == "mixed":
        return {"chosen": model.architecture.config.model_dump(mode="json")["chosen"]}
    if unit.what == "tuned":
        return {"steps": bench.how.tuning}
    return {"steps": bench.how.recipes[unit.what].steps}


def _static(bench: Bench, unit: Unit) -> dict[str, Any]:
    return measure.static(bench, bench.arm(unit.what))


def _ladder(bench: Bench, unit: Unit) -> dict[str, Any]:
    chain, how = bench.arm(unit.what), bench.how
    if unit.what in DETERMINISTIC:
        return measure.ladder(bench, unit.what, chain, how.bare, how.curve)
    return measure.ladder(bench, unit.what, chain, how.ladder, (EPS,))


def _choose(bench: Bench, unit: Unit) -> dict[str, Any]:
    return measure.ladder(bench, unit.name, bench.arm(unit.what), bench.how.ladder, (EPS,), bench.parts["validation"])


def _federate(bench: Bench, unit: Unit) -> dict[str, Any]:
    from benchmarks.study import federated

    federation = _federation(bench, unit)
    federated.trained(bench, federation, unit.what)
    dealt = federated.divided(bench, federation, "train")
    sizes = {
        name: [len(part), *part.labels.bincount(minlength=part.num_classes).tolist()] for name, part in dealt.items()
    }
    return {"clients": sizes, "rounds": federation.rounds, "steps": federation.steps[unit.what.split("_")[1]]}


def _clients(bench: Bench, unit: Unit) -> dict[str, Any]:
    from benchmarks.study import federated

    return federated.clients(bench, _federation(bench, unit), unit.what)


def _insiders(bench: Bench, unit: Unit) -> dict[str, Any]:
    from benchmarks.study import federated

    federation = _federation(bench, unit)
    models = federated.trained(bench, federation, unit.what)
    return measure.transfers(bench, models, federated.divided(bench, federation, "test"))


def _federation(bench: Bench, unit: Unit) -> Any:
    return bench.how.federations[unit.place]


_DO: Mapping[str, Callable[[Bench, Unit], dict[str, Any]]] = {
    "train": _train,
    "static": _static,
    "ladder": _ladder,
    "choose": _choose,
    "federate": _federate,
    "clients": _clients,
    "insiders": _insiders,
}


def device() -> torch.device:
    """Where this machine computes."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _machine() -> str:
    """The same in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
