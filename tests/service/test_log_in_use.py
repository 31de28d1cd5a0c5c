"""A log of verdicts that others move, delete or write to by another name."""

import io
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
    with pytest.raises(ArtifactError, match=r"other\.key is gone"), AuditLog(tmp_path / "other"):
        pass


def test_scans_of_one_log_are_hashed_under_one_key(tmp_path):
    path = tmp_path / "log"
    with AuditLog(path) as log:
        name = log.name_of(b"scan")
    path.write_bytes(path.read_bytes() + b'{"row": 3')
    before = path.read_bytes()
    (tmp_path / "log.key").rename(tmp_path / "away")
    with pytest.raises(ArtifactError, match=r"log\.key is gone, .* restore it, or name another"), AuditLog(path):
        pass
    assert (path.read_bytes(), (tmp_path / "log.key").exists()) == (before, False)
    (tmp_path / "away").rename(tmp_path / "log.key")
    with AuditLog(path) as log:
        assert log.name_of(b"scan") == name
    (tmp_path / "log.key").unlink()
    path.write_bytes(b"")  # as after a crash before the first row
    with AuditLog(path) as log:
        assert log.name_of(b"scan") != name


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


def test_a_log_that_others_cut_off_or_write_to_takes_no_verdict(tmp_path, chain):
    path = tmp_path / "log"
    with AuditLog(path) as log, running(chain, audit=log) as service:
        whole = path.read_bytes()
        for change, words in ((whole[:-9], "cut off"), (b"", "cut off"), (whole + b"more\n", "added to")):
            path.write_bytes(change)  # in place, as a rotation that copies and truncates
            answer = service.client.post("/v1/verdict", files={"file": png(0)})
            ready = service.client.get("/ready")
            assert (answer.status_code, ready.status_code) == (503, 503)
            assert words in ready.json()["why"]
            assert path.read_bytes() == change
        path.write_bytes(whole)
        assert service.client.post("/v1/verdict", files={"file": png(0)}).status_code == 200
    assert check(path).fault is None


def test_what_could_not_be_taken_back_of_a_row_is_before_the_next_one(tmp_path, monkeypatch):
    path = tmp_path / "log"
    with AuditLog(path) as log:
        whole = path.read_bytes()

        class Full(io.FileIO):
            """A file of which half of a row is written, and nothing can be cut off."""

            def write(self, data):
                if len(data) < 100:
                    raise OSError(28, "No space left on device")
                return super().write(data[:-90])

            def truncate(self, size=None):
                raise OSError(30, "Read-only file system")

        with monkeypatch.context() as broken, Full(os.dup(log._stream.fileno()), "ab+") as full:
            broken.setattr(log, "_stream", full)
            for _ in range(2):
                with pytest.raises(ArtifactError, match=r"No space left|Read-only"):
                    log.append([{"event": "verdict", "label": 1}])
        assert path.read_bytes()[len(whole) :].startswith(b'{"row": 2')
        log.append([{"event": "verdict", "label": 0}])
    assert check(path).fault is None
    assert [json.loads(line).get("label") for line in path.read_bytes().splitlines()] == [None, 0, None]


def test_a_device_a_pipe_or_a_folder_is_no_log(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, words in (("pipe", "a named pipe"), ("folder", "a folder"), ("zeros", "a device")):
        with pytest.raises(ArtifactError, match=words), AuditLog(tmp_path / name):
            pass
        assert not (tmp_path / f"{name}.key").exists(), "a key was drawn for what is no log"


def test_the_key_of_a_log_is_read_by_its_owner_alone(tmp_path):
    with AuditLog(tmp_path / "log"):
        pass
    (tmp_path / "log.key").chmod(0o640)
    told = r"mode is 0640; 0600 is wanted\): say chmod 600 .*log\.key"
    with pytest.raises(ArtifactError, match=told), AuditLog(tmp_path / "log"):
        pass
    (tmp_path / "log.key").chmod(0o600)
    with AuditLog(tmp_path / "log"):
        pass
    assert check(tmp_path / "log").fault is None
