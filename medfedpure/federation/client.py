"""The client's side: one Flower ClientApp for any personalization strategy."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from medfedpure.core.personalization import ClientRound, PersonalizationStrategy, Scalar, Tensors
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.streams import derive_seed, isolated_rng
from medfedpure.core.task import Task
from medfedpure.federation import messages
from medfedpure.federation.records import Site
from medfedpure.federation.state import PrivateStore
from medfedpure.training.allocator import keep_freed_memory
from medfedpure.training.trainer import LoopTrainer

_LOG = logging.getLogger(__name__)
_MEMORY = "private"


@dataclass(frozen=True)
class ClientSide:
    """What a client holds. It never travels to a server; a simulation pickles it to its workers.

    Attributes:
        strategy: what travels, what stays, how to train.
        task: loss, metrics and optimizer.
        make_model: a new network, equal at every client; may draw from torch's global generator.
        site_of: the site of a node from its configuration, e.g. from `partition-id`.
        state_dir: where private tensors are kept; of the client alone.
        threads: torch threads while the client works.
        export: receives the personal model that the run leaves; in a deployment, where nobody else can
            build it.
        keep: which personal model that is: of the last round, or of the one that the validation images call best.
        part: what is trained, where a run trains several parts one after the other.
    """

    strategy: PersonalizationStrategy
    task: Task
    make_model: Callable[[], nn.Module]
    site_of: Callable[[Mapping[str, Scalar]], Site]
    state_dir: Path
    threads: int = 1
    export: Callable[[nn.Module, Site], None] | None = None
    keep: Literal["last", "best"] = "last"
    part: str = ""

    @cached_property
    def layout(self) -> messages.Layout:
        """The tensors that may travel, as this client's own copy of the strategy says."""
        return messages.layout_of(self.strategy.initial_shared(self.make_model, 0))

    def store(self, run_id: int, client_id: str) -> PrivateStore:
        """Where this client's private tensors are."""
        return PrivateStore(self.state_dir, run_id, client_id, self.strategy.name)

    def kept(self, model: nn.Module, store: PrivateStore, last: int) -> int:
        """Give the last round's personal model the weights that are kept; the round that they are of."""
        best = store.best(last) if self.keep == "best" else None
        if best is None:
            return last
        model.load_state_dict(best.tensors, strict=True)
        return best.round

    def client_round(
        self, site: Site, order: messages.Order, shared: Tensors, private: Tensors, config: Mapping[str, Scalar]
    ) -> ClientRound:
        """What the strategy sees."""
        return ClientRound(
            round=order.round,
            rounds=order.rounds,
            client_id=site.client_id,
            shared=shared,
            private=private,
            make_model=self.make_model,
            train=site.train,
            validation=site.validation,
            config=config,
            seed=client_seed(order.seed, site.client_id, order.round),
            task=self.task,
            training=TrainingConfig.model_validate_json(order.training),
            trainer=LoopTrainer(),
        )


class SeededModel:
    """A model factory whose draws from torch's global generator are seeded and leave it untouched."""

    def __init__(self, make_model: Callable[[], nn.Module], seed: int, device: str = "cpu") -> None:
        self.make_model, self.seed, self.device = make_model, derive_seed(seed, "initial model"), device

    def __call__(self) -> nn.Module:
        """The same network at every call."""
        with isolated_rng(self.seed):
            return self.make_model().to(self.device)


def client_seed(seed: int, client_id: str, round: int) -> int:
    """The seed of one client and round: of names, never of node numbers or order."""
    return derive_seed(seed, "client", client_id, round)


@contextmanager
def working(threads: int, seed: int) -> Iterator[None]:
    """So many torch threads and a seeded global generator inside the block; both restored after it."""
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with isolated_rng(seed):
            yield
    finally:
        torch.set_num_threads(before)


def make_client_app(side: ClientSide) -> ClientApp:
    """A ClientApp that answers `query.hello`, `train` and `evaluate`, in every runtime of Flower."""
    app = ClientApp()

    def hello(message: Message, context: Context) -> Message:
        return _answer(_hello, side, message, context)

    def train(message: Message, context: Context) -> Message:
        return _answer(_train, side, message, context)

    def evaluate(message: Message, context: Context) -> Message:
        return _answer(_evaluate, side, message, context)

    app.query("hello")(hello)
    app.train()(train)
    app.evaluate()(evaluate)
    return app


