"""What clients do alone at the end of a run: asked once, named where it failed, and no text of an error travels."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from wire import Wire

from medfedpure.core.errors import FederationError
from medfedpure.federation import FederationConfig, InProcessGrid, LocalWork, WorkLoop, WorkSide, deployed_client_app
from medfedpure.federation.grid import acting_as_server

NAMES = ("site-0", "site-1", "site-2")
SECRET = "ward-7-archive"


class Sites:
    """Three sites, of which some fail; `asked` says who has worked, and for which part."""

    def __init__(self, broken: tuple[str, ...] = (), told: Mapping[str, float] | None = None) -> None:
        self.broken, self.told, self.asked, self.wire = broken, told or {}, [], Wire()

    def side_of(self, node: Mapping[str, object], part: str) -> LocalWork:
        """The site of a node."""
        name = NAMES[int(str(node["partition-id"]))]

        def work() -> Mapping[str, float]:
            self.asked.append((name, part))
            if name in self.broken:
                raise LookupError(SECRET)
            return self.told

        return LocalWork(name, 5, {"configuration": "alike"}, work)

    def run(self, loop: WorkLoop) -> WorkLoop:
        """The loop over these sites."""
        grid = InProcessGrid(deployed_client_app(self.side_of), len(NAMES), tap=self.wire)
        with acting_as_server(grid.run.run_id):
            loop.run(grid, grid.server_context())
        return loop


def loop(identity: str = "alike", **state: dict) -> WorkLoop:
    """Work of the part "defence"; two of three must have done it."""
    config = FederationConfig(quorum=0.6, start_timeout=1.0)
    return WorkLoop(WorkSide(NAMES, "defence", {"configuration": identity}, 0, config), **state)


def test_every_client_is_asked_once_and_tells_what_it_likes() -> None:
    sites = Sites(told={"images": 12.0})
    found = sites.run(loop(done={"site-1": {}}))
    assert sites.asked == [("site-0", "defence"), ("site-2", "defence")], "who has done it is not asked again"
    assert found.done == {"site-0": {"images": 12.0}, "site-1": {}, "site-2": {"images": 12.0}}
    assert found.failed == {}


def test_a_client_that_fails_is_named_by_type_alone_and_the_others_are_done() -> None:
    sites, seen = Sites(broken=("site-1",)), []
    found = loop()
    found.watch = lambda one: seen.append((sorted(one.done), dict(one.failed)))
    sites.run(found)
    assert seen == [(["site-0", "site-2"], {"site-1": "LookupError (work)"})]
    assert SECRET.encode() not in sites.wire.everything


def test_fewer_than_the_quorum_is_an_error_that_says_why() -> None:
    text = (
        r"defence: 1 of 3 clients have done it, and 2 are needed \(site-0: it was away; site-1: LookupError \(work\)\)"
    )
    with pytest.raises(FederationError, match=text):
        Sites(broken=("site-1",)).run(loop(failed={"site-0": "it was away"}))


def test_a_client_of_another_configuration_is_left_out() -> None:
    sites = Sites()
    with pytest.raises(FederationError, match="site-0: client site-0 is set up differently from the server"):
        sites.run(loop(identity="another"))
    assert sites.asked == []
