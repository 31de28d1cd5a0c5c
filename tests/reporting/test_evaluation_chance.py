"""Reports say where a balanced accuracy is no better than guessing."""

from test_evaluation_report import arm, rung

from medfedpure.evaluation.readings import Reading
from medfedpure.evaluation.records import Evaluation
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import conditions
from medfedpure.reporting.evaluation.words import verdict, verdict_benign


def test_what_is_no_better_than_guessing_says_so():
    """Forty images of two classes: all right without an attack, half under one, none under another."""
    labels = [0, 1] * 20

    def said(right):
        flagged = [False] * 40
        verdicts = [label if own else 1 - label for label, own in zip(labels, right, strict=True)]
        return Reading(verdicts=[verdicts], flagged=flagged, purified=flagged, scores=None, nfe=0, ms=1, ece=None)

    half, none = [place % 4 < 2 for place in range(40)], [False] * 40
    rungs = [
        rung("static", eps, said(right), success=[True] * 40, distance=[eps] * 40)
        for eps, right in ((0.1, half), (0.2, none))
    ]
    chain = arm("one", said([True] * 40), rungs).model_copy(update={"bare_wrong": none})
    found = summarize(
        Evaluation(
            setting={"seed": 0},
            data="forty",
            class_names=["plain", "disc"],
            labels=labels,
            groups=list(range(40)),
            norm="linf",
            eps=[0.1, 0.2],
            note="",
            arms=[chain],
            gradients=0,
            seconds=1.0,
            versions={},
        )
    )
    first, second = verdict(found)
    assert "0.50, 95 % interval 0.36 to 0.64, at chance level)" in first
    assert ", below chance level)" in second
    assert "chance" not in verdict_benign(found)
    lines = [line for line in conditions(found) if "chance" in line]
    assert lines == [
        "Balanced accuracy at chance level, 0.50 here, which lies within its interval: 'one' (linf, eps 0.1).",
        "Balanced accuracy below chance level, 0.50 here: 'one' (linf, eps 0.2).",
    ]
