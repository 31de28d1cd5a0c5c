"""What goes into a federated run and what comes out of it; no Flower type."""

from __future__ import annotations

import itertools
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field
from torch import nn

from medfedpure.core.config import Config
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import DataError, FederationError
from medfedpure.core.personalization import Tensors
from medfedpure.core.settings import TrainingConfig
from medfedpure.federation.privacy import PrivacyConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FederationConfig(Config):
    """When a round counts, how long it may take, and what one client may use."""

    quorum: float = Field(
        0.5, gt=0, le=1, description="share of the clients that must reply in every round; at least 1"
    )
    start_timeout: float = Field(120.0, gt=0, description="seconds until all clients must have answered at the start")
    round_timeout: float = Field(1800.0, gt=0, description="seconds to wait for the replies of one round")
    threads: int = Field(1, ge=1, description="torch threads of one client; equal in every runtime, so results are too")
    device: str = Field("cpu", description="where clients train: cpu, cuda, cuda:0")
    gpus_per_client: float = Field(0.0, ge=0, description="share of a GPU that one simulated client reserves")
    keep: Literal["last", "best"] = Field(
        "last",
        description="which personal model a client is left with: of the last round, or of the round that its "
        "validation images call best, under the attack of adversarial training where there is one",
    )
    privacy: PrivacyConfig | None = Field(None, description="differential privacy of the shared tensors, by client")

    def needed(self, clients: int) -> int:
        """How many of so many clients must reply: the quorum rounded up, at least one."""
        return max(1, math.ceil(self.quorum * clients - 1e-9))


@dataclass(frozen=True)
class Site:
    """One hospital.

    Attributes:
        client_id: its stable name: letters, digits, dot, dash and underscore.
        train: its training images, at least one.
        validation: held-out images on which its personal model is evaluated, or None.

    Raises:
        FederationError: a name that cannot name a folder.
        DataError: no training image, or validation images of another shape.
    """

    client_id: str
    train: ImageDataset
    validation: ImageDataset | None = None

    def __post_init__(self) -> None:
        check_name(self.client_id, "client")
        if len(self.train) == 0:
            raise DataError(f"client {self.client_id} has no training image: leave it out, or give it some")
        if self.validation is not None and self.validation.image_shape != self.train.image_shape:
            raise DataError(
                f"client {self.client_id} trains on images of shape {self.train.image_shape} and validates on "
                f"{self.validation.image_shape}: bring both to one shape"
            )


@dataclass(frozen=True)
class RoundRecord:
    """One round as the server saw it.

    Attributes:
        round: 1 ... rounds.
        seconds: wall clock of the round; the first evaluation of its outcome belongs to the next one.
        clients: by name, the metrics of the clients that took part: `train_loss` of the local
            training, and the figures of the task (`loss`, ...) on the client's validation images, those under
            the attack of adversarial training included where there is one.
            These are of the personal model *after* this round's aggregation, that is, of the model
            that would be exported had the run ended here.
        failed: by name, type of the error and where it happened, of the clients that did not.
        client_bytes_up: by name, payload in bytes from the client to the server; of failed clients, too,
            where a reply arrived.
        client_bytes_down: by name, payload in bytes from the server to the client.
    """

    round: int
    seconds: float
    clients: Mapping[str, Mapping[str, float]]
    failed: Mapping[str, str]
    client_bytes_up: Mapping[str, int] = field(default_factory=dict)
    client_bytes_down: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes_up(self) -> int:
        """Payload from all clients to the server."""
        return sum(self.client_bytes_up.values())

    @property
    def bytes_down(self) -> int:
        """Payload from the server to all clients."""
        return sum(self.client_bytes_down.values())


@dataclass
class Draft:
    """A round while it is being written down; see `RoundRecord`."""

    round: int
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    clients: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    client_bytes_up: dict[str, int] = field(default_factory=dict)
    client_bytes_down: dict[str, int] = field(default_factory=dict)

    def record(self) -> RoundRecord:
        """As it stands."""
        return RoundRecord(**self.document())

    def document(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {key: value for key, value in asdict(self).items() if key != "started"}

    def stop_clock(self) -> None:
        """It took until now."""
        self.seconds = time.perf_counter() - self.started


@dataclass(frozen=True)
class FederatedResult:
    """What a federated run leaves behind.

    Attributes:
        shared: the tensors at the server after the last round.
        models: by name, the personal model of each client, in eval mode: built from `shared` and
            the private tensors that the server last heard of, exactly as it was evaluated; where the best is
            kept, with the weights of its best round.
        history: one record per round.
        missing: by name, why a client has no personal model: it never took part, or its private
            tensors cannot be read.
        kept: by name, the round that a client's model is of.
    """

    shared: Tensors
    models: dict[str, nn.Module]
    history: tuple[RoundRecord, ...]
    missing: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)


def is_name(text: str) -> bool:
    """Whether a text can name a client or network, and a folder."""
    return _NAME.fullmatch(text) is not None


def check_name(name: str, what: str) -> None:
    """Raise FederationError unless a name can also name a folder."""
    if not is_name(name):
        raise FederationError(
            f"{name!r} cannot name a {what}: use up to 64 letters, digits, '.', '-', '_', "
            "beginning with a letter or digit"
        )


def check_sites(sites: Sequence[Site]) -> tuple[Site, ...]:
    """The sites sorted by name, after making sure that they can train one model together.

    Raises:
        FederationError: no site, or two of one name.
        DataError: images of different shapes or labels of different meaning.
    """
    if not sites:
        raise FederationError("a federation needs at least one site; got none")
    ordered = tuple(sorted(sites, key=lambda site: site.client_id))
    first = ordered[0]
    for before, site in itertools.pairwise(ordered):
        if site.client_id == before.client_id:
            raise FederationError(f"two sites are named {site.client_id!r}: names must be distinct")
        if site.train.image_shape != first.train.image_shape:
            raise DataError(
                f"client {site.client_id} has images of shape {site.train.image_shape}, client {first.client_id} of "
                f"{first.train.image_shape}: bring all to one shape (C, H, W)"
            )
        if site.train.class_names != first.train.class_names:
            raise DataError(
                f"client {site.client_id} has the classes {site.train.class_names}, client {first.client_id} "
                f"{first.train.class_names}: label K must mean the same everywhere"
            )
    return ordered


def check_rounds(rounds: int, training: TrainingConfig) -> None:
    """Raise FederationError unless every round has at least one optimizer step."""
    if rounds < 1:
        raise FederationError(f"a federated run needs at least 1 round; got {rounds}")
    if training.steps < rounds:
        raise FederationError(
            f"training.steps = {training.steps} is the budget of each client over all {rounds} rounds, which leaves "
            f"rounds without a step: raise steps to at least {rounds}, or run fewer rounds"
        )
