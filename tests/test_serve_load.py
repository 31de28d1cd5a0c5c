"""`python -m benchmarks.serve_load` in small: it asks, judges and ends a service, and sees what is wrong."""

import importlib
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bench(monkeypatch):
    pytest.importorskip("uvicorn", reason="the service is not installed: pip install 'medfedpure[serve]'")
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'medfedpure[medical]'")
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.mark.slow
def test_under_load_every_answer_is_right_and_none_is_lost(bench, monkeypatch, tmp_path, capsys):
    words = ["serve_load", "--clients", "8", "--seconds", "5", "--result", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as caught:
        bench("serve_load").main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["faults"], caught.value.code) == ([], 0)
    assert found["log"]["verdicts"] >= found["verdicts"]["requests"] >= 16
    assert found["end"]["answered before"] >= 8
    assert "told to end" in capsys.readouterr().out


def test_the_published_run_found_nothing_wrong(bench):
    found = json.loads((ROOT / "benchmarks" / "results" / "serve_load" / "cpu.json").read_text())
    assert (found["clients"], found["seconds"], found["faults"], found["never refused"]) == (32, 120, [], [])
    assert found["verdicts"]["milliseconds"]["p99"] <= 1000 * found["limits"]["upload_seconds"]


def test_the_page_says_what_was_published(bench):
    found = json.loads((ROOT / "benchmarks" / "results" / "serve_load" / "cpu.json").read_text())
    page = " ".join((ROOT / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8").split())
    assert bench("serve_load").sentence(found) in page, "write it again: python -m benchmarks.serve_load prints it"


def test_a_lost_a_mixed_and_a_wrong_answer_are_seen(bench, tmp_path):
    scans = bench("load.scans")
    chain = scans.make_defence(tmp_path / "guarded")
    (first, second), _ = scans.make_scans(chain, 2, 2, 7, tmp_path)
    right = {"file": first.name, **first.verdict}
    assert first.faults(right) == []
    assert "was answered the row of" in first.faults({**right, "file": second.name})[0]
    assert "is right" in first.faults({**right, "label": 1 - right["label"]})[0]
    assert "is right" in first.faults({**right, "score": right["score"] + 0.01})[0]
    assert "is right" in first.faults({**right, "score": None})[0]


def test_counts_of_the_service_that_differ_are_seen(bench):
    heard = bench("load.heard").Heard()
    heard.statuses.update({("/v1/verdict", 200): 5, ("/v1/verdicts", 200): 1, ("/v1/verdict", 413): 1})
    heard.cut.update({"behind a body": 1, "in a body": 2})
    lines = ['path="/v1/verdict",status="413"} 1.0', 'path="/v1/verdicts",status="200"} 1.0']
    right = [*lines, 'path="/v1/verdict",status="499"} 2.0', 'path="/v1/verdict",status="200"} 6.0']

    def said(*lines):
        heard.faults.clear()
        heard.counted("".join(f"medfedpure_requests_total{{{line}\n" for line in lines))
        return " ".join(heard.faults)

    assert said(*right) == ""
    assert "3 were cut off, and 2 were so" in said(*right[:3], 'path="/v1/verdict",status="200"} 5.0')
    assert "2 verdicts were not heard" in said(*right[:3], 'path="/v1/verdict",status="200"} 7.0')
    assert "('/v1/verdict', 413): 1" in said(*right[1:])
    assert "{('/v1/verdict', 500): 1} more" in said(*right, 'path="/v1/verdict",status="500"} 1.0')


def test_a_log_without_what_was_answered_is_seen(bench, tmp_path):
    from medfedpure.service.audit import AuditLog

    load = bench("load.heard")
    with AuditLog(tmp_path / "log") as log:
        log.append([{"event": "verdict", "request": name, "score": score} for name, score in (("a", 0.5), ("b", 1))])
    for answered, said in (
        ({"a": 0.5, "b": 1}, []),
        ({"a": 0.5, "b": 2}, ["request b has other rows"]),
        ({"a": 0.5, "b": 1, "c": 1}, ["request c has other rows"]),
        ({"a": 0.5}, ["1 verdicts were logged and never heard"]),
    ):
        heard = load.Heard(rows={request: [{"score": score}] for request, score in answered.items()})
        heard.logged(tmp_path / "log")
        assert [fault.startswith(words) for fault, words in zip(heard.faults, said, strict=True)] == [True] * len(said)


def test_quantiles_are_in_milliseconds(bench):
    found = bench("load.heard").quantiles([place / 1000 for place in range(1, 101)])
    assert found == {"p50": 51.0, "p95": 96.0, "p99": 100.0, "most": 100.0}
