"""The study's page: what it says follows the figures, and beside each stand its conditions."""

import re

import pytest
from studied import ELSEWHERE, IMAGES, ladder, static, wanting, write

from benchmarks.study import charts, clients, findings, page, tables
from benchmarks.study.cells import NOTHING
from benchmarks.study.how import CPU, GPU
from benchmarks.study.plan import Plan
from benchmarks.study.stats import Results, area_interval
from benchmarks.study.units import Study

NOT_MEASURED_HERE = {"98.33", "49.50", "97.67", "87.33", ".854", ".4"}
"""Figures of others, and the division of clients, which those who write the page may write."""


@pytest.fixture
def folder(tmp_path):
    """The chain restores what an attack that ignores it took, no more than a median filter; its worst case is open."""
    write(tmp_path, "images", {"test": IMAGES, "parts": {"test": [20, 20]}})
    for name, attacked in (("undefended", 2), ("median", 18), ("paper", 18), ("robust", 16)):
        write(tmp_path, f"static_{name}", static("1" * 20, attacked="1" * attacked + "0" * (20 - attacked)))
    write(tmp_path, "ladder_undefended", ladder("0" * 20))
    write(tmp_path, "ladder_robust", ladder("1" * 16 + "0" * 4))
    return tmp_path


def sentences(folder) -> dict[str, str]:
    """What the page says first, by the bold words of each point."""
    study = Study(CPU, folder, folder, folder, 0, print)
    told = findings.findings(Results(folder, CPU), Plan.of(study))
    return {line.split("**")[1]: line for line in told.splitlines() if line.startswith("- ")}


def aims(folder) -> str:
    """What was to be reached, where nothing is measured at the larger size."""
    return findings.aims(Results(folder, CPU), Results(folder, GPU))


def test_what_was_gained_stands_with_the_attacker(folder):
    told = sentences(folder)
    ignorant, knowing = told["Against who ignores the defence"], told["Against who knows all of it"]
    assert "the paper's chain 90.0 (" in ignorant
    assert "no defence 10.0 (" in ignorant
    assert "PGD, linf, eps 0.015, 7 steps, gradient of the bare classifier (static), EoT 1" in ignorant
    assert "adversarial training 80.0 (" in knowing
    assert "worst of 2 attacks for each image, linf, eps 0.015, through static, exact, up to 20 steps, EoT 1" in knowing
    assert all("; 20 images)" in line for line in (ignorant, knowing))


def test_a_simple_defence_that_does_as_well_is_named(folder):
    assert "a median filter of every image 90.0" in sentences(folder)["Against who ignores the defence"]
    assert (
        "the paper's chain over a median filter of every image"
        in sentences(folder)["No gain shown under the paper's attack"]
    )
    write(folder, "static_median", static("1" * 20, attacked="0" * 20))
    told = sentences(folder)
    assert "a median filter of every image 0.0 (" in told["Against who ignores the defence"]
    assert "median" not in " ".join(told.values()).partition("No gain shown")[2]


def test_what_is_measured_later_is_said_then(folder):
    told = sentences(folder)
    assert "1 of 5 folds." in tables.short(Results(folder, CPU))
    assert "the paper's chain not measured" in told["Against who knows all of it"]
    assert "the worst case of 12 of 14 defences; 4 folds" in told["[Not measured](#what-is-not-measured)"]
    write(folder, "ladder_paper", ladder("1" * 4 + "0" * 6))
    told = sentences(folder)
    assert "the paper's chain 40.0 (" in told["Against who knows all of it"]
    assert ") on 10 images" in told["Against who knows all of it"]
    assert "the worst case of 11 of 14 defences" in told["[Not measured](#what-is-not-measured)"]


def test_an_unreliable_worst_case_is_never_the_best(folder):
    results = Results(folder, CPU)
    write(folder, "ladder_median", ladder("1" * 20))
    assert findings.best_arm(results) == "median"
    write(folder, "ladder_median", ladder("1" * 20, unreliable=("gradients vanish",)))
    assert findings.best_arm(results) == "robust"
    told = sentences(folder)["Against who knows all of it"]
    assert re.search(r"a median filter of every image 100\.0 \([^)]+\) UNRELIABLE", told)


