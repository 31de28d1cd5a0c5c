"""`medfedpure evaluate` on tiny defences: it finds its images, refuses what does not fit, resumes, and reports."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import write_image_folder
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli.app import app
from medfedpure.core.errors import ConfigError, DataError, InputError
from medfedpure.core.storage import FORMAT
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation import ladder
from medfedpure.evaluation.evaluate import choose
from medfedpure.evaluation.records import Evaluation
from medfedpure.job.config import RunConfig
from medfedpure.job.division import divide
from medfedpure.job.subject import load_subject
from medfedpure.reporting.evaluation.files import write_report
from medfedpure.testing import tiny_classifier, tiny_dataset

TINY = ladder.Preset("tiny", 6, 2, 2, 1, 2, 4, 4, "a tiny look for tests")
RUN = {
    "data": {"plugin": "phantom", "config": {"images": 200, "image_size": 32}, "clients": 2},
    "classifier": {"plugin": "small_cnn"},
    "detector": {"plugin": "denoising_disagreement"},
    "purifier": {"plugin": "ddpm"},
}


@pytest.fixture(scope="module")
def defence(tmp_path_factory):
    """A saved defence: every image through a median filter."""
    median = medfedpure.create("purifier", "median")
    folder = tmp_path_factory.mktemp("saved") / "mine"
    DefendedClassifier(tiny_classifier(), purifier=median, policy="purify_all").save(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run leaves: its configuration, its splits, one defence for each of two clients."""
    out = tmp_path_factory.mktemp("run")
    config = RunConfig.parse(RUN)
    (out / "config.toml").write_text(config.to_toml())
    parts = divide(config)
    splits = {client: {"test": own["test"].fingerprint()} for client, own in parts.items()}
    (out / "results.json").write_text(json.dumps({"format": FORMAT, "splits": splits}))
    names = parts["client_0"]["test"].class_names
    for seed, client in enumerate(parts):
        architecture = medfedpure.create("classifier", "small_cnn", widths=(8, 16))
        model = architecture.create_model(in_channels=1, num_classes=2, image_size=32, class_names=names, seed=seed)
        DefendedClassifier(model, policy="none").save(out / "defences" / client)
    return out


def test_command_reports_and_repeats_itself(defence, images, tmp_path, monkeypatch):
    monkeypatch.setitem(ladder.PRESETS, "tiny", TINY)
    out = tmp_path / "report"
    command = ["evaluate", str(defence), "--data", str(images), "--report", str(out), "--preset", "tiny"]
    command += ["--eps", "8/255", "--attacker", str(defence)]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    said = " ".join(first.output.split())
    for wanted in ("gradient evaluations", "transfer attacks are crafted on", "majority class", "EoT", "a tiny look"):
        assert wanted in said, f"{wanted!r} was not printed:\n{first.output}"
    for name in ("report.html", "results.json", "results.csv", "summary.csv", "summary.md"):
        assert (out / name).is_file(), f"{name} was not written"
    text = (out / "report.html").read_text(encoding="utf-8")
    assert text.count("data:image/png;base64,") >= 6
    assert "http" not in text
    assert Evaluation.model_validate_json((out / "results.json").read_text()).eps == [pytest.approx(8 / 255)]

    def figures():
        found = json.loads((out / "results.json").read_text())
        return [[rung["reading"] and rung["reading"]["verdicts"] for rung in arm["rungs"]] for arm in found["arms"]]

    before = figures()
    again = CliRunner().invoke(app, [*command, "--quiet", "--json"])
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["note"] == "a tiny look for tests"
    assert figures() == before


