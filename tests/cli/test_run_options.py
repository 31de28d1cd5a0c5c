"""What the options of `demo` and `run` change: single values, threads, effort; and what a run's page then says."""

import json
import logging
import os
import re
import sys

import pytest
import torch
from typer.testing import CliRunner

from medfedpure.cli import main
from medfedpure.cli.app import app
from medfedpure.cli.threads import idle_cores, usable_cores, use_threads
from medfedpure.core.errors import ConfigError
from medfedpure.evaluation.store import recorded_threads
from medfedpure.job.config import RunConfig
from medfedpure.job.gain import gain_over_best
from medfedpure.job.presets import demo_config, is_demo
from medfedpure.job.records import RunResult
from medfedpure.job.run import run_job
from medfedpure.reporting.job.words import verdict

SMALL = [
    "data.config.images=300",
    "data.config.image_size=24",
    "data.clients=2",
    "data.train=0.4",
    "data.calibrate=0.3",
    "data.validation=0.1",
    "data.test=0.15",
    "classifier.config.widths=[8, 8]",
    "classifier.rounds=1",
    "classifier.training.steps=4",
    "purifier.rounds=1",
    "purifier.config.model.widths=[8, 8]",
    "purifier.config.model.unshuffle=4",
    "purifier.config.training.steps=3",
    "attack.config.steps=2",
]


@pytest.fixture
def threads():
    """The threads of the process as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A small demo by the command line: its output and its folder."""
    before, out = torch.get_num_threads(), tmp_path_factory.mktemp("demo") / "out"
    words = ["demo", "--out", str(out), "--threads", "1", *(word for one in SMALL for word in ("--set", one))]
    found = CliRunner().invoke(app, words)
    torch.set_num_threads(before)
    assert found.exit_code == 0, found.output
    return found.output, out


def test_values_are_set_one_by_one_and_kept_in_the_configuration(demo):
    _, out = demo
    config = RunConfig.from_toml(out / "config.toml")
    assert config == demo_config(None).with_settings(SMALL)
    assert config.classifier.config["widths"] == [8, 8]
    assert config.threads == 1


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("classifier.training.steps", "key=value is wanted"),
        ("=3", "key=value is wanted"),
        ("classifier..steps=3", "key=value is wanted"),
        ("classifier.training.stepz=3", "stepz"),
        ("seed.x=3", "seed holds one value"),
        ("classifier.training.steps=many", "steps"),
    ],
)
def test_a_value_that_does_not_fit_is_named(setting, words):
    with pytest.raises(ConfigError, match=words):
        demo_config(None).with_settings([setting])


def test_values_are_toml_or_else_text():
    config = demo_config(None).with_settings(["classifier.plugin=resnet18", 'data.partition="equal"', "threads = 2"])
    assert (config.classifier.plugin, config.data.partition, config.threads) == ("resnet18", "equal", 2)
    assert demo_config(None).with_settings(["data.config.x=1\ny = 2"]).data.config["x"] == "1\ny = 2", "one value"


