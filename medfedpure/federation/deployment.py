"""The same apps in Flower's deployment engine: a SuperLink, and a SuperNode at every site.

Flower starts a new process for every message there, so a site is set up when a message arrives and
nothing of it outlives the reply but what is on its disk.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from medfedpure.core.personalization import Scalar
from medfedpure.federation import messages
from medfedpure.federation.client import ClientSide, make_client_app, working
from medfedpure.federation.local import LocalWork, WorkLoop, make_work_app
from medfedpure.federation.server import RoundLoop

_LOG = logging.getLogger(__name__)


def deployed_client_app(side_of: Callable[[Mapping[str, Scalar], str], ClientSide | LocalWork]) -> ClientApp:
    """A ClientApp of a site that is set up from its own node configuration.

    Args:
        side_of: what the client holds, or does alone, from the `--node-config` of its SuperNode and the part of the
            run that a message is about. What it raises stays in the site's log; the server learns the error's type.
    """
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        try:
            side = side_of(context.node_config, messages.part_of(message))
            site_app = make_work_app(side) if isinstance(side, LocalWork) else make_client_app(side)
        except Exception as error:
            _LOG.exception("this site cannot be set up")
            return Message(messages.failure(error, "set_up", ""), reply_to=message)
        return site_app(message, context)

    app.query("hello")(answer)
    app.query("work")(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


def deployed_server_app(
    make_loops: Callable[[], Iterable[RoundLoop | WorkLoop]], on_failure: Callable[[Exception], None]
) -> ServerApp:
    """A ServerApp that builds its loops when a run starts; what a loop raises makes the run fail.

    Args:
        make_loops: the loops of a new run, one after the other; each is asked for when those before it are through.
        on_failure: receives the reason first: Flower tells whoever waits for the run that it failed, not why.
    """
    app = ServerApp()

    def main(grid: Grid, context: Context) -> None:
        try:
            for loop in make_loops():
                with working(loop.side.config.threads, loop.side.seed):
                    loop.run(grid, context)
        except Exception as error:
            on_failure(error)
            raise

    app.main()(main)
    return app
