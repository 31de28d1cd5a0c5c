"""A federation over the network: what the Flower app of a consortium calls, at the server and at each site.

One run trains every part, one after the other, and then has each site make its defence. Each part has a checkpoint of
its own, so that a run which was cut off goes on in the part where it was.

The server reads `federation.toml`, which travels with the app. A site reads that and its own `site.toml`,
whose place the hospital names in its SuperNode's configuration, so that no run can choose the data.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

from torch import nn

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ConfigError, DataError, FederationError
from medfedpure.core.personalization import Scalar
from medfedpure.core.registry import create, registry
from medfedpure.core.storage import write_json
from medfedpure.core.streams import derive_seed
from medfedpure.federation import (
    ClientSide,
    FederatedResult,
    LocalWork,
    RoundLoop,
    RoundRecord,
    SeededModel,
    ServerSide,
    Site,
    WorkLoop,
    WorkSide,
    deployed_client_app,
    deployed_server_app,
)
from medfedpure.federation.late import LateRound
from medfedpure.job.federate import Results, Watch, claim_folder, part_folder, train_across
from medfedpure.job.federate_config import DeploymentConfig, PartKind, SiteConfig
from medfedpure.job.federated.ahead import check_ahead
from medfedpure.job.federated.defence import Say, counts, keep_defence
from medfedpure.job.federated.images import AT_A_SITE, ClientImages, check_enough, shares_of
from medfedpure.job.federated_component import FederatedComponent, images_of

SITE_KEY = "site"
OUT_VARIABLE = "MEDFEDPURE_SERVER_OUT"
RESULTS, CHECKPOINT, FAILURE = "results.json", "checkpoint", "failure.json"
DEFENCE = "defence"
"""What the work of a site is called in messages, and its folder there."""

_LOG = logging.getLogger(__name__)


def client_app(federation: Path) -> Any:
    """The Flower ClientApp of every site.

    Args:
        federation: `federation.toml` of the app.
    """

    def side_of(node_config: Mapping[str, Scalar], part: str) -> ClientSide | LocalWork:
        if SITE_KEY not in node_config:
            raise ConfigError(
                f"this SuperNode does not say where its site.toml is: start it with --node-config '{SITE_KEY}=\"/...\"'"
            )
        config, site_file = DeploymentConfig.from_toml(federation), Path(str(node_config[SITE_KEY]))
        return defence_side(config, site_file) if part == DEFENCE else site_side(config, site_file, part)

    return deployed_client_app(side_of)


def server_app(federation: Path) -> Any:
    """The Flower ServerApp; it writes checkpoints and results into the folder that an environment variable names.

    Args:
        federation: `federation.toml` of the app.
    """

    def make_loops() -> Iterator[RoundLoop | WorkLoop]:
        if not os.environ.get(OUT_VARIABLE):
            raise ConfigError(f"set {OUT_VARIABLE} to a folder for checkpoint and results where the SuperLink starts")
        out = Path(os.environ[OUT_VARIABLE])
        (out / FAILURE).unlink(missing_ok=True)
        return server_loops(DeploymentConfig.from_toml(federation), out)

    def write_reason(error: Exception) -> None:
        out = Path(os.environ.get(OUT_VARIABLE, ""))
        if os.environ.get(OUT_VARIABLE) and out.is_dir():
            write_json(out / FAILURE, {"error": type(error).__name__, "text": str(error)})

    return deployed_server_app(make_loops, write_reason)


def server_loops(config: DeploymentConfig, out: Path) -> Iterator[RoundLoop | WorkLoop]:
    """The rounds of each part at the server, then the sites' defences; a run that was cut off goes on from `out`."""
    claim_folder(config, out)
    check_ahead(config, config.images)
    results = Results(config, out / RESULTS)
    for kind in config.kinds:
        loop = _rounds(config, kind, out, results)
        yield loop
        last = loop.history[-1]
        away = {client for client in config.clients if client in last.failed or client not in last.clients}
        if late := sorted(away - results.done.keys()):
            made_up = LateRound(loop, late)
            yield made_up
            results.failed |= {
                client: f"it was away in the last round of {kind}, and is still: {why}"
                for client, why in made_up.failed.items()
            }
    if config.defence is None:
        return

    def record(loop: WorkLoop) -> None:
        results.done, results.failed = loop.done, loop.failed
        results.write()

    side = WorkSide(config.clients, DEFENCE, _identity(config), derive_seed(config.seed, DEFENCE), config.federation)
    yield WorkLoop(side, done=results.done, failed=results.failed, watch=record)


def _rounds(config: DeploymentConfig, kind: PartKind, out: Path, results: Results) -> RoundLoop:
    component = FederatedComponent(config, config.images, kind)

    def record(history: tuple[RoundRecord, ...]) -> None:
        results.part(component, history)

    side = ServerSide(
        config.clients,
        component.strategy,
        SeededModel(component.make_model, component.seed),
        component.training,
        component.choice.rounds,
        component.seed,
        config.federation,
        "" if config.defence is None else kind,
    )
    return RoundLoop(side, checkpoint=part_folder(config, out / CHECKPOINT, kind), watch=record)


