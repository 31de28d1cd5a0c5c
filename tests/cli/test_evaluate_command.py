"""`medfedpure evaluate` on tiny defences: it finds its images, refuses what does not fit, resumes, and reports."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import write_image_folder
from PIL import Image
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli import main
from medfedpure.cli.app import app
from medfedpure.core.errors import ArtifactError, ConfigError, DataError, InputError
from medfedpure.core.storage import FORMAT
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.defence.own_check import OwnCheck
from medfedpure.evaluation import ladder
from medfedpure.evaluation.evaluate import choose
from medfedpure.evaluation.records import Evaluation
from medfedpure.job.config import RunConfig
from medfedpure.job.division import divide
from medfedpure.job.own_module import own_module
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


# -- defences around a model of one's own ------------------------------------------------------------------------------

OWN = """
import torch
from torch import nn

def build():
    torch.manual_seed(7)  # whatever it begins with, the saved weights take its place
    return nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(64, 2))
"""
NOISY = """
print("imported")

def build_noisy():
    model = build()
    model[0].register_forward_hook(lambda *_: print("seen"))
    torch.set_num_threads(5)
    print("built")
    return model
"""
FACTS = ImageFacts((1, 32, 32), ("plain", "disc"), 255)


@pytest.fixture
def own_module_file(tmp_path, monkeypatch):
    """A module file in the current folder, and nothing of it left behind."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mymodel", raising=False)
    (tmp_path / "mymodel.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("mymodel", None)


def own_defence(folder, facts):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(64, 2))
    median = medfedpure.create("purifier", "median")
    chain = DefendedClassifier(model, purifier=median, policy="purify_all", image_facts=facts)
    chain.own_check = OwnCheck(20, 12, 3, 9, 1, 19, "purify_all", "pgd_eot, norm linf, eps 8/255, and so on")
    chain.save(folder)
    return chain


def test_a_defence_around_ones_own_model_is_evaluated(own_module_file, images, monkeypatch):
    monkeypatch.setitem(ladder.PRESETS, "tiny", TINY)
    chain = own_defence(own_module_file / "mine", FACTS)
    command = ["evaluate", "mine", "--classifier", "mymodel:build", "--data", str(images), "--report", "report"]
    answer = CliRunner().invoke(app, [*command, "--preset", "tiny", "--eps", "8/255"])
    assert answer.exit_code == 0, answer.output
    said = " ".join(answer.output.split())
    assert "mine is for grey images of 32 x 32 pixels, 255 stands for 1.0; classes plain, disc" in said
    assert "when it was fitted: own check on 20 images held out" in said
    found = Evaluation.model_validate_json((own_module_file / "report" / "results.json").read_text())
    assert found.class_names == ["plain", "disc"], "the order is that of the logits, not of the alphabet"
    subject = load_subject(own_module_file / "mine", data=str(images), classifier=own_module("mymodel:build"))
    assert torch.equal(subject.chain.classifier[2].weight, chain.classifier[2].weight), "the saved weights are used"
    assert subject.data.image_shape == (1, 32, 32)


def test_ones_own_model_neither_prints_into_json_nor_chooses_threads(own_module_file, images, monkeypatch, capsys):
    monkeypatch.setitem(ladder.PRESETS, "tiny", TINY)
    own_defence(own_module_file / "mine", FACTS)
    (own_module_file / "mymodel.py").write_text(OWN + NOISY)
    before = torch.get_num_threads()
    words = ["mine", "--classifier", "mymodel:build_noisy", "--data", str(images), "--report", "report"]
    words += ["--preset", "tiny", "--eps", "8/255", "--threads", "1", "--json"]
    monkeypatch.setattr(sys, "argv", ["medfedpure", "evaluate", *words])
    for _ in range(2):  # the second continues, with the threads of the first
        with pytest.raises(SystemExit, match="0"):
            main()
        torch.set_num_threads(before)
        said = capsys.readouterr()
        assert json.loads(said.out)["setting"]["threads"] == 1
        assert "built" in said.err
    assert "imported" not in said.err, "it is imported once"


