"""The log of verdicts: nothing can be changed unseen, nothing of a patient is in it, and a crash does not end it."""

import json
import os

import pytest
from serving import chain, defence, png, running
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.cli.serve import BROKEN
from medfedpure.core.errors import ArtifactError
from medfedpure.service import audit
from medfedpure.service.audit import FIRST, AuditLog, check


@pytest.fixture
def path(tmp_path):
    """A log of eight rows in two sittings."""
    for _ in range(2):
        with AuditLog(tmp_path / "log.jsonl") as log:
            log.append([{"event": "verdict", "label": 1, "score": 0.1 + 0.2}, {"event": "verdict", "label": 0}])
    return tmp_path / "log.jsonl"


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def test_every_row_holds_the_hash_of_the_one_before(path):
    rows = [json.loads(line) for line in lines(path)]
    assert [row["event"] for row in rows] == [
        "begun",
        "verdict",
        "verdict",
        "ended",
        "continued",
        "verdict",
        "verdict",
        "ended",
    ]
    assert [row["row"] for row in rows] == list(range(1, 9))
    assert [row["previous"] for row in rows] == [FIRST, *(row["hash"] for row in rows[:-1])]
    found = check(path)
    assert (found.rows, found.head, found.fault, found.cut_off) == (8, rows[-1]["hash"], None, 0)
    assert path.stat().st_mode & 0o077 == path.with_name("log.jsonl.key").stat().st_mode & 0o077 == 0


