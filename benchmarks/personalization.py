"""What each federated strategy is for, measured: `python -m benchmarks.personalization --out DIR`.

Every regime (benchmarks/personalization_regimes.py) is a situation, fixed beforehand, in which a strategy should beat
its anchors: FedAvg, training alone, and always answering with one class. Whole federated runs in this process, one
for each strategy and seed; figures are of each client's personal model on test images of its own scanner, balanced by
label. What was measured is kept in DIR, and a run that was cut off goes on there. The exit status is 1 where a claim
does not hold: it is reported, never hidden.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import medfedpure
from benchmarks.personalization_regimes import REGIMES, Arm, Regime
from benchmarks.personalization_table import markdown, missed
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.storage import write_bytes, write_json
from medfedpure.core.streams import Streams
from medfedpure.federation import Site, federate
from medfedpure.figures.metrics import classification_figures

BATCH = 128


def balanced_accuracy(model: nn.Module, data: ImageDataset, attack: Any = None) -> float:
    """Of a model on a data set; under a static attack that sees exactly this model, where one is given."""
    verdicts = []
    for batch in data.batches(BATCH):
        images = batch.images
        if attack is not None:
            images = attack(model, images, batch.labels, streams=Streams(0, batch.ids)).images
        with torch.no_grad():
            verdicts.append(model(images).argmax(1))
    return classification_figures(torch.cat(verdicts), data.labels, data.num_classes).balanced_accuracy


def measure(regime: Regime, arm: Arm, sites: list[Site], seed: int) -> dict[str, Any]:
    """One federated run: by client, balanced accuracy on its test images, and on its attacked ones."""
    began = time.perf_counter()
    result = federate(
        [Site(site.client_id, site.train) for site in sites],
        make_model=lambda: regime.make_model(arm, seed),
        task=regime.task,
        strategy=medfedpure.create("personalization", arm.strategy, **arm.options),
        training=regime.training,
        rounds=regime.rounds,
        seed=seed,
    )
    failures = [failed for record in result.history for failed in record.failed.values()]
    if failures or result.missing:
        raise SystemExit(f"{arm.strategy}: clients failed: {failures or result.missing}")
    attack = None if regime.attack is None else medfedpure.create("attack", "pgd", **regime.attack)
    figures: dict[str, dict[str, float]] = {"benign": {}, "attacked": {}}
    for site in sites:
        assert site.validation is not None
        model = result.models[site.client_id]
        figures["benign"][site.client_id] = balanced_accuracy(model, site.validation)
        if attack is not None:
            figures["attacked"][site.client_id] = balanced_accuracy(model, site.validation, attack)
    return {**figures, "seconds": time.perf_counter() - began}


def recipe(regime: Regime, arm: Arm, sites: list[Site]) -> str:
    """What decides a result: it is measured again where this changes."""
    data = [[site.train.fingerprint(), site.validation.fingerprint()] for site in sites if site.validation]
    settings = [regime.training.model_dump(), regime.rounds, regime.widths, regime.attack, regime.task.recipe()]
    content = json.dumps([data, settings, vars(arm)], default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def main() -> int:
    """Measure what is not there yet, print the tables, return 0 where every claim holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs", "personalization"), help="keeps what was measured")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--regimes", nargs="+", choices=list(REGIMES), default=list(REGIMES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text, holds = [], True
    for name in arguments.regimes:
        regime, runs = REGIMES[name], []
        for seed in arguments.seeds:
            sites, found = regime.sites(seed), {}
            for label, arm in regime.arms.items():
                path = arguments.out / name / f"{label} {seed}.json"
                wanted = recipe(regime, arm, sites)
                kept = json.loads(path.read_text()) if path.is_file() else {}
                if kept.get("recipe") != wanted:
                    kept = {"recipe": wanted, **measure(regime, arm, sites, seed)}
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_json(path, kept)
                print(f"  {name}, seed {seed}, {label}: {kept['seconds']:.0f} s", file=sys.stderr, flush=True)
                found[label] = kept
            runs.append(found)
        text.append(markdown(name, regime, arguments.seeds, runs))
        holds &= not missed(regime, runs)
    page = "\n".join(text)
    print(page)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_bytes(arguments.out / "personalization.md", page.encode())
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
