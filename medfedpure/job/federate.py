"""Train parts across clients on this machine, and make each client's defence: results and checkpoints in one folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from medfedpure.core.disk.whole import make_folder
from medfedpure.core.errors import ConfigError
from medfedpure.core.storage import locked, read_json, write_bytes, write_json
from medfedpure.defence.own_attack import CONDITIONS
from medfedpure.federation import FederatedResult, RoundRecord, federate
from medfedpure.federation.privacy import epsilon
from medfedpure.job.config import TomlConfig
from medfedpure.job.device import check_device
from medfedpure.job.division import check_clients_disjoint, deal
from medfedpure.job.federate_config import ComponentConfig, FederateConfig, ImagesChoice, PartKind
from medfedpure.job.federated.ahead import check_ahead
from medfedpure.job.federated.defence import Say, counts, keep_defence, planned
from medfedpure.job.federated.images import ON_ONE_MACHINE, ClientImages, check_enough, dealt_images
from medfedpure.job.federated_component import FederatedComponent, images_of
from medfedpure.job.folder import DEFENCES

Watch = Callable[[PartKind, tuple[RoundRecord, ...]], None]
_CONFIG, _RESULTS = "config.toml", "results.json"
_HIGHER_IS_BETTER = ("balanced_accuracy", "accuracy", "auroc")
_logger = logging.getLogger(__name__)


def run_federate(
    config: FederateConfig, out: Path, *, watch: Watch | None = None, say: Say | None = None
) -> dict[PartKind, FederatedResult]:
    """Train the parts that the file names, one after the other; a run that was cut off goes on where it stood.

    Args:
        config: data, parts, strategies and runtime, and what is made of them.
        out: receives `config.toml`, `results.json` (after every round), `parts/CLIENT` (of several parts
            `parts/CLIENT/PART`), with [defence] `defences/CLIENT`, and `checkpoint` and `private`, from which an
            interrupted run is resumed.
        watch: receives all records so far of a part after every round.
        say: takes a line on what a defence does, and on what came out; by default the logger's info.

    Raises:
        ConfigError, DataError, CalibrationError, FederationError: with what to change.
        ArtifactError: another run is at work in `out`, or it cannot be written.
    """
    check_device(config.federation.device)
    make_folder(out)
    with locked(out, "a federated run"):
        claim_folder(config, out)
        dealt = deal(config.data, config.seed)
        check_clients_disjoint(dealt)
        clients = dealt_images(config, dealt)
        check_enough(config, clients, ON_ONE_MACHINE)
        return train_across(config, images_of(clients[0].train), clients, out, config.runtime, watch=watch, say=say)


def claim_folder(config: TomlConfig, out: Path) -> None:
    """Write the configuration into the folder; ConfigError where results of another one, or of something else, are."""
    make_folder(out)
    path, text = out / _CONFIG, config.to_toml()
    if (out / _RESULTS).exists() and not path.exists():
        raise ConfigError(f"{out / _RESULTS} is of something else than a federation: choose another folder")
    if (out / _RESULTS).exists() and path.read_text(encoding="utf-8") != text:
        raise ConfigError(
            f"{path} is another configuration: give --out a new folder, or remove this one; a run is resumed only "
            "with the configuration with which it began"
        )
    write_bytes(path, text.encode())


def train_across(
    config: ComponentConfig,
    images: ImagesChoice,
    clients: Sequence[ClientImages],
    out: Path,
    runtime: Literal["in_process", "simulation"],
    *,
    watch: Watch | None = None,
    say: Say | None = None,
    told: Callable[[str], bool] = lambda _: True,
) -> dict[PartKind, FederatedResult]:
    """The parts on this machine, one after the other, and the defences, with everything written into `out`.

    Args:
        config: parts and defence.
        images: what the images are like.
        clients: their images; enough of them for a defence.
        out: as of `run_federate`.
        runtime: of the rounds.
        watch: as of `run_federate`.
        say: as of `run_federate`.
        told: whether the counts of a client's trial go into the results.
    """
    check_ahead(config, images)
    results = Results(config, out / _RESULTS)
    parts = [FederatedComponent(config, images, kind) for kind in config.kinds]
    found = {part.kind: _train(results, part, clients, out, runtime, watch) for part in parts}
    if config.defence is not None:
        missing = {client: f"no {kind}: {why}" for kind in config.kinds for client, why in found[kind].missing.items()}
        results.failed.update(missing)
        for client in clients:
            name = client.client_id
            if name in missing:
                continue
            check = keep_defence(
                config,
                out / "parts" / name,
                client,
                out / DEFENCES / name,
                out / "private" / "defences" / f"{name}.json",
                device=config.federation.device,
                say=say or _logger.info,
            )
            results.done[name] = counts(check) if told(name) else {}
            results.write()
    return found


def _train(
    results: Results,
    component: FederatedComponent,
    clients: Sequence[ClientImages],
    out: Path,
    runtime: Literal["in_process", "simulation"],
    watch: Watch | None,
) -> FederatedResult:
    """The rounds of one part, and each client's personal one."""
    config, kind = component.config, component.kind

    def record(history: tuple[RoundRecord, ...]) -> None:
        results.part(component, history)
        if watch is not None:
            watch(kind, history)

    result = federate(
        clients,
        make_model=component.make_model,
        task=component.task(),
        strategy=component.strategy,
        training=component.training,
        rounds=component.choice.rounds,
        seed=component.seed,
        runtime=runtime,
        state_dir=out / "private",
        name=kind,
        config=component.settings,
        checkpoint=part_folder(config, out / "checkpoint", kind),
        watch=record,
    )
    train = {client.client_id: client.train for client in clients}
    for client, network in result.models.items():
        own = out / "parts" / client
        component.export(network, train[client], part_folder(config, own, kind), own)
    results.part(component, result.history, result.missing)
    return result


