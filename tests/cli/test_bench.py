"""`medfedpure bench` puts a plugin of any kind beside others, with what its figures mean."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from medfedpure.bench.run import run_bench
from medfedpure.cli.app import app
from medfedpure.core.errors import UnknownPluginError
from medfedpure.core.registry import KINDS, registry

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
