"""One part trained across clients, as one validated file: on one machine, or over the network."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from medfedpure.federation import FederationConfig
from medfedpure.job.config import ClassifierChoice, DataChoice, FederatedChoice, PluginChoice, TomlConfig

PartKind = Literal["classifier", "detector", "purifier"]
_KINDS: tuple[PartKind, ...] = ("classifier", "detector", "purifier")


class ComponentConfig(TomlConfig):
    """Exactly one of [classifier], [detector] and [purifier], and when a round counts."""

    seed: int = Field(0, description="of everything")
    classifier: ClassifierChoice | None = Field(None, description="train a classifier")
    detector: FederatedChoice | None = Field(None, description="or a detector with a network")
    purifier: FederatedChoice | None = Field(None, description="or a purifier with a network")
    federation: FederationConfig = Field(FederationConfig(), description="quorum, timeouts, threads and device")

    @model_validator(mode="after")
    def _check_one_part(self) -> Self:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of [classifier], [detector] and [purifier] is wanted; got {', '.join(given) or 'none'}"
            )
        if self.classifier is not None and self.classifier.samples:
            raise ValueError(
                "classifier.samples are drawn by a purifier, which only medfedpure run trains beside the classifier: "
                "set it to 0 here"
            )
        return self

    @property
    def kind(self) -> PartKind:
        """Which part is trained."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)

    @property
    def choice(self) -> FederatedChoice:
        """Its plugin, strategy and rounds."""
        chosen: FederatedChoice = getattr(self, self.kind)
        return chosen


class FederateConfig(ComponentConfig):
    """`medfedpure federate FILE.toml --out DIR`: all clients on this machine."""

    runtime: Literal["in_process", "simulation"] = Field("in_process", description="where federated rounds run")
    data: DataChoice = Field(description="images and their division; train and validation are used")


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
    validation: float = Field(0.2, ge=0, lt=1, description="share of the images, by group, that is only looked at")
    seed: int = Field(0, description="of the split into training and validation images")
    state_dir: Path = Field(description="folder of the private tensors; readable by this site alone")
    out: Path = Field(description="folder of the personal model that the last round leaves")
    device: str = Field("cpu", description="where this site trains: cpu, cuda, cuda:0")
    threads: int = Field(1, ge=1, description="torch threads of this site")
