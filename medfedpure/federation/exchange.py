"""Ask nodes and wait for what they answer; what cannot be sent or read concerns the node alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import TypeAlias

from flwr.app import Message
from flwr.serverapp import Grid

Answer: TypeAlias = Message | Exception
_LOG = logging.getLogger(__name__)


def exchange(grid: Grid, asked: Iterable[Message], timeout: float, pause: Callable[[float], None]) -> dict[int, Answer]:
    """Answers by node number; those that do not arrive in time are missing.

    Args:
        grid: Flower's, of any runtime.
        asked: one message for each node.
        timeout: seconds.
        pause: waits about so many seconds before the next look.

    Returns:
        The reply, or what was raised when the message was sent or the reply was read: a runtime rebuilds a reply
        from what its sender likes to send.
    """
    started = time.monotonic()
    answers: dict[int, Answer] = {}
    pending: dict[str, int] = {}
    # One by one: in a batch, one bad message or reply would take the others with it, and a runtime may return
    # fewer names than it was given messages.
    for message in asked:
        node = message.metadata.dst_node_id
        try:
            pending |= {name: node for name in grid.push_messages([message]) if name}
        except Exception as error:
            _LOG.warning("node %d cannot be asked", node, exc_info=True)
            answers[node] = error
    while pending:
        for name in list(pending):
            try:
                # A node that is gone answers through the server, so the sender's number would not tell who failed.
                found = [m for m in grid.pull_messages([name]) if m.metadata.reply_to_message_id == name]
            except Exception as error:
                _LOG.warning("the reply of node %d cannot be read", pending[name], exc_info=True)
                answers[pending.pop(name)] = error
                continue
            if found:
                answers[pending.pop(name)] = found[0]
        waited = time.monotonic() - started
        if not pending or waited > timeout:
            break
        pause(waited / 10)
    return answers
