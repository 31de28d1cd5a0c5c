"""Which node is which client: its name is a client's identity, and the node's number may change."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from medfedpure.core.errors import FederationError
from medfedpure.federation import messages
from medfedpure.federation.arrays import shown
from medfedpure.federation.exchange import Answer, exchange

_LOG = logging.getLogger(__name__)
_MOST_STRANGERS = 3


@dataclass(frozen=True)
class Member:
    """A client that takes part.

    Attributes:
        node: the number under which messages reach it.
        validates: whether it can evaluate a model.
        examples: how many images it says it trains on; it counts for no more in any round.
    """

    node: int
    validates: bool
    examples: int


class Roster:
    """The clients of a run, as far as they have answered.

    Args:
        names: those that may take part.
        wanted: what must be equal at server and sites, of `messages.identity_of`.
        timeout: seconds to wait for nodes, and for their answers.
        pause: waits about so many seconds.
        part: of the run, which nodes are told in order to answer for it.

    Attributes:
        members: by name, who takes part.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        wanted: Mapping[str, str],
        timeout: float,
        pause: Callable[[float], None],
        part: str = "",
    ) -> None:
        self.names, self.wanted, self.timeout, self._pause, self.part = names, wanted, timeout, pause, part
        self.members: dict[str, Member] = {}
        self._reasons: dict[str, str] = {}
        self._strangers: dict[int, str] = {}
        self._greeted: set[int] = set()

    def absent(self) -> dict[str, str]:
        """By name, why a client does not take part."""
        strangers = "; ".join(list(self._strangers.values())[:_MOST_STRANGERS])
        unknown = "no answer at the start" + (f" (of nodes that are nobody's: {strangers})" if strangers else "")
        return {name: self._reasons.get(name, unknown) for name in self.names if name not in self.members}

    def meet(self, grid: Grid) -> None:
        """Wait for as many nodes as there are clients, and greet them."""
        deadline = time.monotonic() + self.timeout
        while len(list(grid.get_node_ids())) < len(self.names) and time.monotonic() <= deadline:
            self._pause(0.0)
        self.greet(grid)

    def greet(self, grid: Grid) -> None:
        """Ask new nodes who they are, and let in a client that was away or came back as another node."""
        listed = set(grid.get_node_ids())
        known = {member.node for member in self.members.values()}
        new = listed - known
        if len(self.members) == len(self.names) and known <= listed:
            new -= self._greeted  # nobody is missed, so strangers are not asked in every round
        self._greeted |= new
        self._strangers = {node: text for node, text in self._strangers.items() if node in listed - new}
        hellos: list[tuple[str, int, messages.Hello]] = []
        for node, answer in self._ask(grid, sorted(new)).items():
            try:
                hello = messages.unpack_hello(answer)
            except Exception as error:
                _LOG.warning("node %d is left out", node, exc_info=error)
                self._refuse(messages.claimed_name(answer), node, messages.why(answer, error))
            else:
                hellos.append((hello.client, node, hello))
        for name, node, hello in sorted(hellos, key=lambda found: found[:2]):
            try:
                self._admit(grid, name, node, hello, listed)
            except FederationError as error:
                _LOG.warning("node %d is left out: %s", node, error)
                self._refuse(name, node, str(error))

    def _admit(self, grid: Grid, name: str, node: int, hello: messages.Hello, listed: set[int]) -> None:
        if name not in self.names:
            raise FederationError(f"a node calls itself {name!r}; the clients are {', '.join(self.names)}")
        different = [key for key, value in self.wanted.items() if hello.identity.get(key) != value]
        if different:
            details = "; ".join(f"{key}: {shown(hello.identity.get(key))}, not {self.wanted[key]}" for key in different)
            raise FederationError(
                f"client {name} is set up differently from the server ({details}): "
                "install the same version of the strategy there and configure it alike"
            )
        if name in self.members and not self._is_gone(grid, name, listed):
            raise FederationError(f"a second node calls itself {name!r}: give each site its own name")
        if name in self.members:
            _LOG.warning("client %s is now node %d; it was node %d", name, node, self.members[name].node)
        self.members[name] = Member(node, hello.validation, hello.examples)
        self._reasons.pop(name, None)

    def _is_gone(self, grid: Grid, name: str, listed: set[int]) -> bool:
        """Whether a client's node no longer answers for it; Flower lists a node for a while after its end."""
        node = self.members[name].node
        if node not in listed:
            return True
        try:
            return messages.unpack_hello(self._ask(grid, [node])[node]).client != name
        except Exception:
            return True

    def _refuse(self, name: str, node: int, why: str) -> None:
        if name in self.names and name not in self.members:
            self._reasons[name] = why
        else:
            self._strangers[node] = why

    def _ask(self, grid: Grid, nodes: list[int]) -> dict[int, Answer]:
        asked = [Message(messages.pack_part(self.part), node, messages.HELLO) for node in nodes]
        return exchange(grid, asked, self.timeout, self._pause)