def test_interrupting_says_how_to_continue(defence, images, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("medfedpure.evaluation.evaluate.evaluate", stopped)
    command = ["evaluate", str(defence), "--data", str(images), "--report", str(tmp_path / "report")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 130
    assert "the same command continues" in " ".join(result.output.split())


@pytest.mark.parametrize(("options", "cascade"), [([], True), (["--each-attack-alone"], False)])
def test_every_image_meets_every_attack_where_asked(defence, images, tmp_path, monkeypatch, options, cascade):
    asked = []

    def stopped(*arguments, **given):
        asked.append(given["cascade"])
        raise KeyboardInterrupt

    monkeypatch.setattr("medfedpure.evaluation.evaluate.evaluate", stopped)
    command = ["evaluate", str(defence), "--data", str(images), "--report", str(tmp_path / "report"), *options]
    CliRunner().invoke(app, command)
    assert asked == [cascade]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], (None, None, None, 64)),
        (["--processes", "2"], (None, 2, None, 64)),
        (["--processes", "3", "--threads", "1", "--batch-size", "8"], (None, 3, 1, 8)),
        (["--devices", "cpu, cpu"], (["cpu", "cpu"], None, None, 64)),
        (["--processes", "1", "--threads", "1"], (None, 1, None, 64)),
    ],
)
def test_several_processes_are_asked_for(defence, images, tmp_path, monkeypatch, options, wanted):
    asked, before = [], torch.get_num_threads()

    def stopped(*arguments, **given):
        asked.append(tuple(given[name] for name in ("devices", "processes", "threads", "batch_size")))
        raise KeyboardInterrupt

    monkeypatch.setattr("medfedpure.evaluation.evaluate.evaluate", stopped)
    command = ["evaluate", str(defence), "--data", str(images), "--report", str(tmp_path / "report"), *options]
    CliRunner().invoke(app, command)
    torch.set_num_threads(before)
    assert asked == [wanted]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--devices", "cuda:0", "--device", "cuda:0"], "leave out --device"),
        (["--devices", "cpu,cpu", "--processes", "2"], "leave out --device and --processes"),
        (["--processes", "2", "--device", "mps"], "leave one of them out"),
        (["--devices", "cpu,gpu"], "the device 'gpu' cannot be used"),
    ],
)
def test_two_words_for_where_to_work_are_refused(defence, images, tmp_path, options, text):
    command = ["evaluate", str(defence), "--data", str(images), "--report", str(tmp_path / "report"), *options]
    answer = CliRunner().invoke(app, command)
    assert isinstance(answer.exception, ConfigError)
    assert text in str(answer.exception)


def test_a_run_brings_its_own_test_images_and_attackers(run_folder):
    subject = load_subject(run_folder, client="client_1")
    assert subject.data.fingerprint() == divide(RunConfig.parse(RUN))["client_1"]["test"].fingerprint()
    assert list(subject.attackers) == ["client_0"]
    assert {name: len(test) for name, (_, test) in subject.federation.items()} == {
        name: len(own["test"]) for name, own in divide(RunConfig.parse(RUN)).items()
    }
    assert subject.federation["client_1"][0] is subject.chain
    assert load_subject(run_folder).name == "client_0"
    with pytest.raises(ConfigError, match="client_0, client_1"):
        load_subject(run_folder, client="client_7")


def test_attackers_of_one_name_are_all_kept_or_refused(run_folder, tmp_path):
    others = []
    for parent in ("one", "two"):
        shutil.copytree(run_folder / "defences" / "client_1", tmp_path / parent / "client_1")
        others.append(tmp_path / parent / "client_1")
    found = load_subject(run_folder, client="client_0", attackers=others)
    assert list(found.attackers) == ["client_1", "one/client_1", "two/client_1"]
    with pytest.raises(ConfigError, match="two attackers would be named one/client_1"):
        load_subject(run_folder, client="client_0", attackers=[others[0], others[0]])


def test_a_run_is_not_overwritten_by_its_report(run_folder, monkeypatch):
    monkeypatch.setitem(ladder.PRESETS, "quick", TINY)
    before = (run_folder / "results.json").read_text()
    answer = CliRunner().invoke(app, ["evaluate", str(run_folder), "--report", str(run_folder)])
    assert answer.exit_code != 0
    assert "another run's results" in answer.output + str(answer.exception)
    assert (run_folder / "results.json").read_text() == before


