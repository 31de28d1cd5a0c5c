"""Configuration records: frozen, strict, with errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from medfedpure.core.config import Config, Eps
from medfedpure.core.errors import ConfigError


class Inner(Config):
    """A section."""

    steps: int = Field(3, ge=1, description="how many")


class Outer(Config):
    """A whole."""

    eps: Eps = Field(0.015, description="budget")
    inner: Inner = Field(default_factory=Inner, description="section")
    root: Path | None = Field(None, description="folder")


@pytest.mark.parametrize(("given", "wanted"), [("8/255", 8 / 255), ("0.03", 0.03), (0, 0.0), (" 4 / 255 ", 4 / 255)])
def test_eps_takes_fractions(given: object, wanted: float) -> None:
    assert Outer.parse({"eps": given}).eps == pytest.approx(wanted), f"{given!r} was read wrongly"


@pytest.mark.parametrize("given", ["8/0", "eight", "300/255", -0.1, 1.5, float("nan"), None, ""])
def test_bad_eps(given: object) -> None:
    with pytest.raises(ConfigError, match="eps"):
        Outer.parse({"eps": given})


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ConfigError, match="epss: unknown key; Outer knows: eps, inner, root"):
        Outer.parse(epss=1)
    with pytest.raises(ConfigError, match=r"a: unknown key; b: unknown key; Outer knows: eps, inner, root$"):
        Outer.parse(a=1, b=2)
    with pytest.raises(ConfigError, match=r"inner\.step: unknown key"):
        Outer.parse({"inner": {"step": 1}})


def test_every_problem_is_listed() -> None:
    with pytest.raises(ConfigError) as caught:
        Outer.parse({"eps": 2, "inner": {"steps": 0}, "more": 1})
    for part in ("eps", "inner.steps", "more"):
        assert part in str(caught.value), f"{part} is missing in: {caught.value}"


def test_instances_mappings_and_options() -> None:
    config = Outer.parse({"eps": "1/4"}, inner={"steps": 9})
    assert config.inner.steps == 9, "options were lost"
    assert Outer.parse(config) == config, "an instance must be taken as it is"
    assert Outer.parse(config, eps=0.5).inner.steps == 9, "options must add to an instance"
    assert Outer.parse() == Outer(), "nothing given means defaults"
    assert Outer.parse(config.model_dump(mode="json")) == config, "JSON must bring the same back"
    with pytest.raises(ConfigError, match="expected a Outer; got a Inner"):
        Outer.parse(Inner())


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().eps = 0.1
    assert hash(Inner()) == hash(Inner()), "a frozen record can be hashed"