def part_folder(config: ComponentConfig, folder: Path, kind: PartKind) -> Path:
    """Where a part's own files lie in a folder: directly where the file trains one part, else under its kind."""
    return folder if config.defence is None else folder / kind


class Results:
    """results.json of a federation, written whenever something is known; of one part its `summary` alone.

    Args:
        config: of the federation.
        path: of the file; what stands there stays until more is known.

    Attributes:
        done: by client that has its defence, the counts of its trial, as far as they may be told.
        failed: by client, why it has none.
    """

    def __init__(self, config: ComponentConfig, path: Path) -> None:
        self.config, self.path = config, path
        before = read_json(path) if config.defence is not None and path.is_file() else {}
        self.done: dict[str, dict[str, float]] = dict(before.get("defences", {}).get("done", {}))
        self.failed: dict[str, str] = {}
        self._parts: dict[str, dict[str, Any]] = {phase["part"]: phase for phase in before.get("phases", ())}

    def part(
        self, component: FederatedComponent, history: Sequence[RoundRecord], missing: Mapping[str, str] | None = None
    ) -> None:
        """What is known of a part's rounds."""
        self._parts[component.kind] = summary(component, history, missing)
        self.write()

    def write(self) -> None:
        """Write the file."""
        write_json(self.path, self.document())

    def document(self) -> dict[str, Any]:
        """The file's content."""
        defence = self.config.defence
        if defence is None:
            return next(iter(self._parts.values()))
        plan = planned(defence)
        return {
            "phases": list(self._parts.values()),
            "parts": list(self.config.kinds),
            "defences": {
                "recipe": defence.recipe,
                "detector": self.config.detector.plugin if self.config.detector else plan.detector,
                "target_fpr": defence.target_fpr,
                "attack": CONDITIONS,
                "done": dict(self.done),
                "failed": dict(self.failed),
            },
        }


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
    """What was trained, every round, and who is served worst."""
    privacy = component.config.federation.privacy
    spent = {} if privacy is None else {"privacy": {**privacy.model_dump(), "epsilon": epsilon(privacy, len(history))}}
    return {
        "part": component.kind,
        "plugin": component.choice.plugin,
        "strategy": component.choice.strategy.plugin,
        "rounds": component.choice.rounds,
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
