"""What a run found shows itself in a line."""

from types import SimpleNamespace

from medfedpure.job.records import RunResult


def test_a_run_is_one_line():
    mean = {"bare.clean_balanced_accuracy": 0.9375, "defended.clean_balanced_accuracy": 0.9}
    strategies = [SimpleNamespace(strategy=name) for name in ("fedrep", "local")]
    found = RunResult.model_construct(clients=[None] * 3, mean=mean, strategies=strategies)
    wanted = "RunResult of 3 clients, fedrep, local: clean balanced accuracy, mean, bare 0.938, defended 0.900"
    assert repr(found) == str(found) == wanted
