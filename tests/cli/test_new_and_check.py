"""`medfedpure new` writes projects whose tests pass at once; `medfedpure check` says in words what fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli.app import app
from medfedpure.cli.new import write_project
from medfedpure.core.errors import ConfigError, UnknownPluginError
from medfedpure.core.registry import KINDS

BROKEN = "my_broken"


@pytest.fixture(scope="module")
def projects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One project of every kind, and a detector whose score points the wrong way."""
    root = tmp_path_factory.mktemp("projects")
    folders = {f"my_{kind}": root / f"my-{kind}" for kind in KINDS} | {BROKEN: root / "my-broken"}
    for name, folder in folders.items():
        write_project("detector" if name == BROKEN else name.removeprefix("my_"), name, folder)
    module = folders[BROKEN] / f"medfedpure_{BROKEN}" / "detector.py"
    text = module.read_text(encoding="utf-8")
    assert "return (images" in text, "the template changed: plant the fault anew"
    module.write_text(text.replace("return (images", "return -(images"), encoding="utf-8")
    return folders


@pytest.fixture(scope="module")
def environment(projects: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """All of them, installed by pip into a folder of their own, without a network."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder)]
    answer = subprocess.run([*command, *map(str, projects.values())], capture_output=True, text=True)
    assert answer.returncode == 0, f"pip could not install the projects:\n{answer.stdout}{answer.stderr}"
    return {**os.environ, "PYTHONPATH": str(folder), "MEDFEDPURE_STRICT_PLUGINS": "1", "COLUMNS": "200"}


def test_the_tests_of_new_projects_pass_at_once(projects: dict[str, Path], environment: dict[str, str]) -> None:
    folders = [str(folder) for name, folder in projects.items() if name != BROKEN]
    root = str(next(iter(projects.values())).parent)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", root, *folders]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert answer.returncode == 0, f"a new project does not pass its own tests:\n{answer.stdout[-4000:]}"
    last = answer.stdout.splitlines()[-1]
    assert int(last.split(" passed")[0].split()[-1]) > 100, f"six contracts ran fewer tests than expected: {last}"


def test_check_says_what_fails_and_ends_with_1(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "medfedpure", "check", BROKEN, "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 1, f"a faulty plugin must end with 1; got {answer.returncode}:\n{answer.stderr[-2000:]}"
    verdict = json.loads(answer.stdout)
    found = {finding["check"]: finding["found"] for finding in verdict["failed"]}
    assert found.keys() == {"a planted shift is detected"}, f"other checks fail: {found}"
    assert "Higher must mean more suspicious" in found["a planted shift is detected"]
    assert len(verdict["passed"]) > 20, f"only {len(verdict['passed'])} checks passed"


def test_check_in_words(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "medfedpure", "check", "my_dataset", "--verbose"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, f"a good data set fails:\n{answer.stdout}{answer.stderr}"
    assert "passes: reading repeats" in answer.stdout, f"what passes is not listed:\n{answer.stdout}"
    assert "0 fail" in answer.stdout, f"the summary is missing:\n{answer.stdout}"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["new", "detecter", "mine"], ConfigError, "no plugin kind is named 'detecter'"),
        (["new", "detector", "My-Detector"], ConfigError, "small letters"),
        (["new", "detector", "mae"], ConfigError, "cannot be shadowed"),
        (["new", "detector", "mine", "--out", "tests"], ConfigError, "not an empty folder"),
        (["check", "no_such_plugin"], UnknownPluginError, "no plugin is named 'no_such_plugin'"),
        (["check", "art"], UnknownPluginError, "--kind attack"),
        (["check", "median", "--config", "no-such-file.toml"], ConfigError, "no-such-file.toml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_named(arguments: list[str], error: type[Exception], words: str, monkeypatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, error), f"{result.exception!r} came"
    assert words in str(result.exception), f"the error does not say {words!r}: {result.exception}"


def test_the_version_is_told():
    answer = CliRunner().invoke(app, ["--version"])
    assert answer.exit_code == 0
    assert answer.output.strip() == f"medfedpure {medfedpure.__version__}"