def site_side(config: DeploymentConfig, site_file: Path, part: str = "") -> ClientSide:
    """What a site holds, from its own file; relative folders in it are relative to that file.

    Args:
        config: of the federation.
        site_file: the site's own.
        part: what is trained; "" where the federation trains one part.

    Raises:
        ConfigError, DataError, CalibrationError, FederationError: the file, its data or its name do not fit the
            federation.
    """
    own = SiteConfig.from_toml(site_file)
    component = FederatedComponent(config, config.images, cast(PartKind, part) if part else None)
    kind, out = component.kind, site_file.parent / own.out

    def export(network: nn.Module, site: Site) -> None:
        component.export(network, site.train, out / kind, out)

    return ClientSide(
        component.strategy,
        component.task(),
        SeededModel(component.make_model, component.seed, own.device),
        lambda _: read_site(config, own, site_file),
        (site_file.parent / own.state_dir).resolve() / kind,
        own.threads,
        export,
        component.settings.keep,
        part,
    )


def defence_side(config: DeploymentConfig, site_file: Path) -> LocalWork:
    """What a site does alone once its parts are trained; nothing but counts leaves it, and these where it says so.

    Raises:
        ConfigError, DataError, CalibrationError, FederationError: as `site_side`.
    """
    own = SiteConfig.from_toml(site_file)
    images, out = read_site(config, own, site_file), site_file.parent / own.out

    def work() -> Mapping[str, float]:
        note = (site_file.parent / own.state_dir).resolve() / f"{DEFENCE}.json"
        check = keep_defence(config, out, images, out / DEFENCE, note, device=own.device, say=_LOG.info)
        return counts(check) if own.tell_check else {}

    return LocalWork(own.client, len(images.train), _identity(config), work, own.threads)


def _identity(config: DeploymentConfig) -> dict[str, str]:
    """What must be equal at the server and at a site that makes its defence."""
    text = "" if config.defence is None else config.defence.model_dump_json()
    return {"defence configuration": hashlib.sha256(text.encode()).hexdigest()[:16]}


def read_site(config: DeploymentConfig, own: SiteConfig, site_file: Path) -> ClientImages:
    """A site's images: those it trains on, those it only looks at, and for a defence those of threshold and trial."""
    if own.client not in config.clients:
        raise FederationError(
            f"{site_file} calls this site {own.client!r}; the federation knows {', '.join(config.clients)}"
        )
    shares = shares_of(own, defended=config.defence is not None)
    if shares.get("train", 0) <= 0:
        held = ", ".join(f"{name} {share:g}" for name, share in shares.items() if name != "train")
        raise ConfigError(f"{site_file} leaves no image to train on ({held}): lower these shares")
    try:
        data: ImageDataset = create("dataset", own.data.plugin, _from_here(own, site_file.parent)).read()
    except (ConfigError, DataError) as error:
        raise type(error)(f"[data] in {site_file}: {error}") from error
    if lacking := [name for name in config.images.class_names if name not in data.class_names]:
        raise DataError(
            f"[data] in {site_file} has no images of {', '.join(lacking)}: a site needs some of every class of "
            "[images] in federation.toml, under the same names"
        )
    found = images_of(data)
    if found != config.images:
        wanted = config.images.model_dump()
        other = [f"{name} {value}, not {wanted[name]}" for name, value in found if value != wanted[name]]
        raise DataError(
            f"the images of this site are others than the federation's: {'; '.join(other)}: change [data] in "
            f"{site_file}, or for all sites [images] in federation.toml"
        )
    if len(shares) == 1:
        return ClientImages(own.client, data)
    parts = data.split(shares, seed=derive_seed(own.seed, "site", own.client))
    held_out = {"validation": parts.get("validation")}
    if config.defence is not None:
        held_out |= {
            "calibrate": parts["calibrate"],
            "choose": parts.get("validation"),
            "check": parts.get("check"),
        }
    made = ClientImages(own.client, parts["train"], **held_out)
    check_enough(config, [made], AT_A_SITE)
    return made


def _from_here(own: SiteConfig, folder: Path) -> dict[str, Any]:
    """The configuration of a site's data, where every relative path begins at the folder of its site.toml."""
    fields = registry().load("dataset", own.data.plugin).Config.model_fields
    paths = {name for name, field in fields.items() if Path in (field.annotation, *get_args(field.annotation))}
    return {
        key: folder / Path(value).expanduser() if key in paths and isinstance(value, str) else value
        for key, value in own.data.config.items()
    }


def rehearse(
    federation: Path, site_files: Sequence[Path], out: Path, *, watch: Watch | None = None, say: Say | None = None
) -> dict[PartKind, FederatedResult]:
    """The same federation on this machine, without a network: to try a configuration, or to compare.

    Args:
        federation: `federation.toml`.
        site_files: the `site.toml` of every site; their `state_dir` and `out` are not touched.
        out: receives what `medfedpure federate` writes.
        watch: receives all records so far of a part after every round.
        say: takes a line on what a defence does, and on what came out.
    """
    config = DeploymentConfig.from_toml(federation)
    claim_folder(config, out)
    files = [(SiteConfig.from_toml(path), path) for path in site_files]
    clients = [read_site(config, own, path) for own, path in files]
    tell = {own.client for own, _ in files if own.tell_check}
    return train_across(
        config, config.images, clients, out, "in_process", watch=watch, say=say, told=lambda client: client in tell
    )
