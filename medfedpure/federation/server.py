"""The server's side: our own round loop as one Flower ServerApp for any strategy.

Flower's `Strategy.start` has no quorum, ends normally when nobody replies, and adds up replies in
the order in which they arrive; this loop names every failure and sorts by client.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from torch import nn

from medfedpure.core.errors import FederationError
from medfedpure.core.personalization import PersonalizationStrategy, Scalar, Tensors, Update
from medfedpure.core.progress import track
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.storage import locked
from medfedpure.federation import messages
from medfedpure.federation.checkpoint import RunCheckpoint, SavedRun, digest_of
from medfedpure.federation.exchange import Answer, exchange
from medfedpure.federation.messages import EVALUATE, TRAIN, Order
from medfedpure.federation.privacy import check_allowed, private_mean
from medfedpure.federation.records import Draft, FederationConfig, RoundRecord
from medfedpure.federation.roster import Member, Roster

Watcher = Callable[[tuple[RoundRecord, ...]], None]
_LOG = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


@dataclass(frozen=True)
class ServerSide:
    """What the server holds: no image, no private tensor.

    Attributes:
        clients: the names that may take part.
        strategy: how to start and how to aggregate.
        make_model: a new network, equal to the clients'.
        training: sent to the clients.
        rounds, seed: of the run.
        config: quorum and timeouts.
        part: what is trained, where a run trains several parts one after the other.
    """

    clients: tuple[str, ...]
    strategy: PersonalizationStrategy
    make_model: Callable[[], nn.Module]
    training: TrainingConfig
    rounds: int
    seed: int
    config: FederationConfig
    part: str = ""


class RoundLoop:
    """One federated run at the server.

    Args:
        side: what the server holds.
        cancelled: ends the run from another thread.
        checkpoint: a folder that is written after every round; where it holds a state of this run, the
            run goes on from there, to the same results as if it had not been cut off.
        watch: receives all records so far after every round, and once more at the end.

    Attributes:
        shared: the shared tensors, after the last finished round.
        replied: by client, the last round in which its update arrived; 0 for never.
        run_id: the number under which the clients keep their private tensors: Flower's number of the
            run, or of the one that this run resumes.
        drafts: one for each finished round.
        layout, roster: of what is shared and of the clients, from `prepare` on.
    """

    def __init__(
        self,
        side: ServerSide,
        cancelled: threading.Event | None = None,
        checkpoint: Path | None = None,
        watch: Watcher | None = None,
    ) -> None:
        self.side = side
        self.checkpoint, self.watch = checkpoint, watch
        self.shared: Tensors = {}
        self.replied = dict.fromkeys(sorted(side.clients), 0)
        self.run_id = 0
        self.cancelled = cancelled or threading.Event()
        self.drafts: list[Draft] = []

    @property
    def history(self) -> tuple[RoundRecord, ...]:
        """One record per finished round."""
        return tuple(draft.record() for draft in self.drafts)

    def run(self, grid: Grid, context: Context) -> None:
        """All rounds, and one evaluation of the last one's outcome.

        Raises:
            FederationError: too few clients at the start or in a round; each failure is named.
            ArtifactError: another server uses the checkpoint; its pid and host are named.
        """
        if self.side.config.privacy is not None:
            check_allowed(self.side.strategy)
        alone = nullcontext() if self.checkpoint is None else locked(self.checkpoint, "the server of a federated run")
        with alone:
            self._run(grid, context)

    def _run(self, grid: Grid, context: Context) -> None:
        self.run_id = context.run_id
        self.shared = self.side.strategy.initial_shared(self.side.make_model, self.side.seed)
        self.prepare()
        saved = None if self.checkpoint is None else RunCheckpoint(self.checkpoint, self._recipe())
        if saved is not None and self._resume(saved.read()):
            _LOG.warning("%s holds the finished run: remove it to start anew", self.checkpoint)
            self._report()
            return
        self._meet(grid)
        done = len(self.drafts)
        for round in track(range(done + 1, self.side.rounds + 1), "federated rounds", self.side.rounds - done):
            self._round(grid, round)
            self._save(saved, finished=False)
            self._report()
        self._evaluate(grid)
        self._save(saved, finished=True)
        self._report()

    def prepare(self) -> None:
        """Fix the layout of what is shared, and a roster of clients of whom none was met."""
        self.layout = messages.layout_of(self.shared)
        identity = messages.identity_of(self.side.strategy, self.layout)
        start = self.side.config.start_timeout
        self.roster = Roster(tuple(self.replied), identity, start, self._pause, self.side.part)

    def _recipe(self) -> dict[str, Any]:
        """What decides the run, as far as the server knows."""
        privacy = self.side.config.privacy
        return {
            **messages.identity_of(self.side.strategy, self.layout),
            **({} if privacy is None else {"privacy": privacy.model_dump(mode="json")}),
            "clients": sorted(self.side.clients),
            "rounds": self.side.rounds,
            "seed": self.side.seed,
            "training": self.side.training.model_dump(mode="json"),
            "initial shared tensors": digest_of(self.shared),
        }

    def _resume(self, saved: SavedRun | None) -> bool:
        """Take over a saved state; whether nothing is left to do."""
        if saved is None:
            return False
        if messages.layout_of(saved.shared) != self.layout or saved.replied.keys() != self.replied.keys():
            raise FederationError(
                f"{self.checkpoint} holds other tensors or clients than its recipe says: restore it, or remove it to "
                "start anew"
            )
        self.run_id, self.replied = saved.run_id, dict(saved.replied)
        self.shared = {key: saved.shared[key] for key in self.layout}
        now = time.perf_counter()
        self.drafts = [Draft(**document, started=now - document["seconds"]) for document in saved.rounds]
        _LOG.info("resumed after round %d of %d", len(self.drafts), self.side.rounds)
        return saved.finished

    def _save(self, checkpoint: RunCheckpoint | None, *, finished: bool) -> None:
        if checkpoint is not None:
            rounds = [draft.document() for draft in self.drafts]
            checkpoint.write(SavedRun(self.run_id, finished, self.shared, self.replied, rounds))

    def _report(self) -> None:
        if self.watch is not None:
            self.watch(self.history)

    def _meet(self, grid: Grid) -> None:
        """Learn which node is which client, and that enough are set up alike."""
        self.roster.meet(grid)
        if len(self._members) < self._needed:
            raise FederationError(
                f"only {len(self._members)} of {len(self.replied)} clients answered at the start, and {self._needed} "
                f"are needed ({_listed(self.roster.absent())}): read those clients' logs"
            )

    def _round(self, grid: Grid, round: int) -> None:
        if self.drafts:
            self.roster.greet(grid)
        draft = Draft(round, failed=self.roster.absent())
        previous = self.drafts[-1] if self.drafts else None
        evaluating = {
            name: previous is not None and name in previous.clients and member.validates
            for name, member in self._members.items()
        }
        answers = self.ask(grid, TRAIN, evaluating, draft, self.layout)
        updates: list[Update] = []
        for name, reply in answers.items():
            if reply.round != round:
                draft.failed[name] = f"StaleStateError (its disk holds round {reply.round})"
            else:
                updates.append(Update(name, reply.shared, reply.num_examples, reply.metrics))
                draft.clients[name] = reply.metrics
            if previous is not None and name in previous.clients:
                previous.clients[name].update(reply.evaluated)
        self.shared = self._aggregate_usable(round, updates, draft)
        for name in draft.clients:
            self.replied[name] = round
        draft.stop_clock()
        self.drafts.append(draft)

    def _evaluate(self, grid: Grid) -> None:
        """Have the outcome of the last round evaluated by those who took part and can."""
        draft = self.drafts[-1]
        names = [name for name, member in self._members.items() if member.validates and name in draft.clients]
        if not names:
            return
        for name, reply in self.ask(grid, EVALUATE, dict.fromkeys(names, True), draft, {}).items():
            draft.clients[name].update(reply.evaluated)
        draft.stop_clock()

    def ask(
        self, grid: Grid, kind: str, evaluating: Mapping[str, bool], draft: Draft, layout: messages.Layout
    ) -> dict[str, messages.Reply]:
        """Send clients their orders of a round, and read what they answer.

        Args:
            grid: leads to them.
            kind: TRAIN or EVALUATE.
            evaluating: by client on the roster, whether it evaluates what it had before.
            draft: of the round; bytes and failures are written into it.
            layout: of the tensors that an answer holds.

        Returns:
            The good answers by client, sorted.
        """
        asked, names = [], sorted(evaluating)
        for name in names:
            content = self._order(name, draft.round, evaluate=evaluating[name])
            asked.append(Message(content, self._members[name].node, kind, group_id=str(draft.round)))
            draft.client_bytes_down[name] = draft.client_bytes_down.get(name, 0) + messages.payload(asked[-1])
        return self._read(exchange(grid, asked, self.side.config.round_timeout, self._pause), draft, layout, names)

    def _order(self, name: str, round: int, *, evaluate: bool) -> RecordDict:
        training = self.side.training.model_dump_json()
        order = Order(
            round, self.side.rounds, self.side.seed, self.replied[name], evaluate, training, f"{self.run_id:016x}"
        )
        return messages.pack_order(order, self.shared, self._client_config(name, round), self.side.part)

    def _client_config(self, name: str, round: int) -> Mapping[str, Scalar]:
        past = [draft.clients[name] for draft in self.drafts if name in draft.clients and draft.round < round]
        return self.side.strategy.client_config(round, name, past)

    def _read(
        self, replies: Mapping[int, Answer], draft: Draft, layout: messages.Layout, expected: list[str]
    ) -> dict[str, messages.Reply]:
        """The good replies by client, sorted; the others become failures of the round."""
        answers: dict[str, messages.Reply] = {}
        for name in expected:
            member = self._members[name]
            reply = replies.get(member.node)
            if reply is None:
                draft.failed[name] = f"no reply within {self.side.config.round_timeout:g} s"
                continue
            try:
                draft.client_bytes_up[name] = draft.client_bytes_up.get(name, 0) + messages.payload(reply)
                answers[name] = messages.unpack_reply(reply, layout, f"client {name}", member.examples)
            except Exception as error:
                # Whatever a site sends, it is left out alone. What is raised may quote it: that stays in the log.
                _LOG.warning("client %s is left out of round %d", name, draft.round, exc_info=error)
                draft.failed[name] = messages.why(reply, error)
        return answers

    def _aggregate_usable(self, round: int, updates: list[Update], draft: Draft) -> Tensors:
        """The aggregate of the updates that the strategy can use; the others become failures of the round."""
        self._check_quorum(round, updates, draft)
        try:
            return self._checked(self._aggregate(round, updates), round)
        except Exception as error:
            unusable = {update.client_id: found for update in updates if (found := self._fault_alone(round, update))}
            if len(unusable) in (0, len(updates)):
                raise  # nobody's fault alone
            _LOG.warning("round %d: the strategy cannot use %s", round, ", ".join(unusable), exc_info=error)
        for name, found in unusable.items():
            draft.failed[name] = f"{found} (aggregate)"
            del draft.clients[name]
        usable = [update for update in updates if update.client_id not in unusable]
        self._check_quorum(round, usable, draft)
        return self._checked(self._aggregate(round, usable), round)

    def _fault_alone(self, round: int, update: Update) -> str:
        """The type of what a strategy raises on one update; "" where it can use it."""
        try:
            self._checked(self._aggregate(round, [update]), round)
        except Exception as error:
            return type(error).__name__
        return ""

    def _check_quorum(self, round: int, updates: list[Update], draft: Draft) -> None:
        if len(updates) < self._needed:
            raise FederationError(
                f"round {round}: {len(updates)} of {len(self.replied)} clients sent an update, and {self._needed} are "
                f"needed ({_listed(draft.failed)}): read those clients' logs, or lower the quorum"
            )

    def _aggregate(self, round: int, updates: list[Update]) -> Tensors:
        if self.side.config.privacy is None:
            return self.side.strategy.aggregate(round, self.shared, updates)
        return private_mean(self.side.config.privacy, len(self.replied), self.shared, updates)

    def _checked(self, shared: Tensors, round: int) -> Tensors:
        """An aggregate, after making sure that it can be sent out again."""
        messages.check_names(shared, self.layout, "aggregate")
        broken = [key for key, value in shared.items() if not bool(torch.isfinite(value).all())]
        if broken:
            raise FederationError(f"round {round}: the aggregate is not finite in {', '.join(broken[:5])}")
        return {key: shared[key] for key in self.layout}

    def _pause(self, wanted: float = 0.0) -> None:
        if self.cancelled.wait(min(max(wanted, _SHORTEST_PAUSE), _LONGEST_PAUSE)):
            raise FederationError("the runtime stopped before the federated run was over")

    @property
    def _members(self) -> dict[str, Member]:
        return self.roster.members

    @property
    def _needed(self) -> int:
        return self.side.config.needed(len(self.replied))


def make_server_app(loop: RoundLoop) -> ServerApp:
    """A ServerApp that runs the loop, in every runtime of Flower."""
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        loop.run(grid, context)

    app.main()(main)
    return app


def _listed(failures: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {text}" for name, text in sorted(failures.items())) or "no failure was reported"
