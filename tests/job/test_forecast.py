"""How long a run will take: every training is timed, and what is over corrects what is to come."""

import pytest
import torch

from medfedpure.core.progress import listening
from medfedpure.federation import Site
from medfedpure.job.config import RunConfig
from medfedpure.job.forecast import REST, Forecast, duration, forecast
from medfedpure.job.journal import Journal
from medfedpure.testing import tiny_dataset

TINY = {
    "data": {"plugin": "phantom"},
    "classifier": {"plugin": "small_cnn", "config": {"widths": [8, 8]}, "training": {"steps": 40, "batch_size": 4}},
    "purifier": {
        "plugin": "ddpm",
        "config": {"model": {"widths": [8, 8], "unshuffle": 2}, "training": {"steps": 20, "batch_size": 4}},
    },
    "detector": {"plugin": "feature_squeezing"},
    "evaluation": {"compare": ["local"]},
}


class Silent:
    def started(self, description, total):
        raise AssertionError(f"trial steps draw no bar: {description}")


def test_every_training_is_timed_and_nothing_changes():
    data = tiny_dataset(24)
    before = torch.get_rng_state()
    with listening(Silent()):
        found = forecast(RunConfig.parse(TINY), [Site("a", data, data), Site("b", data, data)])
    assert list(found.seconds) == ["classifier", "purifier", "measure", "compare local"], "squeezing trains nothing"
    assert all(seconds > 0 for seconds in found.seconds.values())
    trainings = found.seconds["classifier"] + found.seconds["purifier"]
    assert found.seconds["measure"] == pytest.approx(REST * trainings)
    assert torch.equal(torch.get_rng_state(), before)


def test_adversarial_training_costs_its_passes(monkeypatch):
    monkeypatch.setattr("medfedpure.job.forecast._timed", lambda *arguments: 1.0)
    data = tiny_dataset(24)
    hard = {"plugin": "fedavg", "config": {"adversarial": {"share": 0.5, "steps": 4}}}
    plain = forecast(RunConfig.parse(TINY), [Site("a", data, data)])
    attacked = {**TINY, "classifier": {**TINY["classifier"], "strategy": hard}}
    found = forecast(RunConfig.parse(attacked), [Site("a", data, data)])
    assert found.seconds["classifier"] == pytest.approx(3 * plain.seconds["classifier"])
    assert found.seconds["purifier"] == plain.seconds["purifier"]


def test_what_is_over_corrects_what_is_to_come():
    found = Forecast({"classifier": 10.0, "purifier": 30.0})
    assert (found.of("classifier"), found.of("detector"), found.left()) == (10.0, None, 40.0)
    found.over("data", 5.0)
    assert found.left() == 40.0, "of a phase that was not forecast nothing is learned"
    found.over("classifier", 20.0)
    assert (found.of("classifier"), found.of("purifier"), found.left()) == (None, 60.0, 60.0)


def test_a_phase_says_how_long_it_and_the_rest_will_take():
    said = []
    journal = Journal(said.append)
    with journal.phase("data", "data: phantom"):
        journal.forecast = Forecast({"classifier": 30.0, "purifier": 210.0})
    with journal.phase("classifier", "classifier: small_cnn"):
        pass
    assert said == ["data: phantom", "classifier: small_cnn [about 30 s, 4 min to the end]"]


@pytest.mark.parametrize(("seconds", "text"), [(0.1, "1 s"), (89, "89 s"), (100, "2 min"), (7260, "2 h 1 min")])
def test_durations_are_for_people(seconds, text):
    assert duration(seconds) == text
