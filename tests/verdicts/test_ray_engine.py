"""Files dealt to workers of Ray: the rows of one process, each once, whoever dies on the way."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from written import DATA, defence, pictures, rows_of

from medfedpure.cli.predict import check_engine, on_ray
from medfedpure.core.errors import ArtifactError, ConfigError, MedFedPureError, MissingExtraError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.verdicts import ray_engine
from medfedpure.verdicts.engine import Asked, How
from medfedpure.verdicts.files import name_of
from medfedpure.verdicts.predict import predict_files
from medfedpure.verdicts.ray_engine import RayEngine, Worker

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # it copies its own old options
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def chain():
    return defence()


@pytest.fixture
def guarded(chain, tmp_path):
    chain.save(tmp_path / "guarded")
    return tmp_path / "guarded"


@pytest.fixture
def inbox(tmp_path):
    """Twelve scans, one of which cannot be read."""
    folder = pictures(tmp_path / "inbox", 12)
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing more")
    return folder


@pytest.fixture
def installed(monkeypatch):
    """Whether or not Ray is, for what needs none."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: found(name, *rest) or object())


class Beside:
    """An engine in this process, of blocks of three files; the last ones may never come."""

    def __init__(self, chain, most=None):
        self.worker, self.most, self.asked = partial(Worker, lambda: chain), most, []

    def answers(self, asked, how):
        self.asked = list(asked)
        worker = self.worker(how, "cpu", torch.get_num_threads(), str(Path.cwd()))
        for begin in range(0, len(asked), 3):
            if self.most is not None and begin >= self.most:
                raise MedFedPureError("the workers are gone")
            block = {"asked": [ray_engine.packed(one) for one in asked[begin : begin + 3]]}
            yield [ray_engine.unpacked(text) for text in worker(block)["answer"]]


def same(rows, others):
    assert [row["file"] for row in rows] == [row["file"] for row in others]
    for one, other in zip(rows, others, strict=True):
        for key, value in other.items():
            assert one[key] == (pytest.approx(value, abs=ROUNDING) if isinstance(value, float) else value), (one, key)


def test_another_engine_gives_the_rows_of_this_process(chain, inbox, tmp_path):
    tallies = []
    for name, engine in (("here", None), ("there", Beside(chain))):
        options = {"format": "jsonl", "seed": 7, "batch_size": 4, "engine": engine}
        tallies.append(predict_files(chain, [inbox], tmp_path / f"{name}.jsonl", **options))
    same(rows_of(tmp_path / "there.jsonl"), rows_of(tmp_path / "here.jsonl"))
    assert tallies[0] == tallies[1]
    assert tallies[0].failed == 1


def test_an_engine_that_ends_early_leaves_what_it_answered_and_is_asked_for_the_rest(chain, inbox, tmp_path):
    out = tmp_path / "v.jsonl"
    with pytest.raises(MedFedPureError, match="the workers are gone"):
        predict_files(chain, [inbox], out, format="jsonl", seed=7, engine=Beside(chain, most=6))
    assert len(rows_of(out)) == 6
    engine = Beside(chain)
    tally = predict_files(chain, [inbox], out, format="jsonl", seed=7, engine=engine)
    assert (tally.before, len(engine.asked)) == (6, 6)
    assert [row["file"] for row in rows_of(out)] == [str(inbox / f"{place:02}.png") for place in range(12)]


def test_images_that_have_a_row_are_not_asked_for(chain, tmp_path):
    numpy, nibabel = pytest.importorskip("numpy"), pytest.importorskip("nibabel")
    volume = DATA.pixels[:4, 0].permute(1, 2, 0).numpy().astype(numpy.int16)
    nibabel.save(nibabel.Nifti1Image(volume, numpy.eye(4)), tmp_path / "volume.nii")
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    predict_files(chain, [tmp_path / "volume.nii"], whole, format="jsonl", seed=7)
    cut.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:3]))
    engine = Beside(chain)
    predict_files(chain, [tmp_path / "volume.nii"], cut, format="jsonl", seed=7, engine=engine)
    assert engine.asked == [Asked(tmp_path / "volume.nii", frozenset({0, 1, 2}))]
    same(rows_of(cut), rows_of(whole))


def test_a_missing_package_is_no_row_and_is_said_at_the_end(chain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.nii").write_bytes((348).to_bytes(4, "little") + bytes(340) + b"n+1\0" + bytes(1000))
    Image.fromarray(DATA.pixels[0, 0].numpy()).save(tmp_path / "in" / "b.png")
    with pytest.raises(MissingExtraError, match=r"1 files have no row .*a\.nii.*the same call goes on"):
        predict_files(chain, [tmp_path / "in"], tmp_path / "v.jsonl", format="jsonl", engine=Beside(chain))
    assert [Path(row["file"]).name for row in rows_of(tmp_path / "v.jsonl")] == ["b.png"]


def test_a_name_of_any_bytes_travels(chain, tmp_path):
    path = tmp_path / os.fsdecode(b"scan-\xff.png")
    try:
        Image.fromarray(DATA.pixels[0, 0].numpy()).save(path)
    except OSError:
        pytest.skip("this disk takes no such name")
    (answers,) = Beside(chain).answers([Asked(path)], How(seed=7))
    assert answers[0].rows[0]["file"] == name_of(path)
    assert answers[0].rows[0]["error"] is None


def test_what_is_kept_beside_rows_is_refused(chain, inbox, tmp_path):
    class Idle:
        path = tmp_path / "beside"

        def judged(self, batch, found, rows):
            raise AssertionError("nobody tells it")

    with pytest.raises(ConfigError, match="leave out the engine"):
        predict_files(chain, [inbox], tmp_path / "v.jsonl", engine=Beside(chain), also=[Idle()])
    assert not (tmp_path / "v.jsonl").exists()


def test_without_ray_and_on_devices_that_are_none_it_says_so(monkeypatch, installed):
    refused = (
        ((), "a list such as"),
        (("cpu", "cuda:0"), "of one kind"),
        (("tpu9",), "is named"),
        (("mps",), "on the CPU, or on a GPU each"),
        (("cuda:0", "cuda:0"), "on the CPU, or on a GPU each"),
    )
    for devices, told in refused:
        with pytest.raises(ConfigError, match=told):
            RayEngine(DefendedClassifier, devices)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "pyarrow" else object())
    with pytest.raises(MissingExtraError, match=r"needs pyarrow: pip install 'medfedpure\[ray\]'"):
        RayEngine(DefendedClassifier)


