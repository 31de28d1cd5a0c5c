"""Which noise predictor restores most for its cost: `python -m benchmarks.unet_size --data FOLDER --size 64 UNIT...`

A unit is a network by its name: `u4_64_128` = unshuffle 4, widths 64 and 128; `_a` = attention at the coarsest level.
Every one is trained alike, as `ddpm` up to timestep 150, on the training groups of fold 0 of `benchmarks.flagship`, and
purifies all images of the groups that are kept to validate and to calibrate; the test part is not looked at. As they
are, and under the paper's static attack on a plain EfficientNet-Lite0. One JSON a unit, not done twice.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

import medfedpure
from benchmarks.flagship import PAPER, SPLITS, Bench, counted, opened
from benchmarks.folds import progress
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.storage import write_json
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.versions import versions

DRAWS = 3
"""Of the purifier's noise, each counted."""


def network(unit: str) -> dict[str, Any]:
    """The options of a noise predictor from its name."""
    fold, *rest = unit.removeprefix("u").split("_")
    widths = [int(word) for word in rest if word != "a"]
    return {"unshuffle": int(fold), "widths": widths, "attention": rest[-1] == "a"}


def trained(unit: str, bench: Bench, steps: int, batch_size: int) -> Purifier:
    """Trained once."""
    folder = bench.out / unit
    if not folder.exists():
        training = {"steps": steps, "batch_size": batch_size, "learning_rate": 1e-3, "ema": 0.995}
        made: Any = medfedpure.create("purifier", "ddpm", t_max=150, model=network(unit), training=training)
        context = ScoreContext(checkpoint=bench.out / f"{unit}_checkpoint")
        made.fit(bench.parts["train"], context=context, seed=bench.seed).save(folder)
    return Purifier.load(folder)


def million_macs(purifier: Purifier, images: torch.Tensor) -> float:
    """Multiplications and additions of one evaluation of one image, in millions."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        purifier.predict_noise(images[:1], torch.full((1,), 100.0))  # type: ignore[operator]
    return counter.get_total_flops() / 2e6


def measured(bench: Bench, purifier: Purifier) -> dict[str, Any]:
    """Clean and attacked, everything purified, each draw of the noise."""
    held = ImageDataset.concatenate([bench.parts["validation"], bench.parts["calibrate"]])
    classifier = bench.classifier("plain")
    attack: Any = medfedpure.create("attack", "pgd", **PAPER)
    found = attack(classifier, held.images, held.labels, streams=Streams(bench.seed, held.ids))
    chain = DefendedClassifier(classifier, purifier=purifier, policy="purify_all")
    bare = DefendedClassifier(classifier, policy="none")
    draws = [bench.seed + draw for draw in range(DRAWS)]
    said = {
        name: counted([chain.predict(images, ids=held.ids, seed=seed).labels for seed in draws], held)
        for name, images in (("clean", held.images), ("restored", found.images))
    }
    return {
        "attack": found.description,
        "gradient": "of the bare classifier (static), EoT 1",
        "bare_clean": counted([bare.predict(held).labels], held),
        "bare_attacked": counted([bare.predict(found.images, ids=held.ids).labels], held),
        **said,
    }


def main() -> None:
    """Do the units that are named and are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("units", nargs="+", metavar="UNIT")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("runs", "unet_size"))
    parser.add_argument("--results", type=Path, default=Path("benchmarks", "results", "unet_size"))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    medfedpure.keep_freed_memory()
    say, where = progress(), f"{given.data.name}_{given.size}"
    data = opened(given.data, given.size)
    bench = Bench(SPLITS["fold_0"](data, given.seed), given.out / where, given.seed, say)
    for unit in given.units:
        path = given.results / where / f"{unit}.json"
        if path.exists():
            say(f"{path} is there")
            continue
        purifier = trained(unit, bench, given.steps, given.batch_size)
        document = {
            "unit": unit,
            "network": network(unit),
            "steps": given.steps,
            "batch_size": given.batch_size,
            "million_macs": million_macs(purifier, data.batch(torch.arange(1)).images),
            **measured(bench, purifier),
            "versions": versions(),
        }
        say(f"{unit}: {document['million_macs']:.0f} million MACs, {document['restored']['draws']}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)


if __name__ == "__main__":
    main()
