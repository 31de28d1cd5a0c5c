"""`python -m benchmarks.study`: units need what comes before them, are done once, and pages show what they kept."""

import re
from dataclasses import replace

import pytest
from studied import ELSEWHERE, FOLD, IMAGES, ladder, static, wanting, write

from benchmarks.study import adopt, charts, clients, page, tables
from benchmarks.study.__main__ import BUSY, main
from benchmarks.study.how import CPU, EPS, MINIATURE, SIZES
from benchmarks.study.measure import packed
from benchmarks.study.plan import Plan
from benchmarks.study.stats import Results, difference
from benchmarks.study.units import Study, catalog
from medfedpure.core.storage import locked, write_json
from medfedpure.figures.balanced import balanced


def study_in(folder, how=MINIATURE) -> Study:
    return Study(how, folder / "data", folder / "out", folder / "results", 0, lambda text: None)


def unit(how, key):
    return next(one for one in catalog(how) if one.key == key)


@pytest.mark.parametrize("how", SIZES.values(), ids=SIZES)
def test_a_unit_needs_what_stands_before_it_in_the_plan(how):
    seen: set[str] = set()
    for one in catalog(how):
        assert {f"{one.place}/{name}" for name in one.needs} <= seen, f"{one.key} comes before what it needs"
        assert one.key not in seen
        seen.add(one.key)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Three units of a miniature of the miniature."""
    folder = tmp_path_factory.mktemp("study")
    recipes = {name: replace(recipe, steps=6) for name, recipe in MINIATURE.recipes.items()}
    study = study_in(folder, replace(MINIATURE, recipes=recipes))
    for name in ("train_plain", "static_median", "ladder_undefended"):
        study.do(unit(study.how, f"{FOLD}/{name}"))
    return study


def test_every_image_of_the_test_part_is_counted_once(measured):
    found = Results(measured.results, measured.how)
    clean, images = found.clean("median"), found.read(FOLD, "images")
    assert packed(clean.ids.tolist()) == images["test"]["ids"]
    assert clean.value == balanced(clean.right, clean.labels) > 0
    paper = found.paper("median")
    assert set(paper.ids.tolist()) <= set(clean.ids.tolist())
    assert len(paper.groups.unique()) == len(paper.groups), "one image of each group is attacked"


def test_a_ladder_keeps_its_threat_and_gets_no_easier_with_eps(measured):
    found = Results(measured.results, measured.how)
    worst = [found.worst("undefended", eps) for eps in measured.how.curve]
    assert bool((worst[1].right <= worst[0].right).all())
    document = found.read(FOLD, "ladder_undefended")
    for eps, said in document["worst"].items():
        assert f"norm linf, eps {eps}" in said["threat"]
        assert "EoT" in said["threat"]


def test_what_is_done_is_not_done_again_and_what_is_missing_is_asked_for(measured):
    plan = Plan.of(measured)
    done = [key for key in plan.units if measured.done(plan.units[key])]
    assert done == [f"{FOLD}/train_plain", f"{FOLD}/ladder_undefended", f"{FOLD}/static_median"]
    assert plan.ready(unit(measured.how, f"{FOLD}/train_robust"))
    later = unit(measured.how, f"{FOLD}/static_robust")
    assert not plan.ready(later)
    with pytest.raises(SystemExit, match="train_robust_long"):
        measured.do(later)


def test_a_unit_of_another_process_is_left_to_it(tmp_path, capsys):
    words = [f"{FOLD}/train_plain", "--size", "miniature", "--out", str(tmp_path / "out")]
    place = tmp_path / "out" / "miniature" / "locks" / f"{FOLD}.train_plain"
    with locked(place, "another process"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["study", *words, "--results", str(tmp_path / "results")])
        assert main() == BUSY
    assert "is in use by" in capsys.readouterr().out


def test_several_processes_are_asked_for_the_same_and_do_it_alone(tmp_path, monkeypatch):
    begun = []

    class Process:
        def __init__(self, words):
            begun.append(words)

        def wait(self):
            if len(begun) == 3:
                write_json(tmp_path / MINIATURE.name / FOLD / "train_plain.json", {})
                write_json(tmp_path / MINIATURE.name / FOLD / "static_median.json", {})

    monkeypatch.setattr("subprocess.Popen", Process)
    (tmp_path / MINIATURE.name / FOLD).mkdir(parents=True)
    names = [f"{FOLD}/train_plain", f"{FOLD}/static_median"]
    words = ["study", *names, "--size", "miniature", "--results", str(tmp_path), "--processes", "3"]
    monkeypatch.setattr("sys.argv", words)
    assert main() == 0
    assert [own[3:] for own in begun] == 3 * [[*words[1:], "--processes", "1"]]


def test_a_forecast_is_measured_on_whole_units_and_stated_before(tmp_path):
    study = study_in(tmp_path, CPU)
    other = unit(CPU, "br35h_fold_4/train_robust_long")
    assert Plan.of(study).forecast(other).source == "estimate"
    here, card = "CPU, 1 thread", "NVIDIA H200"
    for fold, (seconds, whole, device) in enumerate(
        [(1000, True, here), (3000, True, here), (5, False, here), (9, True, card)]
    ):
        path = unit(CPU, f"br35h_fold_{fold}/train_robust_long").path(study.results, CPU)
        path.parent.mkdir(parents=True)
        write_json(path, {"seconds": seconds, "whole": whole, "device": device})
    found = Plan.of(study).forecast(other)
    assert (found.seconds, found.source) == (2000, "measured")
    assert "adopted" not in Plan.of(study).table()


def test_models_of_the_flagship_are_taken_over_once(tmp_path):
    study, flagship = study_in(tmp_path, CPU), tmp_path / "flagship" / "fold_0_128"
    for name in ("plain", "fedavg_plain/client_0"):
        (flagship / name).mkdir(parents=True)
        (flagship / name / "medfedpure.json").write_text("{}")
    (flagship / "robust").mkdir()  # cut off before anything was saved
    assert adopt.adopt(flagship.parent, study) == [f"{FOLD}/train_plain", f"{FOLD}/federate_fedavg_plain"]
    assert (study.out / CPU.name / FOLD / "fedavg_plain" / "client_0" / "medfedpure.json").exists()
    assert adopt.adopt(flagship.parent, study) == []
    assert "adopted" in Plan.of(study).table()


@pytest.fixture
def folder(tmp_path):
    """Two arms on one fold: the second reads five images more under attack, and met ten only."""
    write(tmp_path, "images", {"test": IMAGES, "parts": {"test": [20, 20]}})
    for name, right in (("undefended", "0" * 20), ("robust", "1" * 5 + "0" * 5)):
        write(tmp_path, f"static_{name}", static("1" * 20))
        write(tmp_path, f"ladder_{name}", ladder(right))
    return tmp_path


def test_arms_are_compared_on_the_images_that_both_met(folder):
    results = Results(folder, CPU)
    found = difference(results.worst("robust", EPS), results.worst("undefended", EPS))
    assert (found.images, found.groups) == (10, 10)
    assert found.value == pytest.approx(0.5)  # 3 of 5 and 2 of 5
    assert found.low < found.value < found.high
    table = tables.arms(results)
    assert "worst case: the same 10 images of all defences" in table
    assert table.splitlines()[0].endswith("| worst case | its own images |")
    assert "undefended, robust: worst case: norm linf, eps 0.015; per image the worst of 2 attacks" in table
    assert "| Does adversarial training help? | +0.0" in tables.questions(results)


def test_machines_are_told_and_milliseconds_are_the_cpus(folder):
    write(folder, "static_undefended", {**static("1" * 20), "device": "NVIDIA H200"}, "br35h_fold_1")
    write(folder, "images", {"test": IMAGES, "parts": {"test": [20, 20]}}, "br35h_fold_1")
    results = Results(folder, CPU)
    assert "Measured on CPU: fold 0; NVIDIA H200: fold 1." in tables.arms(results)
    assert "| undefended | 1 |" in tables.costs(results)
    write(folder, "static_undefended", {**static("1" * 20), "device": "NVIDIA H200"})
    assert "| undefended | not measured |" in tables.costs(results)


def test_what_validation_groups_choose_stands_with_what_it_got(folder):
    images = {"test": IMAGES, "validation": IMAGES, "parts": {"test": [20, 20]}}
    write(folder, "images", images)
    for name, seen, tested in (("robust", "1" * 8 + "00", "1" * 10), ("purify_all", "1" * 10, "1" * 4 + "0" * 6)):
        write(folder, f"choose_{name}", ladder(seen))
        write(folder, f"ladder_{name}", ladder(tested))
    told = tables.choice(Results(folder, CPU))
    assert "validation groups choose *purify all*: 40.0 (" in told
    assert "The best there is *adversarially trained*: 100.0 (" in told
    write(folder, "choose_purify_all", ladder("1" * 10, ("gradients vanish",)))
    told = tables.choice(Results(folder, CPU))
    assert "validation groups choose *adversarially trained*: 100.0 (" in told, "what is unreliable is not chosen"
    assert re.search(r"\| purify all .* UNRELIABLE \|", told)
    write(folder, "ladder_robust", ladder("1" * 10, ("gradients vanish",)))
    told = tables.choice(Results(folder, CPU))
    assert "choose *adversarially trained*, whose worst case on test groups is not known" in told, (
        "tests choose nothing"
    )


def test_doubts_that_differ_in_numbers_are_told_once(folder):
    for place, score in ((0, "0.2"), (1, "-0.3")):
        write(folder, "images", {"test": IMAGES, "parts": {"test": [20, 20]}}, f"br35h_fold_{place}")
        write(folder, "static_robust", static("1" * 20), f"br35h_fold_{place}")
        write(folder, "ladder_robust", ladder("1" * 10, (f"a score is {score} alone",)), f"br35h_fold_{place}")
    assert "- UNRELIABLE, robust: a score is 0.2 alone (fold 0), so -0.3 (fold 1)." in tables.arms(Results(folder, CPU))


def test_shares_of_draws_have_an_interval_too(tmp_path):
    write(tmp_path, "images", {"test": IMAGES, "parts": {"test": [20, 20]}})
    write(tmp_path, "static_paper", static("4" * 10 + "2" * 10, 4))
    write(tmp_path, "static_purify_all", static("2" * 20, 4))
    results = Results(tmp_path, CPU)
    found = difference(results.clean("paper"), results.clean("purify_all"))
    assert found.value == pytest.approx(0.25)
    assert 0 < found.low < 0.25 < found.high
    assert results.clean("paper").value == pytest.approx(0.75)


def test_clients_of_different_images_are_put_together(tmp_path):
    write(tmp_path, "images", {"test": IMAGES, "parts": {"test": [20, 20]}}, "brain4_fold_0")
    halves = [{"ids": packed(range(start, start + 10)), "draws": 1, "right": "1" * 10} for start in (0, 10)]
    for name, lost in (("fedavg", 10), ("fedper", 0)):
        own = [{**half, "right": "1" * (10 - lost * place) + "0" * (lost * place)} for place, half in enumerate(halves)]
        dealt = {
            f"client_{place}": {"clean": half, "paper": {**half, "attack": "pgd", "gradient": "static"}}
            for place, half in enumerate(own)
        }
        write(tmp_path, f"clients_{name}_plain", {"clients": dealt}, "brain4_fold_0")
    write(tmp_path, "static_undefended", static("1" * 20), "brain4_fold_0")
    table = clients.federation(Results(tmp_path, CPU), "brain4_fold_0")
    assert "| pooled | plain | 100.0" in table
    assert re.search(r"\| FedAvg \| plain \| 50.0 \([^)]+\) \[0.0\sto\s100.0\] \|", table)
    cells = next(line for line in table.splitlines() if line.startswith("| FedPer")).split(" | ")
    assert cells[5].startswith("+50.0")  # less FedAvg
    assert cells[7].startswith("+0.0")  # less pooled


def test_what_is_not_measured_is_said_with_its_price(folder):
    study = Study(CPU, folder, folder, folder, 0, print)
    table = tables.missing(Plan.of(study))
    assert "| br35h_fold_1 | train | 6 |" in table
    assert table.endswith("hours of one core.")


def test_figures_are_drawn_alike(folder, tmp_path):
    drawn = [charts.draw(Results(folder, CPU), tmp_path / name) for name in ("one", "other")]
    assert [path.name for path in drawn[0]] == ["study_eps.svg", "study_front.svg"]
    for one, other in zip(*drawn, strict=True):
        assert one.read_bytes() == other.read_bytes()


def test_the_page_shows_the_published_results():
    for path in page.DRAWN:
        text = path.read_text(encoding="utf-8")
        assert page.page_with_tables(text) == text, f"draw {path.name} again: python -m benchmarks.study.page"


@pytest.mark.slow
def test_a_miniature_of_every_unit(tmp_path, monkeypatch):
    words = ["study", "--size", "miniature", "--required", "--here", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", [*words, "--results", str(tmp_path / "results")])
    assert main() == 0
    drawn = page.tables_of(tmp_path / "results", MINIATURE)
    assert drawn["missing"]() == "Every unit is measured."
    for name, draw in drawn.items():
        table = draw()
        assert "not measured" not in table, f"{name}: {table}"
        if name not in ELSEWHERE:
            assert not wanting(table), f"{name} says nothing of {wanting(table)}"
