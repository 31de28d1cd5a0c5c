"""A log of verdicts that others move, delete or write to by another name."""

import json
import os

import pytest
from serving import chain, png, running

from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.service.audit import FIRST, AuditLog, check


def test_no_verdict_leaves_while_the_log_is_not_where_it_was(tmp_path, chain):
    path = tmp_path / "log"
    with AuditLog(path) as log, running(chain, audit=log) as service:
        for put in (lambda: None, lambda: path.write_bytes(b"")):  # as rotations of logs do
            path.rename(tmp_path / "moved")
            put()
            answer = service.client.post("/v1/verdict", files={"file": png(0)})
            ready = service.client.get("/ready")
            assert (answer.status_code, ready.status_code) == (503, 503)
            assert "moved or deleted" in ready.json()["why"]
            (tmp_path / "moved").replace(path)
            assert service.client.get("/ready").status_code == 200
        assert service.client.post("/v1/verdict", files={"file": png(0)}).status_code == 200
    events = [json.loads(line)["event"] for line in path.read_bytes().splitlines()]
    assert events == ["begun", "resumed", "resumed", "verdict", "ended"]
    assert check(path).fault is None


@pytest.mark.skipif(not hasattr(os, "link"), reason="this system has no second names of files")
def test_a_log_is_written_by_one_service_whatever_its_name_is(tmp_path):
    with AuditLog(tmp_path / "log") as log:
        os.link(tmp_path / "log", tmp_path / "other")
        with pytest.raises(ArtifactError, match="by another name"), AuditLog(tmp_path / "other"):
            pass
        log.append([{"event": "verdict"}])
    assert (check(tmp_path / "log").rows, check(tmp_path / "log").fault) == (3, None)
    with AuditLog(tmp_path / "other"):
        pass


@pytest.mark.parametrize("holds", ["", "8e5afae30d6f23f6", 64 * "g", 63 * "0"])
def test_a_hash_that_was_copied_badly_is_no_alarm(tmp_path, holds):
    with AuditLog(tmp_path / "log"):
        pass
    with pytest.raises(ConfigError, match="all 64 digits"):
        check(tmp_path / "log", holds)


def test_the_hash_of_an_empty_log_is_held_by_every_log(tmp_path):
    (tmp_path / "log").write_bytes(b"")
    assert check(tmp_path / "log").head == FIRST
    with AuditLog(tmp_path / "log"):
        pass
    assert check(tmp_path / "log", FIRST).fault is None
