"""Results show themselves in a line, and as a table."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from chains import DATA, chain_of

from medfedpure import DefendedClassifier, create
from medfedpure.core.errors import ArtifactError
from medfedpure.testing import tiny_classifier


def test_a_prediction_is_one_line() -> None:
    found = chain_of().predict(DATA, seed=0)
    text = repr(found)
    assert "\n" not in text
    first = int((found.labels == 0).sum())
    assert text.startswith(f"Prediction of 30 images: {first} {DATA.class_names[0]}, ")
    assert [row["class"] for row in found.rows()] == [DATA.class_names[label] for label in found.labels]
    unnamed = replace(found, class_names=())
    assert repr(unnamed).startswith(f"Prediction of 30 images: {first} of class 0, ")
    assert "class" not in unnamed.rows()[0]
    assert f"{int(found.flagged.sum())} flagged" in text


def test_an_attack_is_one_line() -> None:
    result = create("attack", "pgd_eot", steps=2)(tiny_classifier(), DATA.images, DATA.labels)
    assert repr(result).startswith(f"AttackResult: {int(result.success.sum())} of 30 images fool, pgd_eot: norm linf")
    assert len(result) == 30


def test_a_prediction_as_a_table(tmp_path: Path) -> None:
    found = chain_of().predict(DATA, seed=0)
    found.to_csv(tmp_path / "verdicts.csv")
    with (tmp_path / "verdicts.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["label"]) for row in rows] == found.labels.tolist()
    assert [float(row["score"]) for row in rows] == pytest.approx(found.scores.tolist())
    assert [row["flagged"] == "True" for row in rows] == found.flagged.tolist()
    wanted = {"image", "probability_0", "probability_1", "p_value", "strength", "purified", "abstained", "nfe"}
    assert wanted <= set(rows[0])


def test_without_a_detector_there_is_no_score() -> None:
    median = create("purifier", "median")
    found = DefendedClassifier(tiny_classifier(), purifier=median, policy="purify_all").predict(DATA.images[:2])
    assert not {"score", "p_value"} & set(found.rows()[0])


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        chain_of().predict(DATA, seed=0).to_csv(tmp_path)
