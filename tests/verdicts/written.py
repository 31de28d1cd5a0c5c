"""A tiny defence, and the rows that it wrote."""

import csv
import json

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


def rows_of(path):
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))
