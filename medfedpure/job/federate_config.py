"""Parts trained across clients, and the defence that each client makes of them, as one validated file.

For one machine, or for a federation over the network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medfedpure.core.config import Config
from medfedpure.defence.budget import Budget
from medfedpure.defence.recipe import Recipe
from medfedpure.federation import FederationConfig
from medfedpure.job.config import ClassifierChoice, DataChoice, FederatedChoice, PluginChoice, TomlConfig

PartKind = Literal["classifier", "purifier", "detector"]
KINDS: tuple[PartKind, ...] = ("classifier", "purifier", "detector")
"""In the order in which they are trained: a detector may be finished beside the other two."""


class FederatedDefence(Config):
    """What every client makes of its parts, on its own images alone."""

    recipe: Recipe = Field(
        "paper",
        description="paper purifies what the detector flags; robust attacks three policies on images that the client "
        "holds out for it and takes the best; fast needs no purifier and refuses what is flagged",
    )
    target_fpr: float = Field(0.05, gt=0, lt=1, description="share of benign images that may be flagged")
    detector: PluginChoice | None = Field(
        None, description="fitted at each client beside its own classifier; by default [detector], else the recipe's"
    )
    budget: Budget = Field("standard", description="how long that detector is trained, where it is: quick, thorough")


class ComponentConfig(TomlConfig):
    """One of [classifier], [detector] and [purifier], or with [defence] several, and when a round counts."""

    seed: int = Field(0, description="of everything")
    classifier: ClassifierChoice | None = Field(None, description="train a classifier")
    detector: FederatedChoice | None = Field(None, description="or a detector with a network")
    purifier: FederatedChoice | None = Field(None, description="or a purifier with a network")
    defence: FederatedDefence | None = Field(
        None, description="train classifier and purifier, and a detector where there is one, and make a defence of them"
    )
    federation: FederationConfig = Field(FederationConfig(), description="quorum, timeouts, threads and device")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        given = self.kinds
        if self.defence is None and len(given) != 1:
            raise ValueError(
                "exactly one of [classifier], [detector] and [purifier] is wanted, or [defence] beside them, for which "
                f"they are trained one after the other; got {', '.join(given) or 'none'}"
            )
        if self.classifier is not None and self.classifier.samples:
            raise ValueError(
                "classifier.samples are drawn by a purifier, which only medfedpure run trains beside the classifier: "
                "set it to 0 here"
            )
        return self

    @model_validator(mode="after")
    def _check_defence(self) -> Self:
        chosen = self.defence
        if chosen is None:
            return self
        if self.classifier is None:
            raise ValueError("[defence] is built around a classifier, and the file trains none: add [classifier]")
        if chosen.recipe == "fast" and self.purifier is not None:
            raise ValueError(
                "the recipe 'fast' uses no purifier, and [purifier] would be trained for nothing: leave it out, or "
                "take the recipe 'paper' or 'robust'"
            )
        if chosen.recipe != "fast" and self.purifier is None:
            raise ValueError(
                f"the recipe {chosen.recipe!r} needs a purifier, and the file trains none: add [purifier], such as "
                "plugin = \"ddpm\", or take the recipe 'fast'"
            )
        if chosen.detector is not None and self.detector is not None:
            raise ValueError(
                "[detector] is trained across clients, defence.detector fitted at each alone: leave one of them out"
            )
        return self

    @property
    def kinds(self) -> tuple[PartKind, ...]:
        """Which parts are trained, in that order."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)


class FederateConfig(ComponentConfig):
    """`medfedpure federate FILE.toml --out DIR`: all clients on this machine."""

    runtime: Literal["in_process", "simulation"] = Field("in_process", description="where federated rounds run")
    data: DataChoice = Field(
        description="images and their division: train and validation; with [defence] calibrate for the threshold, test "
        "to try it, and under the recipe robust tune to choose the policy"
    )


class ImagesChoice(TomlConfig):
    """What the images of every site are like; the server knows no more of them."""

    channels: int = Field(1, ge=1, description="1 or 3")
    size: int = Field(ge=8, description="height and width in pixels")
    class_names: tuple[str, ...] = Field(min_length=2, description="label K means name K; the last one is positive")


class DeploymentConfig(ComponentConfig):
    """`federation.toml` of a deployment; it travels to every site with the app."""

    clients: tuple[str, ...] = Field(min_length=1, description="the names of the sites that may take part")
    images: ImagesChoice = Field(description="what the images are like")


class SiteConfig(TomlConfig):
    """`site.toml`: what a hospital alone decides. It never leaves the site."""

    client: str = Field(description="the site's name, one of `clients` in federation.toml")
    data: PluginChoice = Field(description="where this site's images are")
    validation: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="share of the images, by group, that is only looked at; the recipe robust chooses its policy there",
    )
    calibration: float = Field(
        0.2, gt=0, lt=1, description="with [defence]: share of the images, by group, that sets the threshold alone"
    )
    check: float = Field(
        0.1, ge=0, lt=1, description="with [defence]: share, by group, on which it is tried at its end; 0 = it is not"
    )
    tell_check: bool = Field(
        False, description="with [defence]: let the server learn the counts of that trial, besides that it is done"
    )
    seed: int = Field(0, description="of the split of the images into these parts")
    state_dir: Path = Field(description="folder of the private tensors; readable by this site alone")
    out: Path = Field(description="folder of the personal parts that the last rounds leave, and of the defence")
    device: str = Field("cpu", description="where this site trains: cpu, cuda, cuda:0")
    threads: int = Field(1, ge=1, description="torch threads of this site")
