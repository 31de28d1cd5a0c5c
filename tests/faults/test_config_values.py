"""Configurations with values that are no numbers to work with, and files that no parser should be asked to take."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
from pydantic import Field

from medfedpure.cli.which import read_config
from medfedpure.core.config import Config
from medfedpure.core.errors import ArtifactError, ConfigError, MedFedPureError
from medfedpure.core.registry import create, registry
from medfedpure.core.settings import AdversarialTraining, Augmentation, TrainingConfig
from medfedpure.core.storage import read_json
from medfedpure.defence.voting import Vote
from medfedpure.evaluation.merge import merge
from medfedpure.job.config import DataChoice, DefenceChoice, PluginChoice, RunConfig
from medfedpure.job.presets import phantom_demo
from medfedpure.job.subject import load_subject

DEEP = "[" * 100_000
LONG = "1" * 5000


class Open(Config):
    """Numbers without bounds of their own."""

    number: float = Field(1.0, description="any")
    several: tuple[float, ...] = Field((), description="any")


@pytest.mark.parametrize(
    "value",
    [float("inf"), float("-inf"), float("nan"), "inf", "nan", 10**400, 10**5000],
    ids=["inf", "-inf", "nan", "text inf", "text nan", "401 digits", "5001 digits"],
)
def test_b14_no_configuration_takes_what_is_no_finite_number(value: object) -> None:
    """B14: infinity and NaN are refused by every configuration, built in or not."""
    for wrong in ({"number": value}, {"several": [1.0, value]}):
        with pytest.raises(ConfigError, match=r"finite|valid number"):
            Open.parse(wrong)
    for kind, field in ((TrainingConfig, "learning_rate"), (DataChoice, "alpha"), (Augmentation, "noise")):
        with pytest.raises(ConfigError, match=field):
            kind.parse({"plugin": "phantom", field: value} if kind is DataChoice else {field: value})
    with pytest.raises(ConfigError, match="eps"):
        AdversarialTraining.parse(eps=value)


def test_b14_options_of_a_plugin_inside_a_run_are_finite_too() -> None:
    """B14: also where only the plugin itself will know the field; such a file could not be written."""
    for options in ({"noise": float("nan")}, {"a": {"b": [1, float("inf")]}}):
        with pytest.raises(ConfigError, match="finite"):
            PluginChoice.parse(plugin="phantom", config=options)
    with pytest.raises(ConfigError, match="finite"):
        RunConfig.parse({**phantom_demo().model_dump(), "attack": {"plugin": "pgd", "config": {"x": float("nan")}}})


def test_b14_every_plugin_refuses_what_is_no_finite_number() -> None:
    """B14: no field of any built-in plugin takes infinity."""
    for record in registry().plugins():
        try:
            config = registry().load(record.kind, record.name).Config
        except MedFedPureError:
            continue
        for name, field in config.model_fields.items():
            if field.annotation in (float, float | None):
                with pytest.raises(ConfigError, match=name):
                    create(record.kind, record.name, {name: float("inf")})


@pytest.mark.parametrize(
    "options",
    [
        {"draws": 1.5},
        {"draws": "3"},
        {"draws": True},
        {"draws": float("nan")},
        {"draws": 3, "min_agreement": "x"},
        {"draws": 3, "min_agreement": float("nan")},
        {"draws": 3, "min_agreement": float("inf")},
        {"draws": 3, "min_agreement": None},
        {"draws": 3, "how": ["mean"]},
    ],
)
def test_b14_a_vote_of_one_and_a_half_draws_is_refused(options: dict) -> None:
    """B14: numbers of another kind than a vote counts in are refused when it is made."""
    with pytest.raises(ConfigError, match="a vote has draws"):
        Vote(**options)


def test_b14_a_vote_takes_numbers_of_numpy_as_plain_ones() -> None:
    """B14: the sibling that must go on working."""
    vote = Vote(numpy.int64(3), min_agreement=numpy.float32(0.5))
    assert vote == Vote(3, min_agreement=0.5)
    assert (type(vote.draws), type(vote.min_agreement)) == (int, float)


def test_b14_other_words_are_refused() -> None:
    """B14: a scope that does not exist."""
    with pytest.raises(ConfigError, match="scope"):
        DefenceChoice.parse(scope="x")


@pytest.mark.parametrize(
    "content",
    [f"a = {DEEP}", f"a = {LONG}", "a = " + "{b = " * 5000, "\ufeffa", "a = 2020-13-45"],
    ids=["brackets", "5000 digits", "tables", "mark", "date"],
)
def test_c_toml_that_is_nested_deep_or_endless(tmp_path: Path, content: str) -> None:
    """C, deep TOML and integers of 5,000 digits: a sentence that names the file."""
    path = tmp_path / "job.toml"
    path.write_text(content, encoding="utf-8")
    for read in (RunConfig.from_toml, read_config):
        with pytest.raises(ConfigError, match=r"job\.toml"):
            read(path)


@pytest.mark.parametrize(
    "content", [DEEP, f'{{"a": {LONG}}}', "{", "\xff"], ids=["brackets", "5000 digits", "cut off", "no text"]
)
def test_c_json_that_is_nested_deep_or_endless(tmp_path: Path, content: str) -> None:
    """C, deep JSON and integers of 5,000 digits: a sentence that names the file; also in a run's results."""
    (tmp_path / "results.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"results\.json"):
        read_json(tmp_path / "results.json")
    (tmp_path / "config.toml").write_text(phantom_demo().to_toml())
    (tmp_path / "defences" / "client_0").mkdir(parents=True)
    (tmp_path / "defences" / "client_0" / "medfedpure.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"results\.json"):
        load_subject(tmp_path)


def test_c_a_value_that_cannot_be_shown_is_no_reason_to_fail_otherwise() -> None:
    """C, integers of 5,000 digits: the error that names the field must not trip over them; nor does it print them."""
    for value in (10**5000, "x" * 10_000):
        with pytest.raises(ConfigError, match="number") as caught:
            Open.parse(number=value)
        assert len(str(caught.value)) < 500, "the whole value is in the text"


def test_c_nothing_cannot_be_merged() -> None:
    """C, `merge([])`: said in words; a generator of parts is no less than a list of them."""
    for nothing in ([], (), iter(())):
        with pytest.raises(ConfigError, match="one evaluation or more"):
            merge(nothing)  # type: ignore[arg-type]
