"""One folder, one run: what stands there is whole, and nobody works in it beside another."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medfedpure.cli.app import app
from medfedpure.core.errors import ArtifactError, ConfigError, MedFedPureError
from medfedpure.core.storage import locked
from medfedpure.job import folder as folders
from medfedpure.job.config import RunConfig
from medfedpure.job.federate import run_federate
from medfedpure.job.federate_config import FederateConfig
from medfedpure.job.folder import complete, run_folder
from medfedpure.job.presets import folder_demo, is_demo, phantom_demo
from medfedpure.job.run import run_job

CONFIG = phantom_demo()
FILES = ("config.toml", "results.json", "gallery.png", "report.html", "defences/client_0/medfedpure.json")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """What a run left, and something beside it that no run wrote."""
    return write_run(tmp_path / "run", "old", FILES)


def write_run(out: Path, text: str, files: tuple[str, ...]) -> Path:
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    return out


def contents(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}


def test_b06_a_run_is_not_replaced_unless_that_is_asked_for(old: Path) -> None:
    """B6: refused before any work, and nothing is touched."""
    before, said = contents(old), []
    with pytest.raises(ConfigError, match=r"another run .*--overwrite"):
        run_job(CONFIG, old, say=said.append)
    assert (contents(old), said) == (before, [])
    for name in FILES[1:]:
        part = write_run(old.parent / name.replace("/", "-"), "old", (name,))
        with pytest.raises(ConfigError, match="another run"):
            run_job(CONFIG, part, say=said.append)


def test_b06_the_old_run_stays_whole_until_the_new_one_is(old: Path) -> None:
    """B6: a run that fails, or is killed in mid-work, leaves the old one; the next clears up."""
    before = contents(old)
    few = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"config": {"images": 6, "image_size": 24}})})
    with pytest.raises(MedFedPureError):
        run_job(few, old, say=lambda _: None, overwrite=True)
    assert contents(old) == before

    code = (
        "import os, sys\nfrom pathlib import Path\nfrom medfedpure.job.presets import phantom_demo\n"
        "from medfedpure.job.run import run_job\n"
        "run_job(phantom_demo(1), Path(sys.argv[1]), say=lambda text: os._exit(9), overwrite=True)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(old)], timeout=120).returncode == 9
    assert {name: text for name, text in contents(old).items() if not name.startswith(".medfedpure")} == before
    with run_folder(old, "new", overwrite=True) as work:
        assert not list(work.iterdir()), "the new run is mixed with one that was killed"


def test_b06_the_new_run_takes_the_place_of_the_old_one_as_a_whole(old: Path) -> None:
    """B6: no page of the old run stays beside new results; what no run wrote stays."""
    with run_folder(old, "new", overwrite=True) as work:
        write_run(work, "new", ("config.toml", "results.json", "defences/client_1/medfedpure.json"))
        (work / "notes.txt").unlink()
    assert contents(old) == {
        "config.toml": "new",
        "results.json": "new",
        "defences/client_1/medfedpure.json": "new",
        "notes.txt": "mine",
    }


def test_b06_a_run_that_is_killed_while_it_moves_in_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B6: whichever step was the last, the next who looks finds the new run whole, or the old one."""
    wanted = {"config.toml": "new", "results.json": "new", "defences/client_1/a": "new", "notes.txt": "mine"}
    rename, remove, step = Path.rename, folders._remove, 0
    while True:
        step += 1
        out, left = write_run(tmp_path / f"run {step}", "old", FILES), [step]

        def counted(call, left=left):
            def wrapped(*arguments):
                left[0] -= 1
                if left[0] == 0:
                    raise KeyboardInterrupt
                return call(*arguments)

            return wrapped

        finished = False
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", counted(rename))
            patched.setattr(folders, "_remove", counted(remove))
            try:
                with run_folder(out, "new", overwrite=True) as work:
                    for name in ("config.toml", "results.json", "defences/client_1/a"):
                        (work / name).parent.mkdir(parents=True, exist_ok=True)
                        (work / name).write_text("new")
                finished = True
            except KeyboardInterrupt:
                pass
        complete(out)
        if step > 1:  # before the first one nothing is decided
            assert contents(out) == wanted, f"step {step}"
        else:
            assert contents(out)["results.json"] == "old"
        if finished:
            break
    assert step > 6


def test_b06_other_things_than_runs_are_never_replaced(tmp_path: Path) -> None:
    """B6: an evaluation, a federation; nor does a federation replace a run or an evaluation."""
    for name in ("setting.json", "checkpoint/a", "parts/client_0/a"):
        other = write_run(tmp_path / name.partition("/")[0], "x", (name, "results.json"))
        with pytest.raises(ConfigError, match="an evaluation or a federation"):
            run_job(CONFIG, other, say=lambda _: None, overwrite=True)
    federation = {"data": {"plugin": "phantom"}, "classifier": {"plugin": "small_cnn"}}
    with pytest.raises(ConfigError, match="something else"):
        run_federate(FederateConfig.parse(federation), tmp_path / "setting.json")


