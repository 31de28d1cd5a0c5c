"""What runs and reports say of findings, whichever classes those are."""

from __future__ import annotations

import json

import numpy
import pytest
from PIL import Image

from medfedpure.evaluation.readings import Reading
from medfedpure.evaluation.records import ArmResult, Evaluation
from medfedpure.job.config import RunConfig
from medfedpure.job.run import run_job
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import columns, conditions, summary_csv
from medfedpure.reporting.job.table import markdown

LABELS = [0, 0, 1, 1, 2, 2]


def evaluation(positive: list[int] | None, verdicts: tuple[int, ...]) -> Evaluation:
    """One defence on six benign images of three classes."""
    reading = Reading(
        verdicts=[list(verdicts)], flagged=[False] * 6, purified=[False] * 6, scores=None, nfe=0.0, ms=1.0, ece=0.1
    )
    arm = ArmResult(
        name="it",
        policy="none",
        parts="",
        stochastic=False,
        bare_wrong=[False] * 6,
        clean=reading,
        rungs=[],
        checks=[],
        unreliable=[],
    )
    return Evaluation(
        setting={"seed": 0},
        data="three",
        class_names=["cyst", "normal", "tumour"],
        positive=positive,
        labels=LABELS,
        groups=list(range(6)),
        norm="linf",
        eps=[],
        note="a look",
        arms=[arm],
        gradients=0,
        seconds=1.0,
        versions={},
    )


def test_a08_a_report_counts_any_finding_and_every_class():
    """A8: another finding is a finding; each class has its recall; the last class stands in for nothing."""
    summary = summarize(evaluation([0, 2], (0, 2, 1, 2, 2, 1)))
    line = summary.line("it", None)
    assert (line.sensitivity, line.specificity) == (0.75, 0.5)
    assert line.recalls == {"cyst": 0.5, "normal": 0.5, "tumour": 0.5}
    assert [column.title for column in columns(summary)][2:7] == [
        "sens.",
        "spec.",
        "recall cyst",
        "recall normal",
        "recall tumour",
    ]
    assert "any finding ('cyst', 'tumour')" in " ".join(conditions(summary))
    assert "recall tumour" in summary_csv(summary).splitlines()[0]


def test_a08_a_report_without_a_finding_has_no_sensitivity():
    """A8: where no class is known to be a finding nothing is made up; results of version 0.1 are read as they were."""
    summary = summarize(evaluation([], (0, 0, 1, 1, 2, 2)))
    assert (summary.line("it", None).sensitivity, summary.anchor.sensitivity) == (None, None)
    assert "sens." not in [column.title for column in columns(summary)]
    assert "there is no sensitivity" in " ".join(conditions(summary))
    assert summarize(evaluation(None, (0, 0, 1, 1, 2, 0))).line("it", None).sensitivity == 0.5


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("cyst", "no_finding", "tumour"), "recall of any of 'cyst', 'tumour'"),
        (("CNV", "DME", "DRUSEN"), "no sensitivity: no class is named as no finding"),
    ],
)
def test_a08_a_run_of_three_classes_ends_with_each_ones_recall(tmp_path, names, words):
    """A8: with three classes; a figure that there is none of is null in results.json, where NaN ended the run."""
    generator = numpy.random.default_rng(0)
    for place, name in enumerate(names):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(60):
            pixels = generator.integers(0, 100, (16, 16), dtype=numpy.uint8) + numpy.uint8(50 * place)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{number:02}.png")
    folder = {"root": str(tmp_path / "images"), "image_size": 16, "groups": "none"}
    config = {
        "data": {"plugin": "image_folder", "config": folder, "clients": 1, "train": 0.4, "calibrate": 0.3},
        "classifier": {
            "plugin": "small_cnn",
            "config": {"widths": [4]},
            "strategy": {"plugin": "local"},
            "rounds": 1,
            "training": {"steps": 2, "batch_size": 8},
        },
        "purifier": {"plugin": "median"},
        "detector": {"plugin": "feature_squeezing"},
        "attack": {"plugin": "fgsm"},
    }
    job = run_job(RunConfig.parse(config), tmp_path / "out", say=lambda _: None)
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    arm = stored["clients"][0]["bare"]
    assert set(arm["clean_recalls"]) == set(names)
    assert (arm["clean_sensitivity"] is None) == ("no sensitivity" in words)
    text = markdown(job.result)
    assert words in text
    assert f"bare: clean recall of {names[0]}" in text
