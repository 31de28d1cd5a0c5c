"""`medfedpure evaluate` on a defence around a model of one's own: built by name, asked for, and given its images."""

import json
import sys

import pytest
import torch
from conftest import write_image_folder
from PIL import Image
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli import main
from medfedpure.cli.app import app
from medfedpure.core.errors import ArtifactError, ConfigError, DataError
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.defence.own_check import OwnCheck
from medfedpure.evaluation import ladder
from medfedpure.evaluation.records import Evaluation
from medfedpure.job.own_module import own_module
from medfedpure.job.subject import load_subject

TINY = ladder.Preset("tiny", 6, 2, 2, 1, 2, 4, 4, "a tiny look for tests")
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


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"))


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