@pytest.mark.parametrize(("before", "during"), [(None, "1,2"), ("4,7,9", "7,9")])
def test_a_cluster_that_starts_here_sees_the_gpus_that_are_named(monkeypatch, before, during):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with ray_engine.only_these(["cuda:1", "cuda:2"]):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == during
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_a_gpu_that_is_not_shown_is_no_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4")
    with pytest.raises(ConfigError, match="cuda:1"), ray_engine.only_these(["cuda:1"]):
        pass


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("dask", None, None), "local or ray; got 'dask'"),
        (("local", "cpu,cpu", None), "are of --engine ray"),
        (("local", None, "10.0.0.1:6379"), "are of --engine ray"),
    ],
)
def test_the_command_refuses_engines_and_options_that_do_not_fit(given, told):
    with pytest.raises(ConfigError, match=told):
        check_engine(*given)


def test_a_worker_of_the_command_loads_the_defence_that_was_named(guarded, installed):
    engine = on_ray(guarded, None, "cpu,cpu", None)
    assert engine.devices == ["cpu", "cpu"]
    assert engine.load().image_facts == DefendedClassifier.load(guarded).image_facts


def test_a_cluster_that_is_not_there_is_told_at_once(chain, inbox, tmp_path):
    for name in ("ray", "pyarrow", "pandas"):
        pytest.importorskip(name)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        engine = RayEngine(lambda: chain, ("cpu",), f"127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(ConfigError, match="no Ray cluster at"):
            predict_files(chain, [inbox], tmp_path / "v.jsonl", engine=engine)


# --- with Ray itself


# Workers cannot import this file: what they are to load is made inside functions, and so travels whole.


def loads(folder: Path):
    return lambda: DefendedClassifier.load(folder)


def dies(folder: Path, mark: Path | None = None):
    """A defence whose worker is killed as it judges: where there is a mark, in its second block, and once."""

    def load():
        chain, seen = DefendedClassifier.load(folder), []
        judged = chain.predict

        def predict(*given, **options):
            seen.append(None)
            if mark is None or (len(seen) > 1 and not mark.exists()):
                Path(mark or folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return judged(*given, **options)

        chain.predict = predict
        return chain

    return load


def fails(folder: Path):
    def load():
        raise ArtifactError(f"{folder.name} is torn")

    return load


@pytest.fixture
def by_ray(chain, inbox, tmp_path):
    for name in ("ray", "pyarrow", "pandas"):
        pytest.importorskip(name)

    def run(load, out="v.jsonl", devices=("cpu", "cpu"), **options):
        predict_files(
            chain,
            [inbox],
            tmp_path / out,
            format="jsonl",
            seed=7,
            batch_size=2,
            engine=RayEngine(load, devices),
            **options,
        )
        return rows_of(tmp_path / out)

    yield run
    import ray

    assert not ray.is_initialized(), "a cluster that was started is ended"


@pytest.fixture
def wanted(chain, inbox, tmp_path):
    predict_files(chain, [inbox], tmp_path / "local.jsonl", format="jsonl", seed=7, batch_size=2)
    return rows_of(tmp_path / "local.jsonl")


@pytest.mark.slow
def test_two_workers_give_the_rows_of_one_process_and_go_on(by_ray, guarded, inbox, tmp_path, wanted):
    rows = by_ray(loads(guarded), workers=1)
    same(rows, wanted)
    lines = (tmp_path / "v.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "v.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:-3])
    same(by_ray(loads(guarded)), wanted)
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


@pytest.mark.slow
def test_a_worker_that_dies_is_started_anew_and_no_row_is_lost_or_comes_twice(by_ray, guarded, tmp_path, wanted):
    rows = by_ray(dies(guarded, tmp_path / "died"))
    assert (tmp_path / "died").exists()
    same(rows, wanted)


@pytest.mark.slow
def test_workers_that_never_live_end_the_call_in_words(by_ray, guarded):
    with pytest.raises(MedFedPureError, match=r"workers of Ray ended .*the same call goes on"):
        by_ray(dies(guarded))


@pytest.mark.slow
def test_what_a_worker_raises_is_told_here(by_ray, guarded):
    with pytest.raises(ArtifactError, match="guarded is torn"):
        by_ray(fails(guarded))


@pytest.mark.slow
def test_on_a_cluster_that_is_there_it_works_and_leaves_it(guarded, chain, inbox, tmp_path, wanted):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        out, engine = tmp_path / "v.jsonl", RayEngine(loads(guarded), ("cpu",))
        predict_files(chain, [inbox], out, format="jsonl", seed=7, engine=engine)
        same(rows_of(out), wanted)
        assert ray.is_initialized()
        with pytest.raises(ConfigError, match="has 1 CPUs, 2 devices are named"):
            predict_files(chain, [inbox], tmp_path / "w.jsonl", engine=RayEngine(loads(guarded), ("cpu",) * 2))
    finally:
        ray.shutdown()
