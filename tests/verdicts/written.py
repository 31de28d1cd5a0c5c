"""A tiny defence, and the rows that it wrote."""

import csv
import json

from PIL import Image

import medfedpure
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(60, size=16)


def defence(data=DATA, channels=1, **options):
    made = medfedpure.DefendedClassifier(
        tiny_classifier(16, channels),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "smoothing"),
        **options,
    )
    return made.calibrate(data, 0.3, seed=1)


def pictures(folder, count):
    """A folder of so many scans, named by their places in as many digits as the last one needs."""
    folder.mkdir()
    for place, pixels in enumerate(DATA.pixels[:count]):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{place:0{len(str(count - 1))}}.png")
    return folder


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
