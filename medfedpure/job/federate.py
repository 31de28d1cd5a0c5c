"""Train one component across clients on this machine: results, personal models and checkpoint in one folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medfedpure.core.disk.whole import make_folder
from medfedpure.core.errors import ConfigError
from medfedpure.core.storage import locked, write_bytes, write_json
from medfedpure.federation import FederatedResult, RoundRecord, Site, federate
from medfedpure.federation.privacy import epsilon
from medfedpure.job.config import TomlConfig
from medfedpure.job.device import check_device
from medfedpure.job.division import check_clients_disjoint, deal
from medfedpure.job.federate_config import FederateConfig
from medfedpure.job.federated_component import FederatedComponent, images_of

Watch = Callable[[tuple[RoundRecord, ...]], None]
_CONFIG, _RESULTS = "config.toml", "results.json"
_HIGHER_IS_BETTER = ("balanced_accuracy", "accuracy", "auroc")


def run_federate(config: FederateConfig, out: Path, *, watch: Watch | None = None) -> FederatedResult:
    """Train the component that the file names; a run that was cut off goes on where it stood.

    Args:
        config: data, component, strategy and runtime.
        out: receives `config.toml`, `results.json` (after every round), `parts/CLIENT`, and `checkpoint` and
            `private`, from which an interrupted run is resumed.
        watch: receives all records so far after every round.

    Raises:
        ConfigError, DataError, FederationError: with what to change.
        ArtifactError: another run is at work in `out`, or it cannot be written.
    """
    check_device(config.federation.device)
    make_folder(out)
    with locked(out, "a federated run"):
        claim_folder(config, out)
        dealt = deal(config.data, config.seed)
        check_clients_disjoint(dealt)
        sites = [Site(client, own["train"], own["validation"]) for client, own in dealt.items()]
        return train_across(FederatedComponent(config, images_of(sites[0].train)), sites, out, config.runtime, watch)


def claim_folder(config: TomlConfig, out: Path) -> None:
    """Write the configuration into the folder; ConfigError where another one, or something else, is there already."""
    make_folder(out)
    path, text = out / _CONFIG, config.to_toml()
    if (out / _RESULTS).exists() and not path.exists():
        raise ConfigError(f"{out / _RESULTS} is of something else than a federation: choose another folder")
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} is another configuration: give --out a new folder, or remove this one; a run is resumed only "
            "with the configuration with which it began"
        )
    write_bytes(path, text.encode())


def train_across(
    component: FederatedComponent,
    sites: Sequence[Site],
    out: Path,
    runtime: Literal["in_process", "simulation"],
    watch: Watch | None = None,
) -> FederatedResult:
    """The rounds on this machine, with everything written into `out`."""

    def record(history: tuple[RoundRecord, ...]) -> None:
        write_json(out / _RESULTS, summary(component, history))
        if watch is not None:
            watch(history)

    result = federate(
        sites,
        make_model=component.make_model,
        task=component.task(),
        strategy=component.strategy,
        training=component.training,
        rounds=component.config.choice.rounds,
        seed=component.seed,
        runtime=runtime,
        state_dir=out / "private",
        name=component.config.kind,
        config=component.config.federation,
        checkpoint=out / "checkpoint",
        watch=record,
    )
    train = {site.client_id: site.train for site in sites}
    for client, network in result.models.items():
        component.export(network, train[client], out / "parts" / client)
    write_json(out / _RESULTS, summary(component, result.history, result.missing))
    return result


def headline(figures: Mapping[str, Mapping[str, float]]) -> str:
    """The figure by which clients are compared: balanced accuracy where there is one, else the loss."""
    known = {key for own in figures.values() for key in own}
    return next((name for name in ("balanced_accuracy", "loss") if name in known), "train_loss")


def worst_client(figures: Mapping[str, Mapping[str, float]], metric: str) -> tuple[str, float] | None:
    """The client that is served worst, and its figure; None where nobody has it."""
    sign = 1.0 if metric in _HIGHER_IS_BETTER else -1.0
    known = {client: own[metric] for client, own in figures.items() if math.isfinite(own.get(metric, math.nan))}
    if not known:
        return None
    return min(sorted(known.items()), key=lambda item: sign * item[1])


def mean_figures(figures: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Each figure's mean over the clients that have it; every client counts alike."""
    names = sorted({key for own in figures.values() for key in own})
    known = {name: [own[name] for own in figures.values() if math.isfinite(own.get(name, math.nan))] for name in names}
    return {name: math.fsum(values) / len(values) for name, values in known.items() if values}


def summary(
    component: FederatedComponent, history: Sequence[RoundRecord], missing: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """results.json: what was trained, every round, and who is served worst."""
    privacy = component.config.federation.privacy
    spent = {} if privacy is None else {"privacy": {**privacy.model_dump(), "epsilon": epsilon(privacy, len(history))}}
    return {
        "part": component.config.kind,
        "plugin": component.config.choice.plugin,
        "strategy": component.config.choice.strategy.plugin,
        "rounds": component.config.choice.rounds,
        "history": [round_document(record) for record in history],
        "missing": dict(missing or {}),
        **spent,
    }


def round_document(record: RoundRecord) -> dict[str, Any]:
    """One round as results.json has it: figures and bytes of every client, means over them, the worst client."""
    metric = headline(record.clients)
    worst = worst_client(record.clients, metric)
    return {
        "round": record.round,
        "seconds": record.seconds,
        "clients": {
            client: {key: value if math.isfinite(value) else None for key, value in own.items()}
            for client, own in record.clients.items()
        },
        "mean": mean_figures(record.clients),
        "worst": None if worst is None else {"metric": metric, "client": worst[0], "value": worst[1]},
        "failed": dict(record.failed),
        "bytes_up": record.bytes_up,
        "bytes_down": record.bytes_down,
        "client_bytes_up": dict(record.client_bytes_up),
        "client_bytes_down": dict(record.client_bytes_down),
    }
