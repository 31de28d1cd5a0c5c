"""What every client does alone when a run's parts are trained, such as building its defence; no tensor travels.

The server asks, and hears that it is done, with figures where the client tells any.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from medfedpure.core.errors import FederationError
from medfedpure.federation import messages
from medfedpure.federation.client import working
from medfedpure.federation.exchange import exchange
from medfedpure.federation.records import FederationConfig
from medfedpure.federation.roster import Roster

_LOG = logging.getLogger(__name__)
_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0


@dataclass(frozen=True)
class LocalWork:
    """What a client does, and who it is.

    Attributes:
        client_id: its name.
        examples: how many images it trains on, at least 1.
        identity: what must be equal at the server.
        work: does it, or finds that it was done; the figures that the server may learn.
        threads: torch threads meanwhile.
    """

    client_id: str
    examples: int
    identity: Mapping[str, str]
    work: Callable[[], Mapping[str, float]]
    threads: int = 1


@dataclass(frozen=True)
class WorkSide:
    """What the server knows of it.

    Attributes:
        clients: the names that may take part.
        part: what the work is called in messages.
        identity: what must be equal at the clients.
        seed: of the server's own torch generator meanwhile.
        config: quorum and timeouts.
    """

    clients: tuple[str, ...]
    part: str
    identity: Mapping[str, str]
    seed: int
    config: FederationConfig


@dataclass
class WorkLoop:
    """Has every client do it once.

    Attributes:
        side: what the server knows.
        done: by client, the figures that it told; clients that stand here already are not asked.
        failed: by client, why it has not done it; clients that stand here already are not asked either.
        watch: is called when all have answered or are late.
    """

    side: WorkSide
    done: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    watch: Callable[[WorkLoop], None] | None = None

    def run(self, grid: Grid, context: Context) -> None:  # noqa: ARG002 - as a RoundLoop
        """Ask, wait and write down.

        Raises:
            FederationError: fewer clients than the quorum have done it; each failure is named.
        """
        wanted = [name for name in sorted(self.side.clients) if name not in self.done and name not in self.failed]
        if wanted:
            self._ask(grid, wanted)
        if self.watch is not None:
            self.watch(self)
        needed = self.side.config.needed(len(self.side.clients))
        if len(self.done) < needed:
            reasons = "; ".join(f"{name}: {why}" for name, why in sorted(self.failed.items()))
            raise FederationError(
                f"{self.side.part}: {len(self.done)} of {len(self.side.clients)} clients have done it, and {needed} "
                f"are needed ({reasons}): read those clients' logs, and give the same command again"
            )

    def _ask(self, grid: Grid, wanted: list[str]) -> None:
        config = self.side.config
        roster = Roster(self.side.clients, self.side.identity, config.start_timeout, _pause, self.side.part)
        roster.meet(grid)
        self.failed |= {name: why for name, why in roster.absent().items() if name in wanted}
        members = {name: roster.members[name] for name in wanted if name in roster.members}
        asked = [Message(messages.pack_part(self.side.part), one.node, messages.WORK) for one in members.values()]
        replies = exchange(grid, asked, config.round_timeout, _pause)
        for name, member in members.items():
            reply = replies.get(member.node)
            if reply is None:
                self.failed[name] = f"no reply within {config.round_timeout:g} s"
                continue
            try:
                self.done[name] = messages.unpack_reply(reply, {}, f"client {name}", 0).evaluated
            except Exception as error:
                # Whatever a site sends, it fails alone; what is raised may quote it, and stays in the log.
                _LOG.warning("client %s has not done it", name, exc_info=error)
                self.failed[name] = messages.why(reply, error)


def make_work_app(local: LocalWork) -> ClientApp:
    """A ClientApp that answers `query.hello` and `query.work`, in every runtime of Flower."""
    app = ClientApp()

    def hello(message: Message, context: Context) -> Message:  # noqa: ARG001
        told = messages.Hello(local.client_id, False, local.examples, dict(local.identity))
        return Message(messages.pack_hello(told), reply_to=message)

    def work(message: Message, context: Context) -> Message:  # noqa: ARG001
        try:
            with working(local.threads, seed=0):
                return Message(messages.pack_reply(None, local.work(), 0), reply_to=message)
        except Exception as error:
            # The text may quote data or paths of the site: it stays in the site's log.
            _LOG.exception("client %s failed at its own work", local.client_id)
            return Message(messages.failure(error, "work", local.client_id), reply_to=message)

    app.query("hello")(hello)
    app.query("work")(work)
    return app


def _pause(wanted: float = 0.0) -> None:
    time.sleep(min(max(wanted, _SHORTEST_PAUSE), _LONGEST_PAUSE))