class _Visit:
    """One message at one client; knows how far it came, for the report of a failure."""

    def __init__(self, side: ClientSide, message: Message, context: Context) -> None:
        self.side, self.message, self.context = side, message, context
        self.stage, self.client_id = "find_site", ""
        self.held = ExitStack()

    def site(self) -> Site:
        site = self.side.site_of(self.context.node_config)
        self.client_id = site.client_id
        return site

    @property
    def memory(self) -> str:
        """Where Flower's context holds what the client remembers; parts of one run share a context."""
        return f"{_MEMORY}-{self.side.part}" if self.side.part else _MEMORY

    def remembered(self, round: int) -> str | None:
        """The SHA-256 that Flower's context holds for the state of that round, if it holds any."""
        memory = self.context.state.get(self.memory)
        if not isinstance(memory, ConfigRecord) or memory["round"] != round:
            return None
        return str(memory["sha256"])

    def prepare(self) -> tuple[Site, messages.Order, PrivateStore, ClientRound]:
        """Site, order and private state, which is held until the answer is made.

        Raises:
            StaleStateError: the disk does not hold the state.
            ArtifactError: another process works on it.
        """
        site = self.site()
        self.stage = "read_message"
        order, shared, config = messages.unpack_order(self.message.content, self.side.layout)
        self.stage = "read_state"
        store = self.side.store(int(order.run, 16), site.client_id)
        self.held.enter_context(store.held())
        private = store.read(order.confirmed, sha256=self.remembered(order.confirmed))
        return site, order, store, self.side.client_round(site, order, shared, private, config)

    def figures(self, r: ClientRound, store: PrivateStore, model: nn.Module | None = None) -> dict[str, float]:
        """Metrics of the personal model on the validation images, under the attack that it is trained against as well.

        Where the best model is kept, this is where it is put down.
        """
        if r.validation is None or len(r.validation) == 0:
            return {}
        self.stage = "evaluate"
        against = self.side.strategy.adversarial(r)
        task = r.trainer.against(r.task, against, r.task) if against.share else r.task
        model = model or self.side.strategy.personal_model(r)
        figures = task.metrics(model, r.validation)
        if self.side.keep == "best":
            store.offer(r.round, task.worth(figures), model.state_dict())
        return figures


def _answer(work: Callable[[_Visit], RecordDict], side: ClientSide, message: Message, context: Context) -> Message:
    visit = _Visit(side, message, context)
    try:
        with working(side.threads, seed=0), visit.held:
            return Message(work(visit), reply_to=message)
    except Exception as error:
        # The text may quote data or paths of the site: it stays in the site's log.
        _LOG.exception("client %s failed at %s", visit.client_id or "(unknown)", visit.stage)
        return Message(messages.failure(error, visit.stage, visit.client_id), reply_to=message)


def _hello(visit: _Visit) -> RecordDict:
    site = visit.site()
    visit.stage = "hello"
    identity = messages.identity_of(visit.side.strategy, visit.side.layout)
    validates = (site.validation is not None and len(site.validation) > 0) or visit.side.export is not None
    return messages.pack_hello(messages.Hello(site.client_id, validates, len(site.train), identity))


def _train(visit: _Visit) -> RecordDict:
    site, order, store, r = visit.prepare()
    evaluated: dict[str, float] = {}
    if order.evaluate:
        # The tensors that came are the outcome of the round before this one.
        before = order.round - 1
        evaluated = visit.figures(replace(r, round=before, seed=client_seed(order.seed, site.client_id, before)), store)
    visit.stage = "local_update"
    with isolated_rng(r.seed):
        result = visit.side.strategy.local_update(r)
    visit.stage = "check_update"
    messages.check_names(result.shared, visit.side.layout, "local_update")
    visit.stage = "write_state"
    digest = store.write(order.round, result.private, confirmed=order.confirmed)
    visit.context.state[visit.memory] = ConfigRecord({"round": order.round, "sha256": digest})
    visit.stage = "reply"
    return messages.pack_reply(result, evaluated, order.round)


def _evaluate(visit: _Visit) -> RecordDict:
    site, order, store, r = visit.prepare()
    if visit.side.export is None:
        return messages.pack_reply(None, visit.figures(r, store), order.confirmed)
    model = visit.side.strategy.personal_model(r).eval()
    figures = visit.figures(r, store, model)
    visit.stage = "export"
    visit.side.kept(model, store, order.confirmed)
    visit.side.export(model, site)
    return messages.pack_reply(None, figures, order.confirmed)