def test_an_aim_is_reached_by_its_figure(folder):
    def reached() -> dict[str, str]:
        rows = [line.split(" | ") for line in aims(folder).splitlines() if line.startswith("| ")]
        return {row[0].removeprefix("| "): row[3].removesuffix(" |") for row in rows}

    assert reached()["`paper`, the paper's attack"] == "yes"
    assert reached()["adversarial training, best in the worst case"] == "yes"
    assert reached()["one defence on the paper's own, leaking split, clean and in the worst case"] == "not measured"
    assert "| adversarial training is the best | yes |" in aims(folder), "not a gap to itself"
    write(folder, "ladder_median", ladder("1" * 20))
    assert re.search(
        r"worst case \| at least 0 \| \+20\.0 \([^)]+\) \| yes \|",
        aims(folder),
    )
    write(folder, "static_paper", static("1" * 16 + "0" * 4))
    assert reached()["`paper`, the paper's attack"] == "**no**"
    assert reached()["`paper` less undefended, clean"] == "**no**"


def test_personalized_strategies_stand_beside_fedavg(folder):
    for name, right in (("fedavg", 2), ("fedper", 18), ("fedrep", 3)):
        said = static("1" * 20, attacked="1" * right + "0" * (20 - right))
        write(folder, f"clients_{name}_plain", {"clients": {"client_0": said, "client_1": {"as": "client_0"}}})
    told = sentences(folder)["Personalized or alone, over FedAvg"]
    better, rest = told.split(". No gain shown: ")
    assert "Better: FedPer, plain, paper's attack +80.0" in better
    assert rest.startswith("FedRep, plain, paper's attack +5.0")


def test_an_interval_of_an_area_holds_it_and_narrows_with_images():
    wide, narrow = area_interval([0.9], [10], [20]), area_interval([0.9], [100], [200])
    assert wide[0] < narrow[0] < 0.9 < narrow[1] < wide[1]
    # Hanley and McNeil 1982: of an area of .893 over 51 and 58 readings the standard error is .0323
    low, high = area_interval([0.893], [51], [58])
    assert (high - low) / 2 / 1.96 == pytest.approx(0.0323, abs=5e-4)


def test_clients_of_different_images_have_an_interval_around_their_mean(folder):
    halves = [{"ids": " ".join(map(str, range(start, start + 10))), "draws": 1} for start in (0, 10)]
    own = [{**halves[0], "right": "1" * 10}, {**halves[1], "right": "1" * 4 + "0" * 6}]
    told = {"attack": "pgd", "gradient": "static"}
    dealt = {f"client_{place}": {"clean": half, "paper": {**half, **told}} for place, half in enumerate(own)}
    write(folder, "clients_fedavg_plain", {"clients": dealt})
    row = next(line for line in clients.federation(Results(folder, CPU)).splitlines() if line.startswith("| FedAvg"))
    middle, low, high, least, most = map(float, re.findall(r"\d+\.\d", row)[:5])
    assert (middle, least, most) == (70.0, 40.0, 100.0)
    assert 40 < low < middle < high < 100
    assert "not measured" not in row, "no worst case is planned of clients that are trained plainly"


PUBLISHED = page.tables_of()


def test_the_readme_has_at_most_ten_defences():
    table = tables.short(Results(page.FOLDER, CPU))
    assert 2 < len([row for row in table.splitlines() if row.startswith("|")]) <= 12


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - ELSEWHERE))
def test_a_published_table_says_how_it_was_measured(name):
    table = PUBLISHED[name]()
    assert table == NOTHING or not wanting(table), f"{name} says nothing of {wanting(table)}"


def test_a_published_figure_says_how_it_was_measured():
    captions = charts.captions(Results(page.FOLDER, CPU))
    assert {"study_eps", "study_front"} <= captions.keys()
    for name, words in captions.items():
        for wanted in ("images of", "groups", "95 %", "linf", "eps", "EoT", "python -m benchmarks.study.page"):
            assert wanted in " ".join(words), f"{name} says nothing of {wanted}"


@pytest.mark.parametrize("path", page.DRAWN, ids=lambda path: path.name)
def test_a_measured_figure_stands_between_the_marks(path):
    text = path.read_text(encoding="utf-8")
    if path.name == "README.md":
        text = text[text.index("## What it is worth") : text.index("## How it works")]
    by_hand = re.sub(r"<!-- study: \w+ -->.*?<!-- end -->", "", text, flags=re.S)
    figures = set(re.findall(r"\d*\.\d+", by_hand))
    assert figures <= NOT_MEASURED_HERE, "no test draws this again: take it from a table, or say it in findings.py"
    stale = re.findall(r"\b(?:so far|yet)\b", by_hand, re.I)
    assert not stale, "the next unit overturns it: say it in findings.py"


def test_every_mark_of_the_page_is_drawn():
    marks = re.findall(r"<!-- study: (\w+) -->", "".join(path.read_text(encoding="utf-8") for path in page.DRAWN))
    assert sorted(marks) == sorted(PUBLISHED)
    assert re.search(r"Together [\d.]+ hours of one core|Every unit is measured", PUBLISHED["missing"]())
