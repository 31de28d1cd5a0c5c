"""Too few images, one class, a wrong folder or recipe: told before anything is trained, with what to do."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from documentation import ROOT
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.cli.job import RECIPES
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import CalibrationError, ConfigError, DataError, MedFedPureError
from medfedpure.defence.recipe import Recipe
from medfedpure.job.config import RunConfig
from medfedpure.job.presets import demo_config
from medfedpure.job.run import _check_recipe, run_job
from medfedpure.testing import tiny_dataset

Run = Callable[..., tuple[MedFedPureError, list[str]]]


class Given:
    """A data set that was read already."""

    def __init__(self, data: ImageDataset) -> None:
        self._data = data

    def read(self) -> ImageDataset:
        """It."""
        return self._data


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the demo of a folder on images that are given, and returns the error and all that was said before."""

    def run(data: ImageDataset, *settings: str) -> tuple[MedFedPureError, list[str]]:
        monkeypatch.setattr("medfedpure.job.division.create", lambda *_: Given(data))
        monkeypatch.setattr("medfedpure.job.run.forecast", lambda *_: pytest.fail("it was let pass"))
        said: list[str] = []
        config = demo_config(tmp_path / "images").with_settings(settings)
        with pytest.raises(MedFedPureError) as caught:
            run_job(config, tmp_path / "out", say=said.append)
        return caught.value, said

    return run


def images(count: int, groups: int) -> ImageDataset:
    """So many images, the first `groups` of them independent; all others are copies of the first two."""
    of = torch.arange(count)
    return replace(tiny_dataset(count, seed=1), groups=torch.where(of < groups, of, of % 2))


def test_too_few_for_the_threshold_says_how_many_count_and_how_many_are_wanted(refused: Run) -> None:
    error, said = refused(images(80, 60), "data.max_per_group=100")
    assert isinstance(error, CalibrationError)
    for words in (
        "15 at all 3 clients together",
        "a false-positive rate of 0.05 wants at least 19",
        "The 80 images hold 60 independent ones (near-duplicates are merged, and count once)",
        "about 100 are wanted for 3 clients",
        "--set defence.target_fpr=0.1",
    ):
        assert words in str(error)
    assert "allow_never_flagging" not in str(error), "no option of the command"
    assert [line.partition(":")[0] for line in said] == ["data"], "nothing was timed or trained"


def test_where_each_client_calibrates_each_must_have_enough(refused: Run) -> None:
    error, _ = refused(images(100, 100), "defence.scope=client")
    assert "at client_0" in str(error)
    assert "about 300 are wanted for 3 clients" in str(error)
    assert "near-duplicates" not in str(error), "there are none"
    assert "--set defence.scope=federation" in str(error)


def test_too_few_to_deal_says_the_same(refused: Run) -> None:
    error, _ = refused(images(20, 6), "data.max_per_group=100")
    assert isinstance(error, DataError)
    assert "The 20 images hold 6 independent ones" in str(error)
    assert "about 100 are wanted" in str(error)


def test_what_is_not_a_matter_of_their_number_gets_no_such_advice(refused: Run) -> None:
    error, _ = refused(images(120, 120), "data.partition=site", "data.clients=30")
    assert "sites" in str(error)
    assert "independent" not in str(error)


@pytest.mark.parametrize("names", [("disc",), ()])
def test_a_folder_of_one_class_or_none_is_refused_first(names: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for name in names:
        (folder / name).mkdir(parents=True)
    words = ["demo", "--data", str(folder), "--out", str(tmp_path / "out")]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, DataError)
    assert ("holds one class, disc" if names else "does not exist") in str(found.exception)
    assert "hospitals train" not in found.output
    path = tmp_path / "config.toml"
    path.write_text(demo_config(folder).to_toml(), encoding="utf-8")
    again = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "out")])
    assert str(again.exception) == str(found.exception)
    assert "hospitals train" not in again.output


def test_one_class_by_any_other_door_is_refused_too(refused: Run) -> None:
    data = tiny_dataset(120, seed=1)
    one = replace(data, labels=torch.zeros_like(data.labels), class_names=("disc",), positive=())
    error, _ = refused(one)
    assert isinstance(error, DataError)
    assert "one class, disc" in str(error)


@pytest.mark.parametrize(("given", "guess"), [("robst", "Did you mean 'robust'? "), ("x", "")])
def test_a_wrong_recipe_is_refused_with_the_nearest_name(given: str, guess: str, tmp_path: Path) -> None:
    for words in (["demo"], ["run", "no.toml"]):
        found = CliRunner().invoke(app, [*words, "--recipe", given, "--out", str(tmp_path)])
        assert isinstance(found.exception, ConfigError)
        assert str(found.exception) == f"no recipe is named {given!r}. {guess}The recipes are paper, robust, fast"


def test_the_page_shows_all_that_fast_changes_in_a_demos_file() -> None:
    page = (ROOT / "docs" / "how-to" / "choose-a-recipe.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (command,) = re.findall(r"`medfedpure run demo/config.toml (.*?)`", page.replace("\n", " "))
    words = shlex.split(command)
    said = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    demo, changed = demo_config(None).model_dump(mode="json", exclude_none=True), tomllib.loads(text)
    for table, values in changed.items():
        demo[table] |= values
    config = RunConfig.parse(demo)
    _check_recipe(config)
    assert config == demo_config(None).with_settings(["defence.recipe=fast", *said]) == demo_config(None, recipe="fast")


def test_the_command_knows_the_recipes_without_torch() -> None:
    assert get_args(Recipe) == RECIPES
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom medfedpure.cli.app import app\n"
        "for words in (['--recipe', 'robst'], ['--data', 'nowhere']):\n"
        "    assert CliRunner().invoke(app, ['demo', *words]).exception is not None\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
