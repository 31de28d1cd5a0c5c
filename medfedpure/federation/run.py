"""federate(): sites and a strategy in, personal models out."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from medfedpure.core import storage
from medfedpure.core.errors import FederationError, MedFedPureError
from medfedpure.core.personalization import PersonalizationStrategy, Scalar
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.task import Task, Trainable
from medfedpure.federation.client import ClientSide, SeededModel, make_client_app, working
from medfedpure.federation.grid import InProcessGrid, Tap, acting_as_server
from medfedpure.federation.messages import Order
from medfedpure.federation.records import FederatedResult, FederationConfig, Site, check_name, check_rounds, check_sites
from medfedpure.federation.server import RoundLoop, ServerSide, Watcher, make_server_app
from medfedpure.federation.simulation import quiet_flower, simulate
from medfedpure.training.trainer import LoopTrainer

Runtime = Literal["in_process", "simulation"]


@dataclass(frozen=True)
class MemorySites:
    """Sites in the memory of this process, by the `partition-id` of a node."""

    sites: tuple[Site, ...]

    def __call__(self, node_config: Mapping[str, Scalar]) -> Site:
        """The site of a node."""
        return self.sites[int(node_config["partition-id"])]


def federate(
    sites: Sequence[Site],
    *,
    make_model: Callable[[], nn.Module],
    task: Task,
    strategy: PersonalizationStrategy,
    training: TrainingConfig,
    rounds: int,
    seed: int,
    runtime: Runtime = "in_process",
    state_dir: Path | None = None,
    name: str = "model",
    config: FederationConfig | None = None,
    tap: Tap | None = None,
    checkpoint: Path | None = None,
    watch: Watcher | None = None,
) -> FederatedResult:
    """Train one network across sites; only what the strategy shares leaves a site.

    On one machine, this function reads every client's private tensors after the run to build the
    personal models. In a deployment each site builds its own, and no one else can.

    Args:
        sites: the hospitals; their order does not matter.
        make_model: a new network; weights drawn from torch's global generator are seeded here, so
            that all clients start equal.
        task: loss, metrics and optimizer.
        strategy: what travels and what stays.
        training: the budget of each client over all rounds.
        rounds: how often the clients train and the server aggregates.
        seed: of everything random but the noise of differential privacy, which never repeats; equal seeds
            give equal results in both runtimes, bit for bit on one machine.
        runtime: "in_process" runs one client after the other here; "simulation" runs them at the
            same time in Ray worker processes, to which everything above is pickled.
        state_dir: where the private tensors are kept, under `name`; by default a temporary folder
            that is removed at the end.
        name: of the network, for folders of several federated parts.
        config: quorum, timeouts and what one client may use.
        tap: receives every message that crosses the wire; in a simulation at the server's end.
        checkpoint: a folder that is written after every round and from which a run that was cut off goes
            on; it needs `state_dir`, where the clients' part of the state is.
        watch: receives all records so far after every round.

    Raises:
        FederationError: bad arguments, fewer replies than the quorum, or sites that do not agree.
            Errors at clients are named by type and stage; their text is in the clients' log.
        TrainingError: a method of adversarial training that this task cannot be trained by.
        DataError: sites with different images or classes.
        ArtifactError: another run uses `state_dir` or `checkpoint`; its pid and host are named.
    """
    ordered = check_sites(sites)
    check_rounds(rounds, training)
    check_name(name, "network")
    if runtime not in ("in_process", "simulation"):
        raise FederationError(f"runtime must be 'in_process' or 'simulation'; got {runtime!r}")
    if checkpoint is not None and state_dir is None:
        raise FederationError("checkpoint needs state_dir: without the private tensors a run cannot be resumed")
    against = getattr(strategy.config, "adversarial", None)
    if against is not None:
        LoopTrainer.against(task, against, task)  # what it refuses, it refuses before anybody is asked
    chosen = config or FederationConfig()
    factory = SeededModel(make_model, seed, chosen.device)
    temporary = tempfile.TemporaryDirectory(prefix="medfedpure-state-") if state_dir is None else nullcontext(state_dir)
    with (
        temporary as folder,
        storage.locked(Path(folder) / name, "a federated run"),
        quiet_flower(),
        working(chosen.threads, seed),
    ):
        place = Path(folder).resolve() / name
        clients = ClientSide(strategy, task, factory, MemorySites(ordered), place, chosen.threads, keep=chosen.keep)
        names = tuple(site.client_id for site in ordered)
        side = ServerSide(names, strategy, factory, training, rounds, seed, chosen)
        loop = RoundLoop(side, checkpoint=checkpoint, watch=watch)
        if runtime == "in_process":
            grid = InProcessGrid(make_client_app(clients), len(ordered), tap=tap)
            with acting_as_server(grid.run.run_id):
                make_server_app(loop)(grid, grid.server_context())
        else:
            simulate(clients, ordered, loop, tap)
        return _gather(clients, ordered, loop)


def federate_component(
    component: Trainable,
    sites: Sequence[Site],
    *,
    strategy: PersonalizationStrategy,
    training: TrainingConfig,
    rounds: int,
    seed: int,
    runtime: Runtime = "in_process",
    state_dir: Path | None = None,
    name: str = "part",
    config: FederationConfig | None = None,
    checkpoint: Path | None = None,
    watch: Watcher | None = None,
) -> FederatedResult:
    """Train a component's network across sites; then `component.adopt(result.models[client], image_shape)`.

    Arguments and errors are those of `federate`.
    """
    shape = check_sites(sites)[0].train.image_shape
    return federate(
        sites,
        make_model=lambda: component.make_network(shape, seed),
        task=component.task(),
        strategy=strategy,
        training=training,
        rounds=rounds,
        seed=seed,
        runtime=runtime,
        state_dir=state_dir,
        name=name,
        config=config,
        checkpoint=checkpoint,
        watch=watch,
    )


def _gather(clients: ClientSide, sites: Sequence[Site], loop: RoundLoop) -> FederatedResult:
    """Each client's personal model, as that client builds it for its last evaluation."""
    models: dict[str, nn.Module] = {}
    missing: dict[str, str] = {}
    kept: dict[str, int] = {}
    side = loop.side
    for site in sites:
        last = loop.replied[site.client_id]
        if last == 0:
            missing[site.client_id] = "it never took part: see the failures in the history"
            continue
        order = Order(
            side.rounds, side.rounds, side.seed, last, True, side.training.model_dump_json(), f"{loop.run_id:016x}"
        )
        try:
            store = clients.store(loop.run_id, site.client_id)
            round_ = clients.client_round(site, order, loop.shared, store.read(last), {})
            model = side.strategy.personal_model(round_).eval()
            kept[site.client_id] = clients.kept(model, store, last)
            models[site.client_id] = model
        except MedFedPureError as error:
            missing[site.client_id] = f"{type(error).__name__}: {error}"
    return FederatedResult(loop.shared, models, loop.history, missing, kept)
