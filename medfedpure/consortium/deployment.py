"""A federation over the network: what the Flower app of a consortium calls, at the server and at each site.

The server reads `federation.toml`, which travels with the app. A site reads that and its own `site.toml`,
whose place the hospital names in its SuperNode's configuration, so that no run can choose the data.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError, DataError, FederationError
from medfedpure.core.personalization import Scalar
from medfedpure.core.registry import create
from medfedpure.core.storage import write_json
from medfedpure.core.streams import derive_seed
from medfedpure.federation import (
    ClientSide,
    FederatedResult,
    RoundLoop,
    RoundRecord,
    SeededModel,
    ServerSide,
    Site,
    deployed_client_app,
    deployed_server_app,
)
from medfedpure.job.federate import Watch, claim_folder, summary, train_across
from medfedpure.job.federate_config import DeploymentConfig, SiteConfig
from medfedpure.job.federated_component import FederatedComponent, images_of

SITE_KEY = "site"
OUT_VARIABLE = "MEDFEDPURE_SERVER_OUT"
RESULTS, CHECKPOINT, FAILURE = "results.json", "checkpoint", "failure.json"


def client_app(federation: Path) -> Any:
    """The Flower ClientApp of every site.

    Args:
        federation: `federation.toml` of the app.
    """

    def side_of(node_config: Mapping[str, Scalar]) -> ClientSide:
        if SITE_KEY not in node_config:
            raise ConfigError(
                f"this SuperNode does not say where its site.toml is: start it with --node-config '{SITE_KEY}=\"/...\"'"
            )
        return site_side(DeploymentConfig.from_toml(federation), Path(str(node_config[SITE_KEY])))

    return deployed_client_app(side_of)


def server_app(federation: Path) -> Any:
    """The Flower ServerApp; it writes checkpoint and results into the folder that an environment variable names.

    Args:
        federation: `federation.toml` of the app.
    """

    def make_loop() -> RoundLoop:
        if not os.environ.get(OUT_VARIABLE):
            raise ConfigError(f"set {OUT_VARIABLE} to a folder for checkpoint and results where the SuperLink starts")
        out = Path(os.environ[OUT_VARIABLE])
        (out / FAILURE).unlink(missing_ok=True)
        return server_loop(DeploymentConfig.from_toml(federation), out)

    def write_reason(error: Exception) -> None:
        out = Path(os.environ.get(OUT_VARIABLE, ""))
        if os.environ.get(OUT_VARIABLE) and out.is_dir():
            write_json(out / FAILURE, {"error": type(error).__name__, "text": str(error)})

    return deployed_server_app(make_loop, write_reason)


def server_loop(config: DeploymentConfig, out: Path) -> RoundLoop:
    """The rounds at the server; a run that was cut off goes on from `out`."""
    claim_folder(config, out)
    component = FederatedComponent(config, config.images)

    def record(history: tuple[RoundRecord, ...]) -> None:
        write_json(out / RESULTS, summary(component, history))

    side = ServerSide(
        config.clients,
        component.strategy,
        SeededModel(component.make_model, component.seed),
        component.training,
        config.choice.rounds,
        component.seed,
        config.federation,
    )
    return RoundLoop(side, checkpoint=out / CHECKPOINT, watch=record)


def site_side(config: DeploymentConfig, site_file: Path) -> ClientSide:
    """What a site holds, from its own file; relative folders in it are relative to that file.

    Raises:
        ConfigError, DataError, FederationError: the file, its data or its name do not fit the federation.
    """
    own = SiteConfig.from_toml(site_file)
    component = FederatedComponent(config, config.images)

    def export(network: nn.Module, site: Site) -> None:
        component.export(network, site.train, site_file.parent / own.out / config.kind)

    return ClientSide(
        component.strategy,
        component.task(),
        SeededModel(component.make_model, component.seed, own.device),
        lambda _: read_site(config, own, site_file),
        (site_file.parent / own.state_dir).resolve() / config.kind,
        own.threads,
        export,
        config.federation.keep,
    )


def read_site(config: DeploymentConfig, own: SiteConfig, site_file: Path) -> Site:
    """A site's images, split into those it trains on and those it only looks at."""
    if own.client not in config.clients:
        raise FederationError(
            f"{site_file} calls this site {own.client!r}; the federation knows {', '.join(config.clients)}"
        )
    data: ImageDataset = create("dataset", own.data.plugin, own.data.config).read()
    found = images_of(data)
    if found != config.images:
        raise DataError(
            f"the federation wants {config.images}, and the images of this site are {found}: "
            f"change [data] in {site_file}"
        )
    if own.validation == 0:
        return Site(own.client, data)
    shares = {"train": 1 - own.validation, "validation": own.validation}
    parts = data.split(shares, seed=derive_seed(own.seed, "site", own.client))
    return Site(own.client, parts["train"], parts["validation"])


def rehearse(federation: Path, site_files: Sequence[Path], out: Path, watch: Watch | None = None) -> FederatedResult:
    """The same federation on this machine, without a network: to try a configuration, or to compare.

    Args:
        federation: `federation.toml`.
        site_files: the `site.toml` of every site; their `state_dir` and `out` are not touched.
        out: receives what `medfedpure federate` writes.
        watch: receives all records so far after every round.
    """
    config = DeploymentConfig.from_toml(federation)
    claim_folder(config, out)
    sites = [read_site(config, SiteConfig.from_toml(path), path) for path in site_files]
    return train_across(FederatedComponent(config, config.images), sites, out, "in_process", watch)
