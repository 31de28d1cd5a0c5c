"""What a search or bad weather found: each was another error than ours, a wait without end, or too much memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from scans import write_nifti
from test_federation_data import quick, strategy, three_sites

import medfedpure
from medfedpure.core.detector import Detector
from medfedpure.core.errors import ArtifactError, FederationError
from medfedpure.core.storage import _digest, read_json
from medfedpure.data.readers.grey import percentile_ends
from medfedpure.data.readers.nifti import read_nifti
from medfedpure.federation.checkpoint import RunCheckpoint, SavedRun
from medfedpure.federation.state import PrivateStore, StaleStateError
from medfedpure.testing import tiny_classifier

DEEP = "[" * 5000


@pytest.fixture
def store(tmp_path: Path) -> PrivateStore:
    """Of one client, after a round, with a best model."""
    made = PrivateStore(tmp_path, 7, "a", "fedavg")
    made.write(1, {"w": torch.ones(2)}, confirmed=0)
    made.offer(1, (0.5,), {"w": torch.ones(2)})
    return made


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that waits for ever is ended."""

    def late(*_: object) -> None:
        raise AssertionError("it waits for a writer")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A defence without calibration."""
    detector = medfedpure.create("detector", "feature_squeezing")
    medfedpure.DefendedClassifier(tiny_classifier(16, 1), detector=detector, policy="none").save(tmp_path / "saved")
    return tmp_path / "saved"


def seal(path: Path, **changes: Any) -> None:
    """Change a document, and give it the digest that it should have."""
    told = {**json.loads(path.read_bytes()), **changes}
    path.write_text(json.dumps({**told, "digest": _digest(told)}))


def test_private_tensors_whose_document_is_nested_deep(store: PrivateStore) -> None:
    """RecursionError, at the client."""
    (store.folder / "round-00001.json").write_text(DEEP)
    (store.folder / "best.json").write_text(DEEP)
    with pytest.raises(StaleStateError, match="no readable private state"):
        store.read(1)
    with pytest.raises(StaleStateError, match="not readable"):
        store.best(1)


def test_a_best_models_worth_beyond_float(store: PrivateStore) -> None:
    """OverflowError."""
    (store.folder / "best.json").write_text('{"round": 1, "worth": [1' + "0" * 400 + "]}")
    with pytest.raises(StaleStateError, match="OverflowError"):
        store.best(1)


SPOILT: dict[str, dict[str, Any]] = {
    "a figure that is no text": {
        "rounds": [{"round": 1, "seconds": 1.0, "clients": {"a": {"x": "\ud800"}}, "failed": {}}]
    },
    "a figure that is a number": {"rounds": [{"round": 1, "seconds": 1.0, "clients": {"a": {"x": 1}}, "failed": {}}]},
    "a figure beyond float": {
        "rounds": [{"round": 1, "seconds": 1.0, "clients": {"a": {"x": "0x1p9999"}}, "failed": {}}]
    },
    "a round that is a word": {"rounds": ["one"]},
    "a round without its number": {"rounds": [{"seconds": 1.0, "clients": {}, "failed": {}}]},
    "rounds that are none": {"rounds": None},
    "a number of the run that is none": {"run": "seven"},
    "an end that is a word": {"finished": "no"},
    "replies that are a list": {"replied": ["a"]},
    "a recipe that is a list": {"recipe": ["fedavg"]},
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_checkpoint_that_is_sealed_and_wrong(case: str, tmp_path: Path) -> None:
    """UnicodeEncodeError, AttributeError, OverflowError, TypeError, KeyError; or taken over, to fail later."""
    place = RunCheckpoint(tmp_path, {"strategy": "fedavg"})
    rounds = [{"round": 1, "seconds": 0.5, "clients": {"a": {"loss": 0.5}}, "failed": {}}]
    place.write(SavedRun(7, False, {"w": torch.ones(2)}, {"a": 1}, rounds))
    assert place.read() is not None
    seal(tmp_path / "round-00001" / "medfedpure.json", **SPOILT[case])
    with pytest.raises(FederationError, match=r"start anew"):
        place.read()


@pytest.mark.parametrize("change", [{"shared": {"w": torch.ones(2)}}, {"replied": {"a": 1}}])
def test_a_checkpoint_of_other_tensors_or_clients(change: dict[str, Any], tmp_path: Path) -> None:
    """KeyError, as the run went on."""
    places = {"checkpoint": tmp_path / "run", "state_dir": tmp_path / "state"}
    quick(three_sites(), strategy("fedavg"), rounds=1, **places)
    (state,) = places["checkpoint"].iterdir()
    kept = RunCheckpoint(places["checkpoint"], json.loads((state / "medfedpure.json").read_bytes())["recipe"])
    saved = kept.read()
    assert saved is not None
    kept.write(replace(saved, finished=False, **change))
    with pytest.raises(FederationError, match="other tensors or clients"):
        quick(three_sites(), strategy("fedavg"), rounds=1, **places)


def test_a_kind_that_is_a_list_in_the_first_format(saved: Path) -> None:
    """TypeError, of a part that is loaded alone."""
    seal(saved / "detector" / "medfedpure.json", format=1, kind=["detector"])
    with pytest.raises(ArtifactError, match="was wanted"):
        Detector.load(saved / "detector")


def test_a_part_whose_name_leads_out_of_the_folder(saved: Path) -> None:
    """The document of another folder was read."""
    shutil.copytree(saved / "detector", saved.parent / "other")
    parts = json.loads((saved / "medfedpure.json").read_bytes())["parts"]
    seal(saved / "medfedpure.json", parts={**parts, "../other": parts["detector"]})
    with pytest.raises(ArtifactError, match=r"parts that a defence has not, \.\./other"):
        medfedpure.DefendedClassifier.load(saved)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["medfedpure.json", "classifier/medfedpure.json", "classifier/tensors.safetensors"])
def test_a_named_pipe_in_a_saved_folder(saved: Path, name: str, in_time: None) -> None:
    """Loading waited for ever."""
    (saved / name).unlink()
    os.mkfifo(saved / name)
    with pytest.raises(ArtifactError, match="it is no file"):
        medfedpure.DefendedClassifier.load(saved)
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_json(saved / name)


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0.0, 100.0), (50.0, 50.0), (10.0, 20.0)])
def test_the_ends_of_a_large_volume_take_no_more_than_a_copy_of_it(percentiles: tuple[float, float]) -> None:
    values = numpy.random.default_rng(3).integers(-50, 50, 300_000).astype(numpy.float64)
    tracemalloc.start()
    try:
        found = percentile_ends(values, percentiles=percentiles)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * values.nbytes
    assert found == percentile_ends(values, numpy.ones(values.size, numpy.int64), percentiles)


def test_a_slice_of_a_volume_is_no_copy_of_all_of_it(tmp_path: Path) -> None:
    """numpy.take copied the volume for each of its slices: minutes for 16 million voxels."""
    values = numpy.random.default_rng(5).integers(0, 90, (64, 64, 64)).astype(numpy.float64)
    found = read_nifti(write_nifti(tmp_path / "a.nii", values))
    slices = found.slices(window=(0.0, 90.0))
    first = next(slices)[0]
    tracemalloc.start()
    try:
        second = next(slices)[0]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < values.nbytes / 2
    for place, shown in enumerate((first, second)):
        assert numpy.allclose(shown[0], values[::-1, ::-1, place].T / 90)