@pytest.mark.parametrize(
    "setting",
    [
        "data.config.root=/scans/\U0001f600 \x7f é",
        "data.config.root=2026-01-31",
        "data.config.at=07:30:00",
        "data.config.of=[{plugin='a', config={b=1}}, {}]",
        "data.config.options={'no finding'=0, 'a.b'={'\"'=[true, 1e-9]}, 'é'='\\'}",
        "data.config.é =1",
    ],
)
def test_what_is_set_is_read_back_from_the_file(setting, tmp_path):
    config = demo_config(None).with_settings([setting])
    (tmp_path / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    assert RunConfig.from_toml(tmp_path / "config.toml") == config


def test_what_toml_cannot_say_is_refused_before_a_run(tmp_path):
    config = demo_config(tmp_path / "scans\udce9")
    with pytest.raises(ConfigError, match="TOML cannot say this configuration"):
        run_job(config, tmp_path / "out")


def test_the_first_lines_say_what_happens_and_every_phase_how_long(demo):
    output, _ = demo
    first = output.splitlines()
    assert first[0] == "2 hospitals train small_cnn and ddpm together; no image leaves them."
    assert first[2].startswith("How long is told soon")
    assert re.search(r"> classifier: .*\[about \d+ s, \d+ s\s+to\s+the\s+end\]", output, re.S)


def test_the_verdict_stands_first_on_the_page_and_last_in_the_terminal(demo):
    output, out = demo
    result = RunResult.model_validate_json((out / "results.json").read_text())
    name, gain = gain_over_best([client.gains for client in result.clients])
    assert {"bare", "anchor", "majority"} == set(result.clients[0].gains)
    text = verdict(result)
    assert text.startswith("No gain shown") == (gain.low <= 0)
    assert " ".join(text.split()) in " ".join(output.split())
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.index("balanced accuracy, mean over 2 clients") < page.index('class="bars"')
    assert page.index('class="bars"') < page.index('class="cards"') < page.index("<details>")
    assert page.count('<section class="tile">') == 2
    assert not any(key.startswith("gains") for key in result.mean)
    assert f"{100 * gain.value:+.1f} points" in page, name


def test_a_gain_whose_interval_holds_zero_is_not_shown(demo):
    _, out = demo
    stored = json.loads((out / "results.json").read_text())
    for client in stored["clients"]:
        client["gains"] = {"anchor": {"value": 0.2, "low": 0.1, "high": 0.3}}
    assert verdict(RunResult.model_validate(stored)).startswith("On attacked images the defence reaches")
    for client in stored["clients"]:
        client["gains"] = {"anchor": {"value": 0.2, "low": -0.1, "high": 0.3}}
    found = verdict(RunResult.model_validate(stored))
    assert found.startswith("No gain shown")
    assert "median on every image" in found
    for client in stored["clients"]:
        client["gains"] = {}
    assert "without" in verdict(RunResult.model_validate(stored)), "results of version 0.1 have no gains"


def test_quick_is_a_demo_too_and_set_values_are_none(tmp_path):
    for number, config in enumerate(
        [demo_config(None, 3, quick=True), demo_config(tmp_path, quick=True, compare=True), demo_config(None)]
    ):
        out = tmp_path / str(number)
        out.mkdir()
        (out / "config.toml").write_text(config.model_copy(update={"threads": 5}).to_toml())
        assert is_demo(out)
        (out / "config.toml").write_text(config.with_settings(["classifier.training.steps=7"]).to_toml())
        assert not is_demo(out)
    quick, full = demo_config(None, quick=True), demo_config(None)
    assert quick.purifier.config["training"]["steps"] < full.purifier.config["training"]["steps"]


def test_threads_are_chosen_once_and_what_is_continued_keeps_its_own(threads, monkeypatch):
    assert use_threads(3) == 3 == torch.get_num_threads()
    assert use_threads(None, 2) == 2 == torch.get_num_threads()
    assert use_threads(2, 2) == 2
    with pytest.raises(ConfigError, match="computed with 2 threads"):
        use_threads(3, 2)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert use_threads(None) == min(usable_cores(), 8)
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert idle_cores() == 1, "a busy machine leaves one"


@pytest.mark.parametrize(("text", "cores"), [("150000 100000", 1), ("max 100000", 4), ("800000 100000", 4), ("", 4)])
def test_a_containers_quota_counts(text, cores, tmp_path, monkeypatch):
    (tmp_path / "cpu.max").write_text(text)
    monkeypatch.setattr("medfedpure.cli.threads._QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert usable_cores() == cores


@pytest.mark.parametrize(
    ("said", "cores"), [("1", 1), (" 2 ", 2), ("3,2", 3), ("64", 4), ("0", 4), ("", 4), ("all", 4), ("-1", 4)]
)
def test_what_the_environment_says_of_threads_counts(said, cores, tmp_path, monkeypatch):
    """A cluster's scheduler says it, and whoever shares a machine."""
    monkeypatch.setattr("medfedpure.cli.threads._QUOTA", tmp_path / "none")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert usable_cores() == cores


def test_verbose_shows_the_log_and_where_an_error_arose(tmp_path, capsys, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    missing = str(tmp_path / "x.toml")
    for words, seen in ((["run", missing, "--out", str(tmp_path / "o")], False), (["run", "--verbose", missing], True)):
        monkeypatch.setattr(sys, "argv", ["medfedpure", *words, *(["--out", str(tmp_path / "o")] if seen else [])])
        with pytest.raises(SystemExit):
            main()
        said = capsys.readouterr().err
        assert "cannot be read" in said
        assert ("Traceback" in said) is seen
    (handler,) = root.handlers
    record = logging.LogRecord("medfedpure", logging.INFO, "x", 1, "scan\x1b[2J", None, None)
    assert "\\x1b[2J" in handler.format(record), "what is logged steers no terminal"
    root.setLevel(level)


def test_an_evaluation_is_continued_with_the_threads_it_was_begun_with(tmp_path):
    assert recorded_threads(tmp_path) is None, "a new folder"
    for text, threads in (('{"threads": 3}', 3), ("[]", None), ('{"threads": "x"}', None), ("{}", None)):
        (tmp_path / "setting.json").write_text(text)
        assert recorded_threads(tmp_path) == threads


@pytest.mark.parametrize("out", ["", "healthy", "new/deep"])
def test_results_are_not_written_into_the_images(out, tmp_path):
    (tmp_path / "healthy").mkdir()
    with pytest.raises(ConfigError, match="lies in the folder of the images"):
        run_job(demo_config(tmp_path), tmp_path / out)
    assert [path.name for path in tmp_path.iterdir()] == ["healthy"]


def test_help_shows_no_backslashes():
    found = CliRunner().invoke(app, ["demo", "--help"])
    assert "[default: 0]" in found.output
    assert "\\[" not in found.output + CliRunner().invoke(app, ["federation", "init", "--help"]).output
