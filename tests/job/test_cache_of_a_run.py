"""Decoded images in the folder of a run: read once, opened by their owner only, gone when they are told to go."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from medfedpure.cli.clean_cache import clean_cache as command
from medfedpure.core.config import Config
from medfedpure.core.dataset import Dataset, ImageDataset
from medfedpure.core.errors import ArtifactError, ConfigError
from medfedpure.core.storage import FORMAT, locked, write_bytes
from medfedpure.data.readers.images import Decoder
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.job import division
from medfedpure.job.config import DataChoice, RunConfig
from medfedpure.job.division import Parts, divide
from medfedpure.job.folder import CACHE, clean_cache, run_folder
from medfedpure.job.run import run_job
from medfedpure.job.subject import load_subject
from medfedpure.testing import tiny_classifier, tiny_dataset


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty of each class, none a near-duplicate of another."""
    data = tiny_dataset(80, seed=2)
    for place, (pixels, label) in enumerate(zip(data.pixels, data.labels.tolist(), strict=True)):
        target = tmp_path / "images" / data.class_names[label]
        target.mkdir(exist_ok=True, parents=True)
        Image.fromarray(pixels[0].numpy()).save(target / f"{place:02}.png")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is decoded."""
    seen: list[Path] = []
    read = Decoder.read

    def noted(self: Decoder, path: Path) -> torch.Tensor:
        seen.append(path)
        return read(self, path)

    monkeypatch.setattr(Decoder, "read", noted)
    return seen


def config_of(images: Path, **data: object) -> RunConfig:
    options = {"root": str(images), "image_size": 32, "groups": "hash", "classes": ("plain", "disc"), **data}
    return RunConfig.parse(
        {
            "data": {"plugin": "image_folder", "config": options, "clients": 1},
            "classifier": {"plugin": "small_cnn"},
            "detector": {"plugin": "denoising_disagreement"},
            "purifier": {"plugin": "ddpm"},
        }
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fingerprints(parts: Parts) -> dict[str, dict[str, str]]:
    return {client: {name: part.fingerprint() for name, part in own.items()} for client, own in parts.items()}


def a_run(images: Path, out: Path, *, cache: bool = True) -> Parts:
    """The folder that a run leaves, without its trainings."""
    config = config_of(images)
    with run_folder(out, config.to_toml(), overwrite=True) as work:
        parts = divide(config, work / CACHE if cache else None)
        (work / "config.toml").write_text(config.to_toml())
        splits = {client: {"test": own["test"].fingerprint()} for client, own in parts.items()}
        (work / "results.json").write_text(json.dumps({"format": FORMAT, "splits": splits}))
        DefendedClassifier(tiny_classifier(), policy="none").save(work / "defences" / "client_0")
    return parts


def test_images_are_decoded_once_and_whoever_evaluates_the_run_finds_them(
    images: Path, tmp_path: Path, decoded: list[Path]
) -> None:
    parts = a_run(images, tmp_path / "run")
    assert len(decoded) == len(set(decoded)) == 80
    cache = tmp_path / "run" / CACHE
    assert mode(cache) == 0o700
    assert [mode(path) for path in cache.iterdir()] == [0o600]
    assert str(tmp_path / "run") not in (tmp_path / "run" / "config.toml").read_text(), "it may be moved"
    decoded.clear()
    subject = load_subject(tmp_path / "run")
    assert decoded == []
    assert subject.data.fingerprint() == parts["client_0"]["test"].fingerprint()
    assert fingerprints(divide(config_of(images))) == fingerprints(parts), "what is kept is what is decoded"


def test_a_changed_image_is_decoded_again(images: Path, tmp_path: Path, decoded: list[Path]) -> None:
    a_run(images, tmp_path / "run")
    decoded.clear()
    some = next((images / "plain").iterdir())
    some.write_bytes(some.read_bytes() + b" ")
    load_subject(tmp_path / "run")
    assert some in decoded


def test_nothing_is_kept_where_it_is_not_wanted(images: Path, tmp_path: Path, decoded: list[Path]) -> None:
    a_run(images, tmp_path / "run")
    a_run(images, tmp_path / "run", cache=False)
    assert not (tmp_path / "run" / CACHE).exists(), "nor what the run before has kept"
    decoded.clear()
    load_subject(tmp_path / "run")
    assert len(decoded) == 80
    assert not (tmp_path / "run" / CACHE).exists(), "reading a run leaves nothing in it"


@pytest.mark.parametrize("wanted", [True, False])
def test_the_configuration_says_whether(
    wanted: bool, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path | None] = []

    def stop(config: RunConfig, cache: Path | None = None) -> Parts:
        asked.append(cache)
        raise ConfigError("enough")

    monkeypatch.setattr("medfedpure.job.run.divide", stop)
    config = config_of(images).with_settings([f"cache={str(wanted).lower()}"])
    with pytest.raises(ConfigError, match="enough"):
        run_job(config, tmp_path / "run")
    assert [path is not None for path in asked] == [wanted]
    assert list((tmp_path / "run").iterdir()) == [], "a run that failed leaves nothing"


def test_what_a_data_set_is_told_itself_is_obeyed(images: Path, tmp_path: Path) -> None:
    divide(config_of(images, cache=False), tmp_path / "no")
    divide(config_of(images, cache=str(tmp_path / "own")), tmp_path / "no")
    assert not (tmp_path / "no").exists()
    assert (tmp_path / "own").is_dir()
    drawn = RunConfig.parse(
        {
            "data": {"plugin": "phantom", "config": {"images": 200, "image_size": 32}, "clients": 1},
            "classifier": {"plugin": "small_cnn"},
            "detector": {"plugin": "denoising_disagreement"},
            "purifier": {"plugin": "ddpm"},
        }
    )
    divide(drawn, tmp_path / "no")
    assert not (tmp_path / "no").exists(), "what is drawn is not kept"


def test_one_command_removes_the_images_and_nothing_else(images: Path, tmp_path: Path) -> None:
    a_run(images, tmp_path / "run")
    app = typer.Typer()
    app.command()(command)
    before = {path.name for path in (tmp_path / "run").iterdir()}
    answer = CliRunner().invoke(app, [str(tmp_path / "run")])
    assert answer.exit_code == 0, answer.output
    assert "MiB of images" in " ".join(answer.output.split())
    assert before - {path.name for path in (tmp_path / "run").iterdir()} == {CACHE}
    again = CliRunner().invoke(app, [str(tmp_path / "run")])
    assert "keeps no images" in " ".join(again.output.split())


@pytest.mark.parametrize("where", [".medfedpure-new", ".medfedpure-done"])
def test_images_of_a_killed_run_are_removed_too(where: str, images: Path, tmp_path: Path) -> None:
    """Killed before it was whole, and before it stood in its place."""
    out = tmp_path / "run"
    a_run(images, out / "whole")
    (out / "whole").rename(out / where)
    assert len(list(out.rglob(f"{CACHE}/*"))) == 1
    assert clean_cache(out) > 0
    assert not list(out.rglob(CACHE))
    assert list(out.rglob("config.toml")), "nothing else is removed"
    assert clean_cache(out) == 0


def test_what_a_plugin_of_somebody_else_means_by_a_cache_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(Config):
        cache: bool = False

    class Drawn(Dataset):
        name = "drawn"
        Config = Own

        def read(self) -> ImageDataset:
            assert self.config.cache is False
            return tiny_dataset(40)

    monkeypatch.setattr(division, "create", lambda kind, name, config: Drawn(config))
    monkeypatch.setattr(division, "registry", lambda: SimpleNamespace(load=lambda kind, name: Drawn))
    assert len(division._read(DataChoice(plugin="drawn", clients=1), 0, Path("cache"))) == 40


def test_what_is_no_cache_is_left_alone(images: Path, tmp_path: Path) -> None:
    a_run(images, tmp_path / "run")
    mine = tmp_path / "run" / CACHE / "notes.txt"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        clean_cache(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"is no cache of a run, it holds notes\.txt"):
        a_run(images, tmp_path / "run")
    assert mine.read_text() == "mine"
    assert len(list((tmp_path / "run" / CACHE).iterdir())) == 2
    with pytest.raises(ConfigError, match="no folder of a run"):
        clean_cache(images)
    mine.unlink()
    with locked(tmp_path / "run", "a run"), pytest.raises(ArtifactError, match="in use by a run"):
        clean_cache(tmp_path / "run")


def test_what_a_killed_process_left_half_written_is_removed_too(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_run(images, tmp_path / "run")
    whole = next((tmp_path / "run" / CACHE).iterdir())

    class Killed(BaseException):
        pass

    def killed(self: Path, target: Path) -> Path:
        raise Killed

    monkeypatch.setattr(Path, "replace", killed)
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    with pytest.raises(Killed):
        write_bytes(whole, whole.read_bytes()[:100])
    monkeypatch.undo()
    assert len(list(whole.parent.iterdir())) == 2
    assert clean_cache(tmp_path / "run") > 100
    assert not (tmp_path / "run" / CACHE).exists()
