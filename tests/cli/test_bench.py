"""`medfedpure bench` puts a plugin of any kind beside others, with what its figures mean."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from medfedpure.bench.attacks import budgeted, counted_passes, measure
from medfedpure.bench.run import run_bench, together
from medfedpure.bench.stage import Row, Stage, budget_of, images_of
from medfedpure.cli.app import app
from medfedpure.core.attack import Attack, Budget
from medfedpure.core.config import Config
from medfedpure.core.errors import ConfigError, DataError, UnknownPluginError
from medfedpure.core.registry import KINDS, create, registry
from medfedpure.testing import tiny_classifier

CHEAP = {
    "classifier": ("small_cnn", "timm"),
    "detector": ("feature_squeezing", "mahalanobis"),
    "purifier": ("median", "smoothing"),
    "personalization": ("fedavg", "fedper"),
    "attack": ("pgd_eot", "joint_pgd"),
    "dataset": ("phantom", "phantom"),
}


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for a table, too little for figures worth reading."""
    monkeypatch.setattr("medfedpure.bench.stage.STEPS", 40)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_its_table(kind: str) -> None:
    name, other = CHEAP[kind]
    found = run_bench(registry().get(kind, name), {}, images=120, beside=[other])
    assert found.rows[0].name == name, "the plugin itself comes first"
    for row in found.rows:
        assert not row.problem, f"{row.name} has no figures: {row.problem}"
        assert tuple(row.figures) == found.columns, f"{row.name} has the columns {tuple(row.figures)}"
    assert found.conditions, "nothing says what the figures mean"


def test_figures_repeat() -> None:
    record = registry().get("detector", "mahalanobis")
    one, two = (run_bench(record, {}, images=120, beside=["mahalanobis"], seed=3).rows[0].figures for _ in range(2))
    for column in ("AUROC", "TPR at 5% FPR", "flagged benign"):
        assert one[column] == two[column], f"{column} differs between two runs of one seed"


def test_the_command_states_the_attack_and_ends_with_1_where_its_plugin_fails(tmp_path) -> None:
    line = ["bench", "feature_squeezing", "--beside", "feature_squeezing", "--images", "120", "--quiet"]
    good = CliRunner().invoke(app, line)
    assert good.exit_code == 0, f"bench failed: {good.output}"
    for words in ("AUROC", "linf", "eps 0.0313725", "steps 10", "seed 0", "attacker ignores the defence"):
        assert words in good.output, f"{words!r} is missing:\n{good.output}"
    (tmp_path / "no.toml").write_text("bits = []\nwindows = []\n", encoding="utf-8")
    bad = CliRunner().invoke(app, [*line, "--config", str(tmp_path / "no.toml"), "--json"])
    assert bad.exit_code == 1, f"a plugin without figures must end with 1: {bad.output}"
    assert "at least one squeezer" in json.loads(bad.stdout)["rows"][0]["problem"]


def test_an_unknown_neighbour_is_named() -> None:
    with pytest.raises(UnknownPluginError, match="no detector is named 'mea'"):
        run_bench(registry().get("detector", "mahalanobis"), {}, beside=["mea"])


@pytest.fixture(scope="module")
def stage() -> Stage:
    return Stage(0, 120, budget=Budget("l2", 0.5))


@pytest.mark.parametrize("name", ["pgd_eot", "fgsm", "internal", "joint_pgd"])
def test_every_attack_has_one_budget(name: str, stage: Stage) -> None:
    part = budgeted(name, {}, stage.budget)
    assert part.budget() == stage.budget
    assert getattr(part.config, "steps", 10) == 10, "equal steps, whatever the defaults"
    found = measure(part, stage)
    assert found["eps"] == "kept"
    assert 0 < found["mean l2"] <= 0.5 + 1e-5


def test_what_a_configuration_says_of_steps_holds_and_of_eps_must_agree(stage: Stage) -> None:
    assert budgeted("pgd_eot", {"steps": 3}, stage.budget).config.steps == 3
    assert budgeted("pgd_eot", {"eps": 0.5}, stage.budget).budget() == stage.budget
    for name, options in (("pgd_eot", {"eps": 0.1}), ("pgd_eot", {"norm": "linf"}), ("square", {})):
        with pytest.raises(ConfigError, match=r"all are compared at l2 0\.5"):
            budgeted(name, options, stage.budget)


