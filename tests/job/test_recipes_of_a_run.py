"""Recipes of a run: what is trained, how one policy is chosen for all clients, and what the page says of it."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from test_job import SMALL
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.errors import CalibrationError, ConfigError, WeakDefenceWarning
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.job.config import DefenceChoice, RunConfig
from medfedpure.job.presets import demo_config, is_demo
from medfedpure.job.run import Job, run_job
from medfedpure.reporting.job.page import write_run_page
from medfedpure.reporting.job.picture import save_gallery
from medfedpure.reporting.job.table import choice_cells, choice_conditions, markdown
from medfedpure.reporting.job.words import caveats

FEWER: dict[str, Any] = {**SMALL, "evaluation": {"bpda": False, "compare": []}}
CHEAP = {"plugin": "feature_squeezing", "config": {"bits": []}}


def run(out: Path, recipe: str, **changes: Any) -> tuple[Job, list[str]]:
    said: list[str] = []
    config = RunConfig.parse({**FEWER, "defence": {"recipe": recipe}, **changes})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeakDefenceWarning)
        job = run_job(config, out, say=said.append)
    save_gallery(job, out / "gallery.png")
    write_run_page(job.result, out)
    return job, said


def test_robust_chooses_one_policy_for_all_clients_and_says_how(tmp_path: Path) -> None:
    job, said = run(tmp_path, "robust", purifier={"plugin": "median"}, detector=CHEAP)
    result = job.result
    assert result.choice is not None
    assert {chain.policy for chain in job.chains.values()} == {result.policy} == {result.choice["policy"]}
    groups = sum(parts["tune"].num_groups for parts in job.parts.values())
    assert result.choice["images"] == groups, "one image of each group of every client"
    tried = [arm for arm in result.choice["arms"] if arm["clean"] > result.choice["guessing"]] or result.choice["arms"]
    assert next(arm for arm in tried if arm["policy"] == result.policy)["worst"] == max(arm["worst"] for arm in tried)
    assert json.loads((tmp_path / "results.json").read_text())["choice"] == result.choice
    assert DefendedClassifier.load(tmp_path / "defences" / "client_0").choice == job.chains["client_0"].choice
    rows = choice_cells(result)
    assert [row[0] for row in rows[1:]] == ["none", "purify_flagged", "purify_all"]
    notes = " ".join(choice_conditions(result))
    for words in ("norm linf, eps 0.015", "EoT 1", "looks better than it is", "labels"):
        assert words in notes
    assert any("was chosen on" in line for line in caveats(result))
    assert "attacked through it" in markdown(result)
    page = (tmp_path / "report.html").read_text()
    assert "How the policy was chosen" in page
    assert any(line.startswith("choose the policy") for line in said)


def test_fast_trains_no_purifier_and_refuses(tmp_path: Path) -> None:
    job, said = run(tmp_path, "fast", detector=CHEAP)
    assert {chain.policy for chain in job.chains.values()} == {"abstain"} == {job.result.policy}
    assert all(chain.purifier is None for chain in job.chains.values())
    assert "purifier" not in job.result.seconds
    assert not any(line.startswith("purifier") for line in said)
    assert job.result.choice is None
    assert any("a refusal counts as an error" in line for line in caveats(job.result))
    assert choice_cells(job.result) == []


def test_fast_refuses_a_detector_that_needs_the_purifier(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'denoising_disagreement' needs one .*feature_squeezing"):
        run(tmp_path / "out", "fast")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"recipe": "robust", "policy": "none"}, "leave the policy out"),
        ({"recipe": "fast", "policy": "purify_all"}, "needs: leave the policy out"),
        ({"recipe": "best"}, "recipe"),
    ],
)
def test_contradictions_are_refused(given: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        RunConfig.parse({**FEWER, "defence": given})


def test_a_recipe_settles_the_policy() -> None:
    assert DefenceChoice().settled() == "purify_flagged"
    assert DefenceChoice(policy="purify_all").settled() == "purify_all"
    assert DefenceChoice(recipe="fast").settled() == "abstain"
    assert DefenceChoice(recipe="robust").settled() is None


def test_a_file_says_the_recipe_and_reads_back() -> None:
    config = RunConfig.parse({**FEWER, "defence": {"recipe": "robust"}})
    text = config.to_toml()
    assert 'recipe = "robust"' in text
    assert "policy" not in text


def test_robust_without_adversarial_training_is_warned_of(tmp_path: Path) -> None:
    """Too few images for a threshold end these runs before anything is trained."""
    few = {**FEWER, "defence": {"recipe": "robust"}, "data": {**SMALL["data"], "calibrate": 0.02}}
    with (
        pytest.warns(WeakDefenceWarning, match=r"set share = 0\.5 under \[classifier\.strategy\.config\.adversarial\]"),
        pytest.raises(CalibrationError),
    ):
        run_job(RunConfig.parse(few), tmp_path / "out")
    strategy = {"plugin": "fedper", "config": {"adversarial": {"share": 0.5}}}
    hardened = {**few, "classifier": {**SMALL["classifier"], "strategy": strategy}}
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeakDefenceWarning)
        with pytest.raises(CalibrationError):
            run_job(RunConfig.parse(hardened), tmp_path / "out")


def test_the_command_takes_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RunConfig.parse(FEWER).to_toml())
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), "--recipe", "fast"])
    assert isinstance(result.exception, ConfigError)
    assert "fits no purifier" in str(result.exception)
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out"), "--recipe", "best"])
    assert "recipe" in str(result.exception)


def test_two_recipes_on_one_command_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(RunConfig.parse({**FEWER, "detector": CHEAP}).to_toml())
    asked = ["--recipe", "fast", "--set", "defence.recipe=robust", "--out", str(tmp_path / "out")]
    for command in (["run", str(path)], ["demo"]):
        result = CliRunner().invoke(app, [*command, *asked])
        assert isinstance(result.exception, ConfigError)
        assert "--recipe says 'fast', and --set 'robust'" in str(result.exception)


@pytest.mark.parametrize("recipe", ["paper", "robust", "fast"])
def test_a_demo_by_a_recipe_is_a_demo_that_another_may_replace(recipe: str, tmp_path: Path) -> None:
    for number, (data, quick) in enumerate([(None, True), (None, False), (tmp_path, True)]):
        out = tmp_path / str(number)
        out.mkdir()
        config = demo_config(data, 3, quick=quick, recipe=recipe)
        assert config.defence.recipe == recipe
        (out / "config.toml").write_text(config.to_toml())
        assert is_demo(out)
        (out / "config.toml").write_text(config.with_settings(["defence.target_fpr=0.1"]).to_toml())
        assert not is_demo(out)


def test_robust_wants_an_attack_to_choose_under(tmp_path: Path) -> None:
    config = {**FEWER, "defence": {"recipe": "robust"}, "attack": {"plugin": "pgd", "config": {"eps": 0.0}}}
    with pytest.raises(ConfigError, match="that has eps 0"):
        run_job(RunConfig.parse(config), tmp_path / "out")


def test_an_attack_through_a_purifier_that_is_not_there_is_not_told(tmp_path: Path) -> None:
    job, _ = run(tmp_path, "fast", detector=CHEAP, evaluation={"bpda": True, "compare": []})
    assert job.result.bpda is None
    assert "bpda_robust_balanced_accuracy" not in job.result.mean
    assert not any("through the whole chain" in line for line in caveats(job.result))
    assert "BPDA" not in markdown(job.result)
