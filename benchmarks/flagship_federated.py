"""The flagship's fold over three clients: `python -m benchmarks.flagship_federated --data FOLDER UNIT...`

A unit is a strategy, plain or robust: fedavg_plain, fedavg_robust, fedper_plain, ... All clients together take as many
steps as the pooled training of `benchmarks.flagship` that has the same name: plain from ImageNet weights, robust from
the network that `fedavg_plain` gave all of them, as the pooled one starts from `plain`. Every client's model is tested
on the whole test part of the fold. Units keep their rounds under --out and go on from there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.flagship import AUGMENTATION, EPS, PGD5, SPLITS, TRAINING, Bench, built, opened
from benchmarks.folds import progress
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.storage import write_json
from medfedpure.core.streams import derive_seed
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.versions import versions
from medfedpure.federation import Site, federate
from medfedpure.training.classification import ClassificationTask

CLIENTS, ROUNDS, STEPS = 3, 5, {"plain": 170, "robust": 150}
STRATEGIES = ("fedavg", "fedper", "fedrep", "mixture", "local")
UNITS = tuple(f"{strategy}_{kind}" for strategy in STRATEGIES for kind in STEPS)
START = "fedavg_plain"


def trained(bench: Bench, unit: str) -> dict[str, ClassifierModel]:
    """Every client's model."""
    folder = bench.out / unit
    if not folder.exists():
        strategy, kind = unit.split("_")
        data = bench.parts["train"]
        sites = [Site(f"client_{place}", own) for place, own in enumerate(data.partition(CLIENTS, seed=bench.seed))]
        config: dict[str, Any] = {"adversarial": PGD5} if kind == "robust" else {}
        start = trained(bench, START)["client_0"] if kind == "robust" else None

        def made() -> ClassifierModel:
            model = built(data, bench.seed, None if start else "imagenet")
            if start is not None:
                model.load_state_dict(start.state_dict())
                model.origin = start.origin
            return model

        result = federate(
            sites,
            make_model=made,
            task=ClassificationTask(AUGMENTATION, label_smoothing=0.1),
            strategy=medfedpure.create("personalization", strategy, config),
            training=TRAINING.model_copy(update={"steps": STEPS[kind], "ema": 0.98}),
            rounds=ROUNDS,
            seed=derive_seed(bench.seed, "flagship", unit),
            state_dir=bench.out / f"{unit}_state",
            checkpoint=bench.out / f"{unit}_checkpoint",
            name=unit,
        )
        for client, model in result.models.items():
            model.save(folder / client)  # type: ignore[operator]
    return {path.name: ClassifierModel.load(path) for path in sorted(folder.iterdir())}


def same(one: ClassifierModel, other: ClassifierModel) -> bool:
    """Whether two clients hold the same network, as under FedAvg: it is attacked once."""
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[key], others[key]) for key in own)


def main() -> None:
    """Do the units that are named and are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="*", metavar="UNIT", help=", ".join(UNITS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--preset", default="", help="of the ladder; without one, clean and the paper's attack only")
    parser.add_argument("--out", type=Path, default=Path("runs", "flagship"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "flagship"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    medfedpure.keep_freed_memory()
    unknown = sorted(set(given.units) - set(UNITS))
    if unknown:
        raise SystemExit(f"no unit is named {', '.join(unknown)}; the units are {', '.join(UNITS)}")
    say = progress()
    data = opened(given.data, given.size)
    where = f"fold_0_{given.size}"
    bench = Bench(SPLITS["fold_0"](data, given.seed), given.out / where, given.seed, say)
    for unit in given.units:
        path = given.results / f"federated_{where}" / f"{unit}.{given.preset or 'static'}.json"
        if path.exists():
            say(f"{path} is there")
            continue
        clients: dict[str, Any] = {}
        models = trained(bench, unit)
        for client, model in models.items():
            twin = next((other for other in clients if same(models[other], model)), None)
            if twin is not None:
                clients[client] = clients[twin]
                continue
            chain = DefendedClassifier(model, policy="none")
            clients[client] = {"clean": bench.clean(chain), "paper": bench.paper(chain)}
            if given.preset:
                clients[client]["ladder"] = bench.worst(f"{unit}_{client}", chain, given.preset)
            say(f"{unit}, {client}: clean {clients[client]['clean']['balanced']:.3f}")
        setting = {"unit": unit, "rounds": ROUNDS, "steps": STEPS[unit.split("_")[1]], "eps": EPS, "size": given.size}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**setting, "clients": clients, "versions": versions()})


if __name__ == "__main__":
    main()
