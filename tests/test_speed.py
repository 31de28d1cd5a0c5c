"""`python -m benchmarks.speed`: turns are taken, what was measured is kept, and the page says what was missed."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import medfedpure

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
    pytest.importorskip("foolbox", reason="foolbox is not installed: pip install 'medfedpure[test]'")
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


def setting(bench, tmp_path, **options: Any):
    return bench("speeds.timing").Setting("cpu", options.pop("quick", False), tmp_path, **options)


def run(bench, monkeypatch, path: Path, *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["speed", "--out", str(path), *words])
    bench("speed").main()
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def asked(bench, monkeypatch):
    """How often each of two sections was measured; a stand-in measures them, for they take minutes."""
    counts = dict.fromkeys(("synchronizations", "mixed_depths"), 0)

    def measured(name, setting):
        counts[name] += 1
        return {"of": name}

    speed = bench("speed")
    monkeypatch.setattr(speed, "SECTIONS", dict.fromkeys(counts))
    monkeypatch.setattr(speed, "measured", measured)
    monkeypatch.setattr(medfedpure, "keep_freed_memory", lambda: False)
    return counts


def test_works_take_turns_and_the_first_round_does_not_count(bench, tmp_path):
    order: list[str] = []
    works = {name: lambda name=name: order.append(name) for name in "ab"}
    found = bench("speeds.timing").in_turns(works, setting(bench, tmp_path), 3)
    assert order == ["a", "b"] * 4
    assert [len(times) for times in found.values()] == [3, 3]


def test_another_process_is_believed_about_its_seconds(bench, tmp_path):
    timing = bench("speeds.timing")
    took = timing.paired(lambda: 6.0, lambda: 1.5, setting(bench, tmp_path), 3)
    assert took == {"median": 4.0, "least": 4.0, "most": 4.0, "of": 3}


def test_as_many_images_are_flagged_as_were_asked_for(bench):
    made = bench("speeds.made")
    model = medfedpure.create("classifier", "small_cnn", widths=(4, 8)).create_model(
        in_channels=1, num_classes=2, image_size=32
    )
    images = made.phantoms(20, 32, seed=1).images
    fit = made.phantoms(4, 32, seed=2)
    chain = made.gated(model, medfedpure.create("purifier", "median"), "feature_squeezing", {}, fit, "off")
    made.flag(chain, images, 3, 8)
    assert int(chain.predict(images, seed=0, batch_size=8).purified.sum()) == 3


def test_what_stands_in_the_document_is_not_measured_again(bench, monkeypatch, tmp_path, asked):
    path = tmp_path / "speed.json"
    run(bench, monkeypatch, path, "--only", "mixed_depths")
    kept = run(bench, monkeypatch, path)
    assert asked == {"synchronizations": 1, "mixed_depths": 1}
    assert set(kept["sections"]) == set(asked)
    run(bench, monkeypatch, path, "--only", "mixed_depths", "--again")
    assert asked == {"synchronizations": 1, "mixed_depths": 2}


def test_a_document_of_another_setting_is_refused(bench, monkeypatch, tmp_path, asked, capsys):
    path = tmp_path / "speed.json"
    run(bench, monkeypatch, path)
    before = path.read_text(encoding="utf-8")
    with pytest.raises(SystemExit):
        run(bench, monkeypatch, path, "--quick")
    assert "another quick" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == before


def test_the_page_says_met_missed_and_not_measured(bench, monkeypatch):
    rows = [{"classifier": "ResNet-18", "detector": name, "kept": {"median": kept}} for name, kept in KEPT.items()]
    monkeypatch.setattr(bench("speeds.aims"), "seeing", lambda: {"compose", "distilled"})
    drawn = bench("speeds.aims").aims({"cpu": {"sections": {"benign_small": {"rows": rows, "processor_seconds": 60}}}})
    lines = {line.split(" | ")[1]: line for line in drawn.splitlines()[2:]}
    assert "| **missed** |" in lines["default chain at 64 px keeps of ResNet-18"]
    assert "0.7 | met |" in lines["the best chain there with an AUROC of at least 0.95"]
    assert "not measured" in lines["U-Net evaluations a second, 224 px"]


def test_a_detector_sees_where_it_sees_attacks_of_every_size(bench, tmp_path):
    (tmp_path / "phantom_64_resnet18_cpu").mkdir()
    for arm, found in {"compose": (0.99, 0.96), "staged distilled": (0.99, 0.94)}.items():
        document = {"arm": arm, "static": {eps: {"auroc": auroc} for eps, auroc in zip("ab", found, strict=True)}}
        (tmp_path / "phantom_64_resnet18_cpu" / f"{arm}.json").write_text(json.dumps(document), encoding="utf-8")
    assert bench("speeds.aims").seeing(tmp_path) == {"compose"}


KEPT = {"compose": 0.4, "distilled": 0.7, "fast": 0.9}


@pytest.mark.slow
def test_every_section_runs_in_its_quick_form(bench, monkeypatch, tmp_path):
    found = run(bench, monkeypatch, tmp_path / "cpu.json", "--quick")
    assert set(found["sections"]) == set(bench("speed").SECTIONS)
    table = bench("speed_table")
    documents = table.read(tmp_path)
    drawn = {name: draw(documents) for name, draw in table.TABLES.items()}
    assert [name for name, text in drawn.items() if text == "not measured"] == ["gpu"]
    assert torch.get_num_threads() == found["threads"]
