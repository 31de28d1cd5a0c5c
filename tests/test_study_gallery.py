"""The study's pictures: which images are shown is a rule, and what stands beside them was asked of the arms."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from studied import FOLD

from benchmarks.study import gallery
from benchmarks.study.how import EPS, MINIATURE, SIZES
from benchmarks.study.units import Study, catalog

SHORT = replace(
    MINIATURE,
    recipes={name: replace(recipe, steps=30 if name == "plain" else 4) for name, recipe in MINIATURE.recipes.items()},
    denoiser={**MINIATURE.denoiser, "training": {"steps": 4, "batch_size": 16}},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """What the chain needs, and no adversarial training."""
    folder = tmp_path_factory.mktemp("gallery")
    study = Study(SHORT, folder, folder / "out", folder / "results", 0, lambda text: None)
    for unit in catalog(SHORT):
        if unit.key in (f"{FOLD}/train_plain", f"{FOLD}/train_denoiser"):
            study.do(unit)
    return folder


@pytest.fixture(scope="module")
def shown(models):
    return gallery.shown(gallery.bench_of(models, models / "out", SHORT, 0, 0))


def test_ranks_go_by_margin_and_name_an_image_once():
    margins = torch.tensor([0.5, -3.0, 2.0, -1.0, 1.0])
    assert gallery.ranked(margins) == {"best": 2, "upper quartile": 4, "median": 0, "lower quartile": 3, "worst": 1}
    assert gallery.ranked(torch.tensor([0.0, 1.0])) == {"best": 1, "worst": 0}


def test_a_margin_is_lost_where_another_class_is_ahead():
    logits, labels = torch.tensor([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0]]), torch.tensor([1, 0])
    assert gallery.margin(logits, labels).tolist() == [1.0, -2.0]


def test_the_images_are_attacked_misread_undefended_and_in_order(shown):
    assert bool((shown.margins.diff() <= 0).all())
    gap = (shown.attacked.images - shown.data.images).abs().flatten(1).amax(1)
    assert bool((gap > 0).all())
    assert bool((gap <= EPS + 1e-6).all())
    truth = [shown.data.class_names[label] for label in shown.data.labels.tolist()]
    assert all(after != name for (_, after), name in zip(shown.verdicts["undefended"], truth, strict=True))
    assert shown.misread[0] <= shown.misread[1]


def test_arms_that_nobody_trained_are_left_out(shown):
    assert {"undefended", "median", "paper", "purify_all", "detector_only"} <= shown.verdicts.keys()
    assert not {"robust", "mixed", "robust_chain"} & shown.verdicts.keys()


def test_the_picture_says_eps_attack_and_group_of_each_row(shown, tmp_path):
    figure = gallery.draw(shown)
    rows = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    assert len(rows) == len(shown.ranks)
    for row, group in zip(rows, shown.data.groups.tolist(), strict=True):
        assert f"group {group}" in row
        assert "linf, eps 0.015" in row
        assert "PGD, 7 steps" in row
    told = figure.get_suptitle()
    assert "static" in told
    assert "EoT 1" in told
    assert f"{shown.misread[0]} are misread undefended" in told


def test_the_command_writes_one_picture(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(SIZES, "miniature", SHORT)
    words = ["--data", models, "--models", models / "out", "--out", tmp_path / "pictures", "--size", "miniature"]
    monkeypatch.setattr("sys.argv", ["gallery", *map(str, words)])
    gallery.main()
    (path,) = (tmp_path / "pictures").iterdir()
    assert capsys.readouterr().out.strip() == str(path)
    with Image.open(path) as picture:
        assert picture.width > 1000


def test_a_fold_that_is_not_trained_says_which_units_do_it(tmp_path):
    with pytest.raises(SystemExit, match=f"python -m benchmarks.study .* {FOLD}/train_plain {FOLD}/train_denoiser"):
        gallery.bench_of(tmp_path, tmp_path, SHORT, 0, 0)
