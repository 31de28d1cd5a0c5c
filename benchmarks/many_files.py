"""`medfedpure predict` over very many files: `python -m benchmarks.many_files --files 10000 --out DIR --result JSON`.

Pictures, DICOM and NIfTI of eleven kinds are drawn from a seed, one in a hundred spoilt. A small defence, whose
purifier draws noise, reads them with a seed

- in one go, its resident memory looked at ten times a second: flat within a tenth after a tenth of the rows;
- killed twice at moments that are drawn, and gone on with: every row once, and as in one go;
- by decoding alone, predicting alone and `predict_files` in turns, of 500 files each: the seconds of the first two
  over those of the third, of which .8 are wanted;
- with `--engine ray` on two workers: the same rows.

Each stage keeps its JSON in DIR and is not done again. Rows are compared within 1e-5 of every number that is computed,
for batches are made up otherwise after a kill; all else is equal. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import medfedpure
from benchmarks.many_files_made import make_files
from benchmarks.many_files_watched import Watched, compared, flatness, once, rows_of, watch
from medfedpure.core.errors import DataError, MissingExtraError
from medfedpure.core.storage import write_json
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.versions import versions
from medfedpure.verdicts.ahead import decoded
from medfedpure.verdicts.decoding import FileDecoder, Frames
from medfedpure.verdicts.predict import predict_files

ROOT = Path(__file__).parents[1]
SIZE, BATCH, TURN = 64, 64, 500
SHARE = 0.8
"""Of the speed that decoding and predicting one after the other would have."""
KILLS = 2


@dataclass
class Bench:
    """Where and of what.

    Attributes:
        out: its folder.
        files: how many.
        seed: of files, defence, kills and noise.
    """

    out: Path
    files: int
    seed: int

    @cached_property
    def made(self) -> list[dict[str, Any]]:
        """What was written: see `Made`."""
        found: list[dict[str, Any]] = json.loads((self.out / "made.json").read_text(encoding="utf-8"))["files"]
        return found

    @property
    def wanted(self) -> dict[str, int]:
        """Rows by the name of a file in a row."""
        return {f"files/{one['name']}": one["images"] for one in self.made}

    def once(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """See `many_files_watched.once`."""
        return once(rows, self.wanted, {f"files/{one['name']}" for one in self.made if one["broken"]})

    def predict(self, name: str, *words: str, kill_at: int | None = None) -> Watched:
        """The command over all files, its rows in NAME.jsonl."""
        command = [sys.executable, "-m", "medfedpure", "predict", "guarded", "files", "--out", f"{name}.jsonl"]
        command += ["--seed", str(self.seed), "--batch-size", str(BATCH), "--threads", "1", "--quiet", *words]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        seen = watch(command, self.out, self.out / f"{name}.jsonl", self.out / f"{name}.log", kill_at)
        if seen.status != 0 and kill_at is None:
            told = (self.out / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"predict ended with status {seen.status}: {told[-2000:]}")
        return seen


def guarded(bench: Bench) -> DefendedClassifier:
    """A small network on phantoms, and a defence of it that learns nothing but a threshold, and draws noise."""
    data = medfedpure.create("dataset", "phantom", {"images": 500, "image_size": SIZE, "seed": bench.seed}).read()
    parts = data.split({"train": 0.4, "benign": 0.6}, seed=bench.seed)
    architecture = medfedpure.create("classifier", "small_cnn", widths=(8, 16))
    model = architecture.create_model(in_channels=1, num_classes=2, image_size=SIZE)
    config = medfedpure.TrainingConfig(steps=60, batch_size=16)
    medfedpure.train(model, medfedpure.ClassificationTask(), parts["train"], config, seed=bench.seed)
    return medfedpure.defend(
        model, parts["benign"], detector="feature_squeezing", purifier="smoothing", check_share=0, seed=bench.seed
    )


def make(bench: Bench) -> dict[str, Any]:
    """The files and the defence."""
    made = make_files(bench.out / "files", bench.files, bench.seed)
    guarded(bench).save(bench.out / "guarded")
    return {
        "files": [asdict(one) for one in made],
        "images": sum(one.images for one in made if one.broken is None),
        "megabytes": round(sum(one.size for one in made) / 1e6, 1),
        "kinds": dict(Counter(one.kind for one in made)),
        "corrupt": dict(Counter(one.broken for one in made if one.broken)),
    }


def whole(bench: Bench) -> dict[str, Any]:
    """In one go."""
    (bench.out / "whole.jsonl").unlink(missing_ok=True)
    seen = bench.predict("whole")
    rows = rows_of(bench.out / "whole.jsonl")
    told = {"flagged": sum(bool(row["flagged"]) for row in rows), "rows": bench.once(rows)}
    return {**speed(seen, bench), **told, "memory_mib": flatness(seen.looks, sum(bench.wanted.values()))}


def killed(bench: Bench) -> dict[str, Any]:
    """Killed at rows that are drawn, and gone on with."""
    (bench.out / "killed.jsonl").unlink(missing_ok=True)
    drawn, due = random.Random(bench.seed), sum(bench.wanted.values())  # noqa: S311 - no secret
    ends = []
    for place in range(KILLS):
        share = (place + drawn.random()) / (KILLS + 0.5)
        seen = bench.predict("killed", kill_at=max(1, round(share * due)))
        ends.append({"rows": seen.looks[-1][2], "status": seen.status, "seconds": round(seen.seconds, 1)})
    bench.predict("killed")
    rows = rows_of(bench.out / "killed.jsonl")
    return {"kills": ends, "rows": bench.once(rows), "as_in_one_go": compared(rows, rows_of(bench.out / "whole.jsonl"))}


def on_ray(bench: Bench) -> dict[str, Any]:
    """With two workers of a cluster of this machine."""
    (bench.out / "ray.jsonl").unlink(missing_ok=True)
    seen = bench.predict("ray", "--engine", "ray", "--devices", "cpu,cpu")
    rows = rows_of(bench.out / "ray.jsonl")
    found = {"workers": 2, "ray": version("ray"), **speed(seen, bench), "rows": bench.once(rows)}
    found["driver_memory_mib"] = flatness(seen.looks, sum(bench.wanted.values()))
    return {**found, "as_in_one_go": compared(rows, rows_of(bench.out / "whole.jsonl"))}


def rates(bench: Bench) -> dict[str, Any]:
    """Decoding alone, predicting alone and both as `predict_files` does it, in turns of one process."""
    torch.set_num_threads(1)
    medfedpure.keep_freed_memory()
    chain = DefendedClassifier.load(bench.out / "guarded")
    assert chain.image_facts is not None
    decoder = FileDecoder(chain.image_facts)
    files = [bench.out / "files" / one["name"] for one in bench.made]
    turns: list[dict[str, float]] = []
    folder = bench.out / "turns"
    folder.mkdir(exist_ok=True)
    for place, few in enumerate(files[begin : begin + TURN] for begin in range(0, len(files), TURN)):
        out = folder / f"{place}.jsonl"
        out.unlink(missing_ok=True)
        turn: dict[str, float] = {}
        held: list[torch.Tensor] = []

        def decode(few: list[Path] = few, held: list[torch.Tensor] = held) -> None:
            with closing(decoded(few, decoder.read, None, 2 * BATCH)) as found:
                for _, frames in found:
                    held.extend(_images(frames))

        def both(few: list[Path] = few, out: Path = out) -> None:
            predict_files(chain, few, out, format="jsonl", seed=bench.seed, batch_size=BATCH)

        def predict(held: list[torch.Tensor] = held) -> None:
            for begin in range(0, len(held), BATCH):
                chain.predict(torch.stack(held[begin : begin + BATCH]), seed=bench.seed, batch_size=BATCH).rows()

        calls: list[tuple[str, Callable[[], None]]] = [("decode", decode), ("predict", predict), ("both", both)]
        for name, call in calls if place % 2 else [calls[2], *calls[:2]]:
            start, busy = time.perf_counter(), time.process_time()
            call()
            turn[name] = time.perf_counter() - start
            turn[f"{name}_processor"] = time.process_time() - busy
        turns.append({**turn, "files": len(few), "images": len(held)})
    total = {key: sum(turn[key] for turn in turns) for key in turns[0]}
    share = [(turn["decode"] + turn["predict"]) / turn["both"] for turn in turns]
    wall = (total["decode"] + total["predict"]) / total["both"]
    return {
        "turns": len(turns),
        "files_per_second_decoding": round(total["files"] / total["decode"], 1),
        "images_per_second_predicting": round(total["images"] / total["predict"], 1),
        "files_per_second_both": round(total["files"] / total["both"], 1),
        "share": round(wall, 3),
        "share_of_turns": {
            "median": round(statistics.median(share), 3),
            "least": round(min(share), 3),
            "most": round(max(share), 3),
        },
        "share_of_processor_time": round(
            (total["decode_processor"] + total["predict_processor"]) / total["both_processor"], 3
        ),
        "wanted": SHARE,
        "holds": wall >= SHARE,
    }


def _images(found: Frames | DataError | MissingExtraError) -> list[torch.Tensor]:
    if isinstance(found, MissingExtraError):
        raise found
    return [found.image(place) for place in range(len(found))] if isinstance(found, Frames) else []


def speed(seen: Watched, bench: Bench) -> dict[str, float]:
    """Of a whole command, its start with it."""
    return {
        "seconds": round(seen.seconds, 1),
        "seconds_before_the_first_row": next(at for at, _, rows in seen.looks if rows),
        "files_per_second": round(bench.files / seen.seconds, 1),
    }


STAGES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "made": make,
    "whole": whole,
    "killed": killed,
    "rates": rates,
    "ray": on_ray,
}


def main() -> None:
    """Do the stages that are not done, and write what all of them found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True, help="folder of files, rows and stages; goes on with it")
    parser.add_argument("--result", type=Path, required=True, help="the JSON file")
    parser.add_argument("--only", nargs="+", choices=tuple(STAGES), default=list(STAGES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bench = Bench(given.out.resolve(), given.files, given.seed)
    bench.out.mkdir(parents=True, exist_ok=True)
    document: dict[str, Any] = {
        "files": bench.files,
        "seed": bench.seed,
        "batch": BATCH,
        "device": f"CPU, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "processors": os.cpu_count(),
        "threads": 1,
        "versions": {**versions(), **{name: version(name) for name in ("pillow", "pydicom", "nibabel")}},
    }
    for name in (name for name in STAGES if name in given.only):
        path = bench.out / f"{name}.json"
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if other := [key for key in ("files", "seed") if found["of"][key] != document[key]]:
                parser.error(f"{path} was made with other {' and '.join(other)}: name another --out")
            print(f"{name}: done before", flush=True)
        else:
            load, start = os.getloadavg()[0], time.perf_counter()
            found = STAGES[name](bench)
            found |= {"of": {"files": bench.files, "seed": bench.seed, "load": round(load, 2)}}
            write_json(path, found)
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        told = {key: value for key, value in found.items() if key not in ("of", "files")}
        document[name] = {**told, "load": found["of"]["load"]}
    given.result.parent.mkdir(parents=True, exist_ok=True)
    write_json(given.result, document)


if __name__ == "__main__":
    main()
