"""A part's outcome for clients that were away in its last round, once its rounds are over.

Each trains its own part on the outcome, as in the round that it missed, and what it shares is thrown away: the parts of
the others stay.
"""

from __future__ import annotations

from collections.abc import Sequence

from flwr.app import Context
from flwr.serverapp import Grid

from medfedpure.federation.messages import EVALUATE, TRAIN, Layout
from medfedpure.federation.records import Draft
from medfedpure.federation.server import RoundLoop


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
        self.drafts = finished.drafts  # what a strategy may ask of past rounds

    def run(self, grid: Grid, context: Context) -> None:  # noqa: ARG002 - as a RoundLoop
        """Ask them; who fails or is away is named, and ends nothing."""
        self.prepare()
        self.roster.meet(grid)
        self.failed = {name: why for name, why in self.roster.absent().items() if name in self.names}
        there, last = [name for name in self.names if name not in self.failed], self.side.rounds
        for name in self._heard(grid, TRAIN, [name for name in there if self.replied[name] < last], self.layout):
            self.replied[name] = last
        self._heard(grid, EVALUATE, [name for name in there if self.replied[name] == last], {})

    def _heard(self, grid: Grid, kind: str, names: list[str], layout: Layout) -> list[str]:
        """Who answered rightly; the others are failures."""
        draft = Draft(self.side.rounds)
        answers = self.ask(grid, kind, dict.fromkeys(names, False), draft, layout)
        self.failed |= draft.failed
        return list(answers)
