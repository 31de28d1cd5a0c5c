"""A part's outcome for clients that were away in its last round, once its rounds are over.

Each trains its own part on the outcome, as in the round that it missed, and what it shares is thrown away: the parts of
the others stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context, Message
from flwr.serverapp import Grid

from medfedpure.federation import messages
from medfedpure.federation.exchange import exchange
from medfedpure.federation.messages import EVALUATE, TRAIN, Layout
from medfedpure.federation.roster import Roster
from medfedpure.federation.server import RoundLoop, _Draft


class LateRound(RoundLoop):
    """The last round of a run that is over, for those that it lacks.

    Args:
        finished: the run, after its rounds.
        names: of the clients; others are not asked.

    Attributes:
        failed: by client that has still no part, why.
    """

    def __init__(self, finished: RoundLoop, names: Sequence[str]) -> None:
        super().__init__(finished.side, finished.cancelled)
        self.shared, self.replied, self.run_id = finished.shared, dict(finished.replied), finished.run_id
        self.names, self.failed = sorted(names), dict[str, str]()
        self._drafts = finished._drafts  # what a strategy may ask of past rounds

    def run(self, grid: Grid, context: Context) -> None:  # noqa: ARG002 - as a RoundLoop
        """Ask them; who fails or is away is named, and ends nothing."""
        layout, rounds = messages.layout_of(self.shared), self.side.rounds
        identity, start = messages.identity_of(self.side.strategy, layout), self.side.config.start_timeout
        self._roster = Roster(tuple(self.replied), identity, start, self._pause, self.side.part)
        self._roster.meet(grid)
        self.failed = {name: why for name, why in self._roster.absent().items() if name in self.names}
        there = [name for name in self.names if name not in self.failed]
        for name in self._heard(grid, TRAIN, [name for name in there if self.replied[name] < rounds], layout):
            self.replied[name] = rounds
        self._heard(grid, EVALUATE, [name for name in there if self.replied[name] == rounds], {})

    def _heard(self, grid: Grid, kind: str, names: list[str], layout: Layout) -> list[str]:
        """Who answered rightly; the others are failures."""
        asked, round = [], self.side.rounds
        for name in names:
            order = self._order(name, round, evaluate=False, config=self._client_config(name, round))
            asked.append(Message(order, self._members[name].node, kind, group_id=str(round)))
        draft = _Draft(round)
        answers = self._read(exchange(grid, asked, self.side.config.round_timeout, self._pause), draft, layout, names)
        self.failed |= draft.failed
        return list(answers)
