"""The whole job as one validated file."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from datetime import date, time
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import AliasChoices, Field, field_validator, model_validator

from medfedpure.core.config import Config
from medfedpure.core.errors import ConfigError
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.defence.policy import Policy
from medfedpure.defence.recipe import Recipe, policy_of

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class TomlConfig(Config):
    """A configuration that is a file of its own."""

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read and validate a file.

        Raises:
            ConfigError: no such file, not TOML, unknown keys or values out of range.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:  # no TOML, no text, thousands of digits, or nested too deep
            raise ConfigError(f"{path} is not a TOML file: {error}") from error
        try:
            return cls.parse(content)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def with_settings(self, settings: Sequence[str]) -> Self:
        """The configuration with single values replaced.

        Args:
            settings: each `key=value`, the key with dots as in `classifier.training.steps=50`, the value as TOML
                writes it; what TOML does not know is taken as text.

        Raises:
            ConfigError: no such key, or a value that does not fit; the text names it.
        """
        if not settings:
            return self
        content = self.model_dump(mode="json", exclude_none=True)
        for setting in settings:
            key, equals, value = setting.partition("=")
            *path, last = key.strip().split(".")
            if not equals or not all([*path, last]):
                raise ConfigError(f"key=value is wanted, such as classifier.training.steps=50; got {setting!r}")
            table = content
            for name in path:
                table = table.setdefault(name, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"{key}: {name} holds one value, and no further keys; got {setting!r}")
            table[last] = _value(value.strip())
        return self.parse(content)

    def to_toml(self) -> str:
        """The configuration as text that `from_toml` reads back.

        Raises:
            ConfigError: TOML cannot say it, as of a path whose bytes are no text.
        """
        lines: list[str] = []
        _emit(self.model_dump(mode="json", exclude_none=True), (), lines)
        text = "\n".join(lines).strip() + "\n"
        try:
            tomllib.loads(text)
        except ValueError as error:
            raise ConfigError(f"TOML cannot say this configuration: {error}: rename what is no text in it") from error
        return text


class PluginChoice(Config):
    """A plugin by name, with its own configuration."""

    plugin: str = Field(description="registered name")
    config: dict[str, Any] = Field(default_factory=dict, description="the plugin's configuration")

    @field_validator("config")
    @classmethod
    def _check_finite(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The plugin would refuse the number as well, but long after."""
        rest: list[Any] = [config]
        while rest:
            value = rest.pop()
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"numbers are finite; {value} is not")
            rest += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
        return config


class FederatedChoice(PluginChoice):
    """A plugin whose network is trained across the clients."""

    strategy: PluginChoice = Field(PluginChoice(plugin="fedavg"), description="personalization strategy")
    rounds: int = Field(2, ge=1, description="federated rounds; the plugin's training steps are spread over them")


