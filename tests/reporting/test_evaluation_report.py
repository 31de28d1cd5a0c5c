"""The report of an evaluation: figures by hand, every robust number beside its threat, nothing unescaped."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch

from medfedpure.evaluation.readings import Reading
from medfedpure.evaluation.records import ArmResult, Evaluation, RungResult
from medfedpure.reporting.charts import roc
from medfedpure.reporting.evaluation.gallery import heat, png
from medfedpure.reporting.evaluation.page import page
from medfedpure.reporting.evaluation.summary import summarize
from medfedpure.reporting.evaluation.table import conditions, markdown, results_csv, summary_csv, terminal_table
from medfedpure.reporting.evaluation.words import verdict, verdict_benign, weakest_point

EVIL = "<script>alert('x')</script> | chain"
SCHEMA = Path(__file__).parents[2] / "docs" / "reference" / "evaluation.schema.json"
LABELS = [0, 0, 1, 1]


def reading(*draws, scores=None, flagged=(False,) * 4):
    return Reading(
        verdicts=[list(draw) for draw in draws],
        flagged=list(flagged),
        purified=list(flagged),
        scores=scores,
        nfe=2.0,
        ms=5.0,
        ece=0.1,
    )


def rung(name, eps, answer, *, kind="white-box", success=(True,) * 4, distance=None, **more):
    words = {"static": "static: attacker ignores the defence", "exact": "exact: gradient of the whole chain"}
    view = words.get(name.split(",")[0], "black-box: answers of the chain")
    if name.startswith("transfer"):
        view = "transfer: crafted on client_9"
    return RungResult(
        rung=name,
        kind=kind,
        norm="linf",
        eps=eps,
        view="none" if kind == "control" else view,
        attack=f"pgd_eot: norm linf, eps {eps:g}, step 0.01, steps 17, eot 3, restarts 2",
        eot=3,
        seconds=1.0,
        reading=answer,
        success=list(success),
        distance=[eps] * 4 if distance is None else list(distance),
        **more,
    )


def arm(name, clean, rungs, *, policy="purify_flagged", checks=(), unreliable=()):
    return ArmResult(
        name=name,
        policy=policy,
        parts="",
        stochastic=True,
        bare_wrong=[False] * 4,
        clean=clean,
        rungs=list(rungs),
        checks=list(checks),
        unreliable=list(unreliable),
    )


@pytest.fixture(scope="module")
def evaluation():
    """Two defences, four images of four groups, two eps; every figure below is counted by hand."""
    bare = arm(
        "undefended",
        reading([0, 0, 1, 1]),
        [rung("static", eps, reading([1, 1, 1, 0]), kind="replayed") for eps in (0.1, 0.2)],
        policy="none",
    )
    benign = reading([0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 1], scores=[0.1, 0.2, 0.3, 0.4])
    first = reading([0, 1, 1, -1], [0, 0, 1, -1], [1, 0, 1, -1], scores=[0.9, 0.0, 0.9, 0.9], flagged=[True] * 4)
    second = reading([0, 0, -1, -1], [0, 0, 1, 1], [0, 0, 1, 1], scores=[0.5] * 4)
    noise = reading([1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], scores=[0.2] * 4)
    chain = arm(
        EVIL,
        benign,
        [
            rung("exact", 0.1, first, success=(True, True, False, True), distance=(0.1, 0.1, 0.1, 0.0)),
            rung("square", 0.1, second, kind="black-box"),
            rung("transfer from client_9", 0.1, benign, kind="replayed"),
            rung("surrogate", 0.1, None, skipped="no shorter purifier"),
            rung("joint", 0.1, noise, problem="budget violated"),
            rung("uniform noise", 0.1, noise, kind="control", success=(), distance=()),
            rung("bpda", 0.2, None, skipped="there is none"),
        ],
        checks=[rung("exact, half eps", 0.05, benign), rung("exact, large eps", 0.5, noise)],
        unreliable=["gradients are masked <b>here</b>"],
    )
    return Evaluation(
        setting={"preset": {"name": "quick", "images": 4}, "seed": 5},
        data="four & <more>",
        class_names=["plain", "disc"],
        labels=LABELS,
        groups=[0, 1, 2, 3],
        norm="linf",
        eps=[0.1, 0.2],
        note="a quick look, NOT a robustness claim",
        arms=[bare, chain],
        gradients=1234,
        seconds=60.0,
        versions={"medfedpure": "0"},
    )


@pytest.fixture(scope="module")
def summary(evaluation):
    return summarize(evaluation)


def test_worst_case_is_per_image_over_attacks(summary):
    line = summary.line(EVIL, 0.1)
    assert line.attacks == ["exact", "square", "transfer from client_9"], "control, skipped and problem do not count"
    # image 0 right in all; 1 fooled by exact; 2 refused by square only; 3 refused, but fooled by the transfer
    assert (line.right, line.fooled, line.withheld) == (1, 2, 1)
    assert line.balanced.value == pytest.approx(0.25)
    assert line.coverage == pytest.approx(0.75)
    assert (line.sensitivity, line.specificity) == (0.0, 0.5)
    assert (line.weakest, line.weakest_right) == ("exact", 2)


def test_abstaining_is_fooled_only_where_a_wrong_answer_is_accepted(summary):
    rows = {row.rung: row for row in summary.rungs if row.arm == EVIL}
    assert (rows["square"].right, rows["square"].fooled, rows["square"].coverage) == (2, 0, 0.5)
    assert (rows["exact"].right, rows["exact"].fooled) == (2, 1)


def test_draws(summary):
    line = summary.line(EVIL, 0.1)
    assert line.worst_of_draws.value == 0.0, "exact breaks image 0 in one draw of three"
    # majority: 0 and 1 right everywhere; 2 right everywhere; 3 refused by exact in every draw
    assert line.majority_of_draws.value == pytest.approx(0.75)
    assert summary.line(EVIL, None).majority_of_draws.value == 1.0


def test_differences_are_paired(summary):
    line = summary.line(EVIL, 0.1)
    bare = summary.line("undefended", 0.1)
    assert line.difference.value == pytest.approx(line.balanced.value - bare.balanced.value)
    assert line.difference.low <= line.difference.value <= line.difference.high
    assert bare.difference is None


def test_an_eps_without_a_counted_attack_has_no_figure(summary):
    line = summary.line(EVIL, 0.2)
    assert line.balanced is None
    assert line.difference is None
    assert "no attack" in verdict(summary)[1]


def test_detector_figures_are_of_changed_and_beaten_images(summary):
    rows = {row.rung: row for row in summary.rungs if row.arm == EVIL}
    # image 2 was not beaten, image 3 not changed: scores 0.9 and 0.0 against 0.1 ... 0.4
    assert (rows["exact"].scored, rows["exact"].auroc, rows["exact"].tpr_at_1_fpr) == (2, 0.5, 0.5)
    assert rows["exact"].flagged == 1.0
    assert rows["uniform noise"].scored == 4
    assert rows["exact, half eps"].role == "check"
    assert rows["joint"].role == "problem"
    assert rows["surrogate"].note == "no shorter purifier"


def test_equal_threats_share_a_letter_and_none_has_none(summary):
    notes = [text for text in conditions(summary) if text.startswith("(")]
    assert [text[:3] for text in notes] == ["(a)", "(b)"]
    assert "eps 0.1 and eps 0.2: 1 attack" in notes[0]
    assert "per image the worst of 3 attacks" in notes[1]


def test_expected_robustness_is_the_mean_of_the_curve_and_stands_with_its_range(summary):
    bare = [summary.line("undefended", eps) for eps in (None, 0.1, 0.2)]
    clean, first, second = (line.balanced.value for line in bare)
    assert bare[0].expected is None
    assert bare[1].expected.value == pytest.approx((clean + first) / 2)
    assert bare[2].expected.value == pytest.approx((clean + 2 * first + second) / 4)
    lows = [line.balanced.low for line in bare]
    assert bare[2].expected.low == pytest.approx((lows[0] + 2 * lows[1] + lows[2]) / 4)
    assert summary.line(EVIL, 0.2).expected is None, "no attack of that size counted"
    (note,) = [text for text in conditions(summary) if text.startswith("Expected:")]
    assert "norm linf" in note
    assert "eps 0 (benign), 0.1, 0.2" in note
    assert "| expected |" in markdown(summary)
    row = next(row for row in csv.DictReader(io.StringIO(summary_csv(summary))) if row["eps"] == "0.2")
    assert float(row["expected"]) == pytest.approx(bare[2].expected.value)


def test_majority_class_is_an_anchor(summary):
    assert (summary.anchor.balanced, summary.anchor.accuracy) == (0.5, 0.5)
    assert "majority class" in markdown(summary)


def test_verdict_is_plain_words(summary):
    text = verdict(summary)[0]
    assert text.startswith("Not to be relied on: Against an attacker who knows everything")
    assert "every pixel by up to 0.1" in text
    assert "1 of 4 images" in text
    assert "2 are misread and 1 refused" in text
    assert "Undefended: 1 of 4" in text
    assert "3 of 4" in verdict_benign(summary)
    assert weakest_point(summary, 0.1).startswith("the attack 'exact' alone leaves 2 of 4")


def test_no_robust_number_stands_without_its_threat(evaluation, summary):
    wanted = ("linf", "eps 0.1", "pgd_eot", "steps 17", "restarts 2", "EoT 3", "exact", "NOT a robustness claim")
    for name, text in (
        ("markdown", markdown(summary)),
        ("page", page(evaluation)),
        ("conditions", "\n".join(conditions(summary))),
        ("threat", summary.line(EVIL, 0.1).threat + summary.note),
    ):
        plain = text.replace("\\", "")
        for words in wanted:
            assert words in plain, f"{name} lacks {words!r}"


def test_rounding_is_said(evaluation, summary):
    assert "bfloat16" not in markdown(summary) + page(evaluation)
    arms = [evaluation.arms[0], evaluation.arms[1].model_copy(update={"precision": "bfloat16"})]
    rounded = evaluation.model_copy(update={"arms": arms})
    for text in (markdown(summarize(rounded)), page(rounded)):
        assert "Computed in bfloat16" in text


def test_each_attack_alone_stands_under_the_table(summary):
    text = markdown(summary).partition("Right of 4 under each attack alone, norm linf")[2]
    heads, _, *rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert heads[2:] == ["transfer from client\\_9", "static", "exact", "square", "uniform noise"]
    assert rows[0] == ["0.1", "undefended", "-", "1", "-", "-", "-"]
    assert rows[1][-5:] == ["3 (0.00)", "-", "2 (1.00)", "2 (0.00)", "0 (0.00)"]
    assert rows[3][-5:] == ["-"] * 5


def test_csv_lines_carry_their_threat(summary):
    lines = list(csv.DictReader(io.StringIO(results_csv(summary))))
    assert len(lines) == 2 + 9
    for line in lines:
        assert line["norm"] == "linf"
        assert "steps 17" in line["attack"]
        assert line["view"]
        assert line["eot"] == "3"
        assert "NOT a robustness claim" in line["note"]
    attacked = [line for line in csv.DictReader(io.StringIO(summary_csv(summary))) if line["eps"]]
    assert len(attacked) == 4
    assert "EoT 3" in attacked[0]["threat"]
    assert attacked[1]["unreliable"].startswith("gradients are masked")
    assert float(attacked[1]["balanced_low"]) <= float(attacked[1]["balanced"])


def test_page_escapes_everything_and_needs_no_network(evaluation):
    text = page(evaluation)
    assert "<script" not in text
    assert "<b>here</b>" not in text
    assert "four &amp; &lt;more&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "src=" not in text, "no gallery was passed in, so nothing is loaded"


def test_unreliable_is_loud_everywhere(evaluation, summary):
    for text in (page(evaluation), markdown(summary)):
        assert "UNRELIABLE" in text
        assert "gradients are masked" in text
    assert text.index("UNRELIABLE") < text.index("benign images")


def test_terminal_table_marks_and_escapes(summary):
    from rich.console import Console

    for width in (90, 200):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(terminal_table(summary, width))
        text = console.export_text()
        assert "UNRELIABLE" in text
        assert "majority class" in text


def test_roc_by_hand():
    corners = roc(torch.tensor([0.1, 0.2]), torch.tensor([0.2, 0.3]))
    assert corners == [(0.0, 0.0), (0.0, 0.5), (0.5, 1.0), (1.0, 1.0)]


def test_attacks_that_were_not_made_stand_under_the_table(evaluation):
    notes = [text for text in conditions(summarize(evaluation)) if text.startswith("Not counted")]
    assert len(notes) == 3
    assert any("surrogate" in text and text.endswith("no shorter purifier.") for text in notes)
    assert any("joint" in text and "budget violated" in text for text in notes)


def test_pictures():
    assert png(torch.rand(1, 8, 8)).startswith("data:image/png;base64,")
    coloured = heat(torch.linspace(0, 1, 64).reshape(1, 8, 8))
    assert coloured.shape == (3, 8, 8)
    assert float(coloured[:, -1, -1].sum()) > float(coloured[:, 0, 0].sum())


def test_published_schema_is_current():
    text = json.dumps(Evaluation.model_json_schema(), indent=2) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == text, (
        "write it again: python -c 'import json; from medfedpure.evaluation.records import Evaluation; "
        "print(json.dumps(Evaluation.model_json_schema(), indent=2))' > docs/reference/evaluation.schema.json"
    )


def test_records_are_the_schema(evaluation):
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_an_evaluation_is_one_line(evaluation):
    assert (
        repr(evaluation)
        == str(evaluation)
        == (
            f"Evaluation of 2 defences on 4 images of 'four & <more>': 5 attacks that count, linf, eps 0.1 and 0.2; "
            f"not to be relied on: {EVIL!r}; a quick look, NOT a robustness claim"
        )
    )


def test_its_parts_are_one_line_each(evaluation):
    chain = evaluation.arms[1]
    wanted = f"ArmResult {EVIL!r}: purify_flagged, 3 attacks that count, 2 checks; not to be relied on: "
    assert repr(chain) == str(chain) == f"{wanted}gradients are masked <b>here</b>"
    first, skipped = chain.rungs[0], chain.rungs[3]
    assert repr(first) == str(first) == f"RungResult 'exact', counted; linf, eps 0.1; {first.attack}"
    assert str(skipped).startswith("RungResult 'surrogate', skipped: no shorter purifier; linf, eps 0.1; ")
    assert str(first.reading) == "Reading of 4 images in 3 draws: 4 flagged, 4 purified"


def test_an_evaluation_writes_the_table_of_its_report(evaluation, summary, tmp_path):
    evaluation.to_csv(tmp_path / "own.csv")
    assert (tmp_path / "own.csv").read_text(encoding="utf-8") == results_csv(summary)
    rows = evaluation.rows()
    assert [(row["arm"], row["rung"], row["eps"]) for row in rows] == [
        (own.name, result.rung, result.eps) for own in evaluation.arms for result in (*own.rungs, *own.checks)
    ]
    assert all("steps 17" in row["attack"] and row["norm"] == "linf" for row in rows)


def test_no_name_of_a_defence_runs_as_a_formula(evaluation):
    renamed = [one.model_copy(update={"name": f"={place}"}) for place, one in enumerate(evaluation.arms)]
    found = summarize(evaluation.model_copy(update={"arms": renamed}))
    for text in (results_csv(found), summary_csv(found)):
        assert {row["arm"] for row in csv.DictReader(io.StringIO(text))} == {"'=0", "'=1"}


def test_names_of_classes_are_no_markup_in_the_heads(evaluation):
    from rich.console import Console

    names = ["plain", "[/red]cyst|", "no\x1b[2J\rlesion"]
    three = evaluation.model_copy(update={"class_names": names, "positive": [1]})
    found = summarize(three)
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(terminal_table(found, 400))
    assert "recall [/red]cyst|" in console.export_text()
    text = markdown(found)
    assert "\x1b" not in text
    lines = text.splitlines()
    head = next(line for line in lines if line.startswith("| | right"))
    ruler = lines[lines.index(head) + 1]
    assert r"recall \[/red\]cyst\|" in head
    assert r"recall no\\x1b\[2J lesion" in head, "the head is one line"
    assert ruler == "|---" * (head.replace(r"\|", "").count("|") - 1) + "|"


def test_the_verdict_says_whether_a_gain_over_the_best_other_defence_is_shown(evaluation):
    found = summarize(evaluation)
    sentences = dict(zip(found.eps, verdict(found), strict=True))
    assert found.rivals
    for rival in found.rivals:
        sentence = sentences[rival.eps]
        others = [line for line in found.lines if line.eps == rival.eps and line.arm != found.headline]
        believed = [line for line in others if line.attacks and line.arm not in found.unreliable]
        assert rival.right == max(believed, key=lambda line: line.balanced.value).right
        low = rival.gain.low
        assert ("Gain shown beside" if low is not None and low > 0 else "No gain shown beside") in sentence
        assert repr(rival.arm) in sentence


def test_an_evaluation_is_asked_by_name_and_by_place(evaluation):
    name = evaluation.arms[0].name
    assert evaluation[name] is evaluation.arms[0]
    assert len(evaluation) == len(evaluation.rows()) > 2
    assert evaluation[-1] == evaluation.rows()[-1]
    assert evaluation[:2] == evaluation.rows()[:2]
    with pytest.raises(KeyError, match="the defences are"):
        evaluation["none"]
    with pytest.raises(IndexError):
        evaluation[len(evaluation)]