def test_b06_a_file_may_run_in_its_own_folder(tmp_path: Path) -> None:
    """B6: config.toml alone is no run, where it says the same."""
    (tmp_path / "config.toml").write_text("same")
    with run_folder(tmp_path, "same", overwrite=False):
        pass
    (tmp_path / "config.toml").write_text("another")
    with (
        pytest.raises(ConfigError, match=r"another run \(config\.toml\)"),
        run_folder(tmp_path, "same", overwrite=False),
    ):
        pass


def test_b06_a_demo_may_be_repeated_and_nothing_else_is_taken_for_one(tmp_path: Path) -> None:
    """B6: `make demo` works again and again."""
    path = tmp_path / "config.toml"
    for config in (
        phantom_demo(3),
        folder_demo(tmp_path / "images", 4),
        phantom_demo().model_copy(update={"device": "x"}),
    ):
        path.write_text(config.to_toml())
        assert is_demo(tmp_path)
    changed = phantom_demo().model_dump(mode="json")
    changed["classifier"]["rounds"] = 9
    path.write_text(RunConfig.parse(changed).to_toml())
    assert not is_demo(tmp_path), "somebody's own run would be replaced"
    path.write_text("seed = [")
    assert not is_demo(tmp_path)
    assert not is_demo(tmp_path / "nowhere")


def test_b06_the_command_says_so(old: Path) -> None:
    """B6: `run` and `demo` refuse alike."""
    (old / "job.toml").write_text(CONFIG.to_toml())
    for command in (["run", str(old / "job.toml")], ["demo"]):
        done = CliRunner().invoke(app, [*command, "--out", str(old), "--quiet"])
        assert isinstance(done.exception, ConfigError), done.output
        assert "--overwrite" in str(done.exception)


def _hold(out: str, told, done) -> None:
    with locked(out, "a run"):
        told.set()
        done.wait(60)


def test_b07_two_runs_in_one_folder(tmp_path: Path) -> None:
    """B7: the second refuses, and names the process and host of the first; so do federations."""
    context = multiprocessing.get_context("spawn")
    told, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "run"), told, done))
    holder.start()
    try:
        assert told.wait(60)
        words = rf"a run \(pid {holder.pid} on host {socket.gethostname()}\)"
        federation = {"data": {"plugin": "phantom"}, "classifier": {"plugin": "small_cnn"}}
        with pytest.raises(ArtifactError, match=words):
            run_job(CONFIG, tmp_path / "run", say=lambda _: None)
        with pytest.raises(ArtifactError, match=words):
            run_federate(FederateConfig.parse(federation), tmp_path / "run")
    finally:
        done.set()
        holder.join(60)
    with run_folder(tmp_path / "run", "text", overwrite=False):
        pass
    assert os.listdir(tmp_path) == ["run"], "the lock stays behind"  # noqa: PTH208


@pytest.mark.parametrize(
    "command",
    [["demo", "--out"], ["run", "JOB", "--out"], ["federate", "FEDERATION", "--out"], ["evaluate", "x", "--report"]],
    ids=lambda command: command[0],
)
def test_c_a_file_where_a_folder_is_wanted(tmp_path: Path, command: list[str]) -> None:
    """C, `--out` that is a file: said before any work, whatever command."""
    (tmp_path / "job.toml").write_text(CONFIG.to_toml())
    (tmp_path / "federation.toml").write_text('[data]\nplugin = "phantom"\n[classifier]\nplugin = "small_cnn"\n')
    (tmp_path / "file").write_text("mine")
    words = {"JOB": str(tmp_path / "job.toml"), "FEDERATION": str(tmp_path / "federation.toml")}
    for place in ("file", "file/below"):
        line = [*(words.get(word, word) for word in command), str(tmp_path / place), "--quiet"]
        done = CliRunner().invoke(app, line)
        assert isinstance(done.exception, ArtifactError), (line, done.output, done.exception)
        assert str(tmp_path / "file") in str(done.exception)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("device", ["gpu", "GPU", "cuda:99", "", "meta", "cpu:cpu", "cuda:-1", "nonsense"])
def test_c_a_device_that_does_not_exist(tmp_path: Path, device: str) -> None:
    """C, `--device gpu`: a sentence that says which there are."""
    (tmp_path / "federation.toml").write_text(
        '[data]\nplugin = "phantom"\n[classifier]\nplugin = "small_cnn"\n[federation]\ndevice = ' + json.dumps(device)
    )
    for line in (
        ["demo", "--out", str(tmp_path / "out"), "--device", device],
        ["evaluate", "x", "--report", str(tmp_path / "out"), "--device", device],
        ["check", "mahalanobis", "--device", device],
        ["federate", str(tmp_path / "federation.toml"), "--out", str(tmp_path / "out")],
    ):
        done = CliRunner().invoke(app, line)
        assert isinstance(done.exception, ConfigError), (line, done.output, done.exception)
        assert f"the device {device!r}" in str(done.exception)
        assert "there are cpu, cuda, cuda:0" in str(done.exception)
    assert not (tmp_path / "out").exists()