@pytest.mark.parametrize("top", [100, 1000])
def test_files_that_would_be_darker_than_the_defence_has_seen_are_refused(own_module_file, images, top):
    model = own_module("mymodel:build")
    own_defence(own_module_file / "odd", ImageFacts((1, 32, 32), ("plain", "disc"), top))
    with pytest.raises(DataError, match=f"whose pixel {top} stands for 1.0; .* or pass an ImageDataset of that top"):
        load_subject(own_module_file / "odd", data=str(images), classifier=model)


def test_a_defence_around_ones_own_model_asks_for_it(own_module_file, images):
    own_defence(own_module_file / "mine", FACTS)
    with pytest.raises(ArtifactError, match="on the command line --classifier module:function"):
        load_subject(own_module_file / "mine", data=str(images))
    answer = CliRunner().invoke(
        app, ["evaluate", "mine", "--classifier", "mymodel:biuld", "--data", str(images), "--report", "report"]
    )
    assert isinstance(answer.exception, ConfigError)
    assert "did you mean build?" in str(answer.exception)


def test_an_unknown_order_of_classes_is_asked_for(own_module_file, images):
    """The alphabet would exchange the two classes, and every figure with them."""
    model = own_module("mymodel:build")
    own_defence(own_module_file / "tensor", ImageFacts((1, 32, 32)))
    with pytest.raises(ConfigError, match=r"""know the classes .*--data-config '{"classes": \["disc", "plain"\]}'"""):
        load_subject(own_module_file / "tensor", data=str(images), classifier=model)
    told = {"classes": ["plain", "disc"]}
    found = load_subject(own_module_file / "tensor", data=str(images), options=told, classifier=model)
    assert found.data.class_names == ("plain", "disc")
    own_defence(own_module_file / "nothing", None)
    with pytest.raises(ConfigError, match=r"""classes and image_size of its images.*"image_size": 64}'"""):
        load_subject(own_module_file / "nothing", data=str(images), options={}, classifier=model)
    found = load_subject(
        own_module_file / "nothing", data=str(images), options={**told, "image_size": 32}, classifier=model
    )
    assert found.data.image_shape == (1, 32, 32)


def test_images_that_a_saved_defence_is_not_for_are_refused(own_module_file, images):
    model = own_module("mymodel:build")
    own_defence(own_module_file / "other", ImageFacts((1, 32, 32), ("healthy", "lesion"), 255))
    with pytest.raises(DataError, match=r"holds the classes disc, plain; .* healthy, lesion: rename"):
        load_subject(own_module_file / "other", data=str(images), classifier=model)
    own_defence(own_module_file / "mine", FACTS)
    for options, sentence in (
        ({"image_size": 48}, r"reads images of shape \(1, 32, 32\)"),
        ({"classes": ["disc", "plain"]}, "knows the classes plain, disc"),
        ({"pixel_bits": 16}, "255 stands for 1.0; .* it is 65535: read them with as many bits"),
    ):
        with pytest.raises(DataError, match=sentence):
            load_subject(own_module_file / "mine", data=str(images), options=options, classifier=model)


@pytest.mark.parametrize("top", [4095, 65535])
def test_a_deep_defence_reads_files_as_deep(own_module_file, top):
    """Files of 12 bits become 16, scaled as the defence has seen them."""
    model = own_module("mymodel:build")
    own_defence(own_module_file / "deep", ImageFacts((1, 32, 32), ("plain", "disc"), top))
    generator = torch.Generator().manual_seed(0)
    for name in ("plain", "disc"):
        (own_module_file / "images" / name).mkdir(parents=True)
        for place in range(3):
            pixels = torch.randint(0, top + 1, (32, 32), generator=generator)
            pixels[0, 0] = top
            Image.fromarray(pixels.numpy().astype("uint16")).save(own_module_file / "images" / name / f"{place}.png")
    found = load_subject(own_module_file / "deep", data=str(own_module_file / "images"), classifier=model)
    assert found.data.top == 65535
    assert float(found.data.images.amax()) == 1


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
