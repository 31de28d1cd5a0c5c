"""What the coordinator hears while a run computes."""

from __future__ import annotations

import itertools
import json

import pytest

from medfedpure.consortium import run
from medfedpure.core.errors import FederationError


class Answers:
    """A SuperLink that says one thing after another, a minute apart."""

    def __init__(self, *statuses):
        self.statuses = iter(statuses)

    def status(self, run_id):
        return next(self.statuses)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    seconds = itertools.count(0, 60)
    monkeypatch.setattr(run.time, "monotonic", lambda: float(next(seconds)))
    monkeypatch.setattr(run.time, "sleep", lambda _: None)


def test_a_run_that_computes_for_minutes_shows_that_it_is_alive(tmp_path):
    said = []
    found = run._wait(
        Answers(*["running"] * 3, "finished:completed"), "1", tmp_path / "results.json", said.append, None
    )
    assert found == "finished:completed"
    assert said == ["running", *[f"running for {n} min; rounds that are over: 0" for n in (2, 3)], "finished:completed"]


def test_a_round_is_a_sign_of_life(tmp_path):
    results, said = tmp_path / "results.json", []

    def say(text):
        said.append(text)
        results.write_text(json.dumps({"history": [{"round": 1, "seconds": 9.0, "clients": ["a"], "failed": {}}]}))

    run._wait(Answers("running", "running", "running", "finished:completed"), "1", results, say, None)
    assert said == [
        "running",
        "round 1: 9 s, 1 clients",
        "running for 3 min; rounds that are over: 1",
        "finished:completed",
    ]


def test_a_superlink_that_is_gone_ends_it(tmp_path):
    with pytest.raises(FederationError, match="has not answered for 60 s"):
        run._wait(Answers(*[None] * 9), "1", tmp_path / "results.json", lambda _: None, None)