def test_a_run_is_reported_with_all_pairs_of_its_clients(run_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(ladder.PRESETS, "tiny", TINY)
    command = ["evaluate", str(run_folder), "--report", str(tmp_path), "--preset", "tiny", "--eps", "0.05", "--quiet"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "transfers.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 + 4
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The federation's insiders" in text


def test_images_that_changed_since_the_run_are_refused(run_folder, tmp_path):
    moved = tmp_path / "run"
    moved.mkdir()
    (moved / "defences").symlink_to(run_folder / "defences")
    changed = RunConfig.parse({**RUN, "seed": 3})
    (moved / "config.toml").write_text(changed.to_toml())
    (moved / "results.json").write_text((run_folder / "results.json").read_text())
    with pytest.raises(DataError, match="no longer those of the run"):
        load_subject(moved)


def test_data_set_plugins_are_asked_for_the_right_size(run_folder):
    subject = load_subject(run_folder / "defences" / "client_0", data="phantom", options={"images": 24, "seed": 9})
    assert subject.data.image_shape == (1, 32, 32)


def test_classes_that_differ_are_refused(defence, images, run_folder, tmp_path):
    with pytest.raises(DataError, match="disc, plain"):
        load_subject(run_folder / "defences" / "client_0", data=str(images))
    (tmp_path / "plain").mkdir()
    with pytest.raises(DataError, match="trained for plain, disc"):
        load_subject(defence, data=str(tmp_path))


def test_other_refusals(defence, images, run_folder):
    with pytest.raises(ConfigError, match="images are wanted"):
        load_subject(defence)
    with pytest.raises(ConfigError, match="--client goes with"):
        load_subject(defence, client="client_0")
    with pytest.raises(DataError, match="no data set plugin"):
        load_subject(defence, data="nonsense")
    with pytest.raises(DataError, match="knows the classes"):
        load_subject(defence, data=str(images), attackers=[run_folder / "defences" / "client_0"])


def test_numbers_that_are_none_are_refused(defence, tmp_path):
    for option in (["--eps", "much"], ["--data-config", "[1]"]):
        result = CliRunner().invoke(app, ["evaluate", str(defence), "--report", str(tmp_path), *option])
        assert result.exit_code == 2


def test_an_image_folder_is_read_in_the_order_of_the_classifier(defence, images):
    subject = load_subject(defence, data=str(images))
    assert subject.data.class_names == ("plain", "disc")
    assert torch.equal(subject.data.labels.bincount(), tiny_dataset(12).labels.bincount())


def test_evaluate_is_public_and_lazy():
    code = "import sys, medfedpure; assert 'evaluate' in dir(medfedpure); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert medfedpure.evaluate.__module__ == "medfedpure.evaluation.evaluate"


def test_pictures_of_other_images_are_refused(tmp_path):
    """Classes in turn: another choice of images has equal labels."""
    data, bare = tiny_dataset(60, seed=4), DefendedClassifier(tiny_classifier(), policy="none")
    found = medfedpure.evaluate({"it": bare}, data, preset=TINY, eps=(0.05,), out=tmp_path, seed=1)
    other = choose(data, TINY.images, seed=0)
    assert other.labels.tolist() == found.labels
    with pytest.raises(InputError, match="not the 6 evaluated ones"):
        write_report(found, tmp_path, benign=other)
    write_report(found, tmp_path, benign=choose(data, TINY.images, seed=1))


def test_a_classifier_beside_a_run_is_refused(run_folder):
    with pytest.raises(ConfigError, match="--classifier goes with a defence of your own"):
        load_subject(run_folder, classifier=tiny_classifier())


def test_a_classifier_that_numbers_its_classes_is_named_by_its_defence(images, tmp_path):
    """`create_model` without class names calls them 0 and 1; what it was calibrated on knows better."""
    architecture = medfedpure.create("classifier", "small_cnn", widths=(8, 16))
    model = architecture.create_model(in_channels=1, num_classes=2, image_size=32)
    detector = medfedpure.create("detector", "feature_squeezing")
    DefendedClassifier(model, detector=detector, policy="abstain").calibrate(tiny_dataset(30), 0.2).save(
        tmp_path / "it"
    )
    assert load_subject(tmp_path / "it", data=str(images)).data.class_names == ("plain", "disc")