TAMPERED = {
    "a value": (lambda rows: [*rows[:2], rows[2].replace(b'"label": 0', b'"label": 1'), *rows[3:]], 3, "was changed"),
    "a space": (lambda rows: [*rows[:2], rows[2].replace(b": 0", b":  0"), *rows[3:]], 3, "was changed"),
    "a key twice": (lambda rows: [rows[0].replace(b"{", b'{"row": 9, '), *rows[1:]], 1, "was changed"),
    "a row taken out": (lambda rows: [*rows[:4], *rows[5:]], 5, "does not follow"),
    "the first row taken out": (lambda rows: rows[1:], 1, "does not follow"),
    "two rows exchanged": (lambda rows: [rows[0], rows[2], rows[1], *rows[3:]], 2, "does not follow"),
    "a row twice": (lambda rows: [*rows[:3], rows[2], *rows[3:]], 4, "does not follow"),
    "another text": (lambda rows: [*rows[:5], b"no row\n", *rows[6:]], 6, "was changed"),
    "an empty line": (lambda rows: [*rows[:5], b"\n", *rows[5:]], 6, "was changed"),
    "a number": (lambda rows: [*rows[:5], b"7\n", *rows[5:]], 6, "was changed"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_found_and_where(path, case):
    change, number, words = TAMPERED[case]
    path.write_bytes(b"".join(change(lines(path))))
    found = check(path)
    assert found.fault.startswith(f"line {number} {words}")
    assert found.rows == number - 1


def test_a_row_made_anew_breaks_the_chain_behind_it(path):
    rows = lines(path)
    row = json.loads(rows[2])
    del row["hash"]
    forged, _ = audit._line({**row, "label": 1})
    path.write_bytes(b"".join([*rows[:2], forged, *rows[3:]]))
    assert check(path).fault.startswith("line 4 does not follow")
    path.write_bytes(b"".join([*rows[:2], audit._line({**row, "row": 7})[0]]))
    assert check(path).fault == "line 3 says that it is row 7"


def test_what_was_shortened_lacks_the_hash_that_was_kept(path):
    kept = check(path).head
    assert check(path, kept).fault is None
    path.write_bytes(b"".join(lines(path)[:5]))
    assert check(path).fault is None
    assert "shortened or rewritten" in check(path, kept).fault


def test_after_a_crash_that_cut_the_last_row_it_goes_on(path):
    rows = lines(path)
    for cut in (1, len(rows[-1]) // 2, len(rows[-1]) - 1):
        path.write_bytes(b"".join(rows)[:-cut])
        assert check(path).cut_off == len(rows[-1]) - cut
        with AuditLog(path) as log:
            log.append([{"event": "verdict"}])
        found = check(path)
        assert (found.rows, found.fault, found.cut_off) == (10, None, 0)
        assert json.loads(lines(path)[7])["cut_off"] == len(rows[-1]) - cut
    path.write_bytes(rows[0][:20])
    with AuditLog(path):
        pass
    assert (check(path).rows, check(path).fault) == (2, None)


def test_something_else_is_left_alone(tmp_path, path):
    for content in (b"a,b\n1,2\n", b"a,b", b"\n", lines(path)[0][:-3] + b"\n", b"7\n"):
        (tmp_path / "mine").write_bytes(content)
        with pytest.raises(ArtifactError, match="name another"), AuditLog(tmp_path / "mine"):
            pass
        assert (tmp_path / "mine").read_bytes() == content
    (tmp_path / "short.key").touch(0o600)
    (tmp_path / "short.key").write_bytes(b"few")
    with pytest.raises(ArtifactError, match="holds 3 bytes; 16 to 4096 are wanted"), AuditLog(tmp_path / "short"):
        pass
    with AuditLog(path), pytest.raises(ArtifactError, match="a service"), AuditLog(path):
        pass
    with pytest.raises(ArtifactError, match="cannot be read"):
        check(tmp_path / "gone")


def test_a_scan_is_known_by_a_hash_under_the_key_of_the_log(tmp_path):
    with AuditLog(tmp_path / "a") as one, AuditLog(tmp_path / "b") as other:
        assert one.name_of(b"scan") != other.name_of(b"scan")
        first = one.name_of(b"scan")
    with AuditLog(tmp_path / "a") as again:
        assert again.name_of(b"scan") == first


def test_a_service_logs_every_verdict_and_nothing_of_the_patient(tmp_path, chain):
    path, secret = tmp_path / "log.jsonl", "MUSTERMANN"
    with AuditLog(path) as log, running(chain, audit=log, made_by="me") as service:
        service.client.post(f"/v1/verdict?note={secret}", files={"file": (f"{secret}.png", png(0))})
        files = [("files", (f"{secret}.png", png(1))), ("files", (f"{secret}.txt", secret.encode()))]
        answer = service.client.post("/v1/verdicts", files=files)
        metrics = service.client.get("/metrics").text
        names = [log.name_of(content) for content in (png(0), png(1), secret.encode())]
    assert check(path).fault is None
    rows = [json.loads(line) for line in lines(path)]
    assert [row["event"] for row in rows] == ["begun", "verdict", "verdict", "refused", "ended"]
    assert [row["scan"] for row in rows[1:-1]] == names
    assert [row["item"] for row in rows[1:-1]] == [0, 0, 1]
    assert rows[2]["request"] == rows[3]["request"] == answer.json()["request"]
    assert rows[3]["status"] == 415
    said = answer.json()["rows"][0]
    assert all(rows[2][key] == value for key, value in said.items() if key not in ("file", "error", "status"))
    assert secret not in path.read_text() + metrics


def test_no_verdict_leaves_without_its_row(tmp_path, monkeypatch):
    with AuditLog(tmp_path / "log") as log, running(defence(), audit=log) as service:
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            answer = service.client.post("/v1/verdict", files={"file": png(0)})
            ready = service.client.get("/ready")
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        assert (ready.status_code, "No space left" in ready.json()["why"]) == (503, True)
        assert service.client.get("/ready").status_code == 200
        assert service.client.post("/v1/verdict", files={"file": png(0)}).status_code == 200
    assert check(tmp_path / "log").fault is None
    assert [json.loads(line)["event"] for line in lines(tmp_path / "log")] == ["begun", "resumed", "verdict", "ended"]


def test_the_command_says_what_it_found(path):
    good = CliRunner().invoke(app, ["audit", "log", str(path)])
    assert (good.exit_code, "8 rows hold together" in good.output) == (0, True)
    path.write_bytes(b"".join(TAMPERED["a value"][0](lines(path))))
    bad = CliRunner().invoke(app, ["audit", "log", str(path), "--json"])
    assert (bad.exit_code, json.loads(bad.output)["rows"]) == (BROKEN, 2)
