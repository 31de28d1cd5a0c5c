"""`python -m benchmarks.weather`: a case in each area, what counts as wrong, and the page that is drawn."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from medfedpure.core.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it asks Linux for memory and limits")
ROOT = Path(__file__).parents[1]
FEW = {
    "readers": ["DICOM: no byte", "NIfTI: an affine of zeros", "PNG: claims 60000 pixels squared", "a named pipe"],
    "bundles": ["a bit of the weights flipped", "JSON 10000 deep", "a full disk while saving"],
    "predicting": ["names with line ends, escapes, formulas, no text", "a full disk", "rows of another defence"],
    "federation": ["an update: not finite", "a reply of the round before, once more", "a checkpoint, of another run"],
    "serve": ["names of files that lead elsewhere", "a form that is cut off", "a full disk under the log"],
}


def module(name: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("area", FEW)
def test_a_few_cases_of_each_area_hold(area: str) -> None:
    cases = module("weather.cases")
    found = {case.name: case for case in module(f"weather.{area}").cases()}
    for name in FEW[area]:
        said = cases.asked(found[name])
        assert said["fault"] == "", f"{name}: {said['happened']}"
        assert said["kept"]
        assert "/weather-" not in said["happened"], "a path of this machine"


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    cases = module("weather.cases")

    def ask(act: object) -> dict[str, object]:
        return dict(cases.asked(cases.Case("readers", "planted", "input", act)))

    def raises(error: Exception) -> object:
        def act(folder: Path) -> None:
            raise error

        return act

    def answers(folder: Path) -> object:
        return cases.Seen(cases.refused(lambda: 7))

    def leaves_something(folder: Path) -> object:
        with cases.untouched(folder):
            (folder / "half").write_bytes(b"a")
        return cases.Seen("")

    assert ask(raises(KeyError("x")))["fault"] == "not the project's error"
    assert ask(raises(DataError("x")))["fault"] == "not what has to happen"
    assert "the answer is 7" in str(ask(answers)["happened"])
    assert ask(answers)["fault"] == "not what has to happen"
    assert "half" in str(ask(leaves_something)["happened"])


def test_a_case_that_waits_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    cases = module("weather.cases")
    monkeypatch.setattr(cases, "LONGEST", 1)
    assert cases.asked(cases.Case("readers", "planted", "input", lambda _: time.sleep(30)))["fault"] == "it hangs"


def test_there_are_enough_of_both_kinds_and_no_name_twice() -> None:
    found = [case for area in FEW for case in module(f"weather.{area}").cases()]
    assert sum(case.kind == "input" for case in found) >= 60
    assert sum(case.kind == "fault" for case in found) >= 15
    assert len({(case.area, case.name) for case in found}) == len(found)


def test_the_page_is_drawn_from_the_published_results() -> None:
    table = module("weather_table")
    found = table.read()
    page = table.PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- table: {area} -->" in page for area in found)
    assert set(found) == set(module("weather.__main__").AREAS)
    assert table.page_with_tables(page) == page, "draw it again: python -m benchmarks.weather_table"
    asked = {(case.area, case.name) for area in FEW for case in module(f"weather.{area}").cases()}
    told = {(case["area"], case["name"]) for document in found.values() for case in document["cases"]}
    assert asked == told, "ask again: python -m benchmarks.weather"


def test_a_case_that_did_not_hold_stands_out(tmp_path: Path) -> None:
    table = module("weather_table")
    case = {"area": "serve", "name": "a|b", "kind": "fault", "happened": "KeyError: `x`", "kept": "", "seconds": 3.0}
    document = {"seconds": 3.0, "cases": [{**case, "grown_mib": 5, "fault": "it hangs"}]}
    (tmp_path / "serve.json").write_text(json.dumps(document))
    lines = table.table(table.read(tmp_path)["serve"]).splitlines()
    assert lines[2] == "| a/b | fault | `KeyError: 'x'` |  | **it hangs** |"
    assert "| serve | 0 | 1 | 0 of 1 | 3 s | 5 MiB | 3 s |" in table.summary(table.read(tmp_path))
