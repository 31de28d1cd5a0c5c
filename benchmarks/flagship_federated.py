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

import medfedpure
from benchmarks.flagship import SPLITS, Bench
from benchmarks.folds import progress
from benchmarks.study.federated import same, trained
from benchmarks.study.how import CPU, EPS
from benchmarks.study.places import opened
from medfedpure.core.storage import write_json
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.versions import versions

FEDERATION = CPU.federations["br35h_fold_0"]
UNITS = tuple(f"{strategy}_{kind}" for strategy in FEDERATION.strategies for kind in FEDERATION.steps)


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
        models = trained(bench, FEDERATION, unit)
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
        steps = FEDERATION.steps[unit.split("_")[1]]
        setting = {"unit": unit, "rounds": FEDERATION.rounds, "steps": steps, "eps": EPS, "size": given.size}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**setting, "clients": clients, "versions": versions()})


if __name__ == "__main__":
    main()
