"""A Flower Grid that runs the clients in this process, one after the other."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from medfedpure.core.errors import FederationError
from medfedpure.federation.messages import ERROR_CODE

Tap = Callable[[Message], None]
_SERVER = 1


class InProcessGrid(Grid):  # type: ignore[misc]
    """Nodes 0 ... clients - 1 as Flower's simulation has them: each with its own context.

    Every message passes through Flower's own wire format in both directions, so that nothing is
    shared between server and clients but bytes.

    Args:
        app: the client app that every node runs.
        clients: how many nodes.
        tap: receives every message in the order in which they cross the wire; it may read them,
            and a change it makes does not arrive.
    """

    def __init__(self, app: ClientApp, clients: int, *, tap: Tap | None = None) -> None:
        self._app, self._tap = app, tap
        self._run = Run.create_empty(run_id=secrets.randbits(62))
        self._contexts = {
            # Numbers that are no partition ids, so that nobody mistakes one for the other.
            1000 + place: Context(
                run_id=self._run.run_id,
                node_id=1000 + place,
                node_config={"partition-id": place, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for place in range(clients)
        }
        self._replies: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Replace the run, before the first message."""
        self._run = run
        for context in self._contexts.values():
            context.run_id = run.run_id

    @property
    def run(self) -> Run:
        """The run that the nodes take part in."""
        return self._run

    def server_context(self) -> Context:
        """A context for the server app."""
        return Context(run_id=self._run.run_id, node_id=_SERVER, node_config={}, state=RecordDict(), run_config={})

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message of this run; Flower prefers the constructor of Message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The numbers of all nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let each message's node work on it; the replies wait to be pulled.

        Raises:
            FederationError: a message to a node that does not exist.
        """
        pushed: list[str] = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node not in self._contexts:
                raise FederationError(f"no node has the number {node}; the nodes are {list(self._contexts)}")
            arrived = self._transport(message)
            try:
                reply = self._app(message=arrived, context=self._contexts[node])
            except Exception as error:
                # As Flower's runtimes do for an app that raises, but without the text.
                reply = Message(Error(ERROR_CODE, type(error).__name__), reply_to=arrived)
            self._replies[arrived.metadata.message_id] = self._transport(reply)
            pushed.append(arrived.metadata.message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages; each is handed out once."""
        return [self._replies.pop(name) for name in list(message_ids) if name in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push and pull; `timeout` has no meaning where clients work while one pushes."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _transport(self, message: Message) -> Message:
        wire = message_to_proto(message)
        wire.metadata.message_id = str(uuid4())
        data = wire.SerializeToString()
        if self._tap is not None:
            self._tap(message_from_proto(ProtoMessage.FromString(data)))
        return message_from_proto(ProtoMessage.FromString(data))


class TappedGrid(Grid):  # type: ignore[misc]
    """Any grid of Flower's runtimes, with a tap at the server: it sees what is sent to clients and what arrives.

    Args:
        grid: does the work.
        tap: receives every message; it may read them, and a change it makes does not arrive.
    """

    def __init__(self, grid: Grid, tap: Tap) -> None:
        self._grid, self._tap = grid, tap

    def set_run(self, run: Run) -> None:
        """As the grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """As the grid."""
        return self._grid.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """As the grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid."""
        nodes: Iterable[int] = self._grid.get_node_ids()
        return nodes

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """As the grid, tapped."""
        names: Iterable[str] = self._grid.push_messages(self._tapped(messages))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As the grid, tapped."""
        return self._tapped(self._grid.pull_messages(message_ids))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """As the grid, tapped."""
        return self._tapped(self._grid.send_and_receive(self._tapped(messages), timeout=timeout))

    def _tapped(self, messages: Iterable[Message]) -> list[Message]:
        seen = list(messages)
        for message in seen:
            self._tap(message_from_proto(ProtoMessage.FromString(message_to_proto(message).SerializeToString())))
        return seen


@contextmanager
def acting_as_server(run_id: int) -> Iterator[None]:
    """Let this process write messages of a run, as Flower's own runtimes do, and undo it."""
    names = ("task_id", "run_id", "node_id")
    before = {name: getattr(TaskIdentity, f"_{name}") for name in names}
    for name, value in zip(names, (1, run_id, _SERVER), strict=True):
        setattr(TaskIdentity, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