class Far(Attack):
    """Succeeds by a change of half the range, of everything or of a corner; promises no eps."""

    Config = Config
    everything = True

    def generate(self, view, images, labels, *, mask=None, targets=None, streams):
        changed = images.clone()
        place = slice(None) if self.everything else slice(0, 8)
        changed[..., place, place] = 1 - changed[..., place, place]
        return changed


def test_a_success_counts_within_eps_only_and_a_patch_stands_apart(stage: Stage, monkeypatch) -> None:
    monkeypatch.setitem(vars(stage), "model", Brightness(stage.readable))
    far = measure(Far(), stage)
    assert (far["threat"], far["eps"], far["fooled"]) == ("l2 0.5", "counted", 0.0)
    assert far["mean l2"] > 0.5
    patch = Far()
    patch.everything = False
    local = measure(patch, stage)
    assert (local["threat"], local["eps"], local["fooled"]) == ("few pixels, any content", "none", 1.0)
    rows = [Row("a", far), Row("b", local), Row("c", {**far, "threat": "l2 0.5"}), Row("d", problem="broken")]
    assert [row.name for row in together(rows)] == ["a", "c", "b", "d"]


class Brightness(torch.nn.Module):
    """Any change of the corner changes the class that it answers."""

    def __init__(self, data) -> None:
        super().__init__()
        self.corners, self.labels = data.images[..., :8, :8].clone(), data.labels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        moved = (images[..., :8, :8] - self.corners).abs().flatten(1).amax(1) > 1e-3
        return torch.nn.functional.one_hot((self.labels + moved) % 2, 2).float() * 9 + 0 * images.flatten(1)[:, :1]


def test_passes_are_images_forward_and_backward() -> None:
    model, images = tiny_classifier(), torch.rand(5, 1, 32, 32, requires_grad=True)
    with counted_passes(model) as passes:
        model(images).sum().backward()
        with torch.no_grad():
            model(images[:2])
    model(images)
    assert passes[0] == 5 + 5 + 2


@pytest.mark.parametrize(
    ("norm", "eps"), [("l1", 0.1), ("l2", None), ("linf", 0.0), ("linf", 1.5), ("l2", float("inf"))]
)
def test_a_budget_that_is_none_is_refused(norm: str, eps: float | None) -> None:
    with pytest.raises(ConfigError):
        budget_of(norm, eps)


def test_the_budget_of_robust_figures_is_stated() -> None:
    found = run_bench(registry().get("purifier", "median"), {}, images=120, beside=["median"], budget=Budget("l2", 0.7))
    assert any("norm l2, eps 0.7, " in line for line in found.conditions)


def written(folder, images: int):
    """Phantoms as files in folders of their classes."""
    from PIL import Image

    data = create("dataset", "phantom", images=images, image_size=40, lesion_contrast=2.0).read()
    for place, label in enumerate(data.labels.tolist()):
        path = folder / data.class_names[label] / f"{place}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pixels[place, 0].numpy()).save(path)
    return folder


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dataset"])
def test_every_kind_is_measured_on_images_of_ones_own(kind: str, tmp_path) -> None:
    given = images_of(str(written(tmp_path / "mine", 150)), {}, most=130, seed=0)
    assert 120 <= len(given) <= 140
    assert given.image_shape == (1, 32, 32)
    name = CHEAP[kind][0]
    found = run_bench(registry().get(kind, name), {}, data=given, beside=[name])
    assert not found.rows[0].problem
    assert any(f"{len(given)} images of 'mine' at 32 px" in line for line in found.conditions)
    assert not any("phantom" in line or "scanner" in line for line in found.conditions)


def test_too_few_images_of_ones_own_are_refused(tmp_path) -> None:
    mine = str(written(tmp_path / "mine", 40))
    with pytest.raises(DataError, match=r"120 images or more.*8 near-duplicate groups.*has 40 images"):
        images_of(mine, {}, most=480, seed=0)
    answer = CliRunner().invoke(app, ["bench", "median", "--data", mine, "--quiet"])
    assert isinstance(answer.exception, DataError)


def test_a_data_set_is_measured_on_its_own_images() -> None:
    given = create("dataset", "phantom", images=120, image_size=32).read()
    with pytest.raises(ConfigError, match="leave out --data"):
        run_bench(registry().get("dataset", "phantom"), {}, data=given)