class ClassifierChoice(FederatedChoice):
    """The classifier, and its training (other parts hold theirs in their own configuration)."""

    training: TrainingConfig = Field(
        TrainingConfig(steps=300, learning_rate=3e-3), description="steps are the total at each client"
    )
    augmentation: Augmentation = Field(
        Augmentation(intensity=0.3, noise=0.01), description="how training images are varied"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a label that goes to all classes alike")
    keep: Literal["last", "best"] = Field(
        "last",
        description="the model of the last round, or of the one that a client's validation images call best, under the "
        "attack of adversarial training where there is one",
    )
    weights: Literal["default", "imagenet", "none"] = Field(
        "default", description="what the network starts from; default: ImageNet where the plugin is made for it"
    )
    samples: float = Field(
        0.0,
        ge=0,
        le=100,
        description="images that the purifier draws, as a share of each client's training images and beside them; the "
        "purifier, such as class_ddpm, is then trained first",
    )


class DataChoice(PluginChoice):
    """Where the images come from, and how they are divided."""

    clients: int = Field(3, ge=1, description="hospitals")
    partition: Literal["site", "dirichlet", "equal"] = Field("equal", description="how groups go to clients")
    alpha: float = Field(1.0, gt=0, description="concentration of the Dirichlet partition")
    max_per_group: int | None = Field(None, ge=1, description="keep at most so many near-duplicates of a group")
    train: float = Field(0.55, gt=0, description="share for training")
    validation: float = Field(0.08, gt=0, description="share for watching the training")
    tune: float = Field(0.07, gt=0, description="share for choosing depths")
    calibrate: float = Field(0.15, gt=0, description="share for the threshold")
    test: float = Field(0.15, gt=0, description="share for the figures")

    def fractions(self) -> dict[str, float]:
        """Shares by part name."""
        return {name: getattr(self, name) for name in ("train", "validation", "tune", "calibrate", "test")}


class DefenceChoice(Config):
    """How the chain decides."""

    recipe: Recipe = Field(
        "paper",
        description="paper purifies what the detector flags; robust attacks three policies on the tune parts of all "
        "clients and takes the best; fast trains no purifier and refuses what is flagged",
    )
    policy: Policy | None = Field(None, description="what happens to images; by default the recipe says")
    target_fpr: float = Field(0.05, gt=0, lt=1, description="share of benign images that may be flagged")
    scope: Literal["client", "federation"] = Field(
        "client", description='"federation" pools benign scores (never images) where a client has too few'
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        policy_of(self.recipe, self.policy)
        return self

    def settled(self) -> Policy | None:
        """The policy; None where the recipe chooses it once all is trained."""
        return policy_of(self.recipe, self.policy)


class EvaluationChoice(Config):
    """What is measured."""

    anchor: PluginChoice = Field(PluginChoice(plugin="median"), description="purifier for the purify-all anchor")
    compare: tuple[str, ...] = Field(
        (), description="strategies by which the classifier is trained again, beside its own, to compare clients"
    )
    bpda: bool = Field(False, description="attack a chain that purifies through BPDA as well, with the same attack")
    batch_size: int = Field(64, ge=1, description="images at a time")


class RunConfig(TomlConfig):
    """The main job. `medfedpure run FILE.toml --out DIR` runs it."""

    seed: int = Field(0, description="of everything")
    runtime: Literal["in_process", "simulation"] = Field("in_process", description="where federated rounds run")
    device: str = Field("cpu", description="where networks work: cpu, cuda, cuda:0; others round differently")
    threads: int = Field(1, ge=1, description="torch threads of one client; another number may round differently")
    cache: bool = Field(
        True,
        description="keep decoded image files and their near-duplicates in the run's folder, in cache/, which only its "
        "owner can open: whoever evaluates the run need not decode them again; false leaves no copy of them there",
    )
    data: DataChoice = Field(description="images and their division")
    classifier: ClassifierChoice = Field(description="what reads the scans")
    detector: FederatedChoice = Field(description="what flags them")
    purifier: FederatedChoice = Field(description="what cleans them")
    defence: DefenceChoice = Field(
        default_factory=DefenceChoice,
        validation_alias=AliasChoices("defence", "defense"),  # the latter in files of version 0.1
        description="how the chain decides",
    )
    attack: PluginChoice = Field(PluginChoice(plugin="pgd"), description="who attacks the bare classifiers")
    evaluation: EvaluationChoice = Field(default_factory=EvaluationChoice, description="what is measured")


def _value(text: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = found["value"]
    return text if len(found) > 1 or isinstance(value, date | time) else value  # a folder may be named 2026-01-31


def _emit(table: dict[str, Any], path: tuple[str, ...], lines: list[str]) -> None:
    """Scalars first, then sub-tables."""
    if path and (not table or any(not isinstance(value, dict) for value in table.values())):
        lines += ["", f"[{'.'.join(map(_key, path))}]"]
    for key, value in table.items():
        if not isinstance(value, dict):
            lines.append(f"{_key(key)} = {_written(value)}")
    for key, value in table.items():
        if isinstance(value, dict):
            _emit(value, (*path, key), lines)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _written(key)


def _written(value: Any) -> str:
    """A value on one line; JSON's numbers, booleans and short characters are TOML's too."""
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_key(key)} = {_written(own)}' for key, own in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, str):  # JSON would write one character beyond 16 bits as two, which TOML refuses
        escaped = (json.dumps(c)[1:-1] if c < "\U00010000" else f"\\U{ord(c):08x}" for c in value)
        return f'"{"".join(escaped)}"'
    return json.dumps(value, allow_nan=False)
