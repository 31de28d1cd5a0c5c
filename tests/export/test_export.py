"""Files for other runtimes answer as medfedpure does, say what they are, and are written whole or not at all."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from chains import BENIGN, DATA, diffusing
from torch import Tensor, nn
from typer.testing import CliRunner

import medfedpure
from medfedpure.cli.app import app
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.disk.weights import Origin
from medfedpure.core.errors import (
    ArtifactError,
    ConfigError,
    InputError,
    MissingExtraError,
    MissingRequirementError,
    NotCalibratedError,
    NotFittedError,
)
from medfedpure.core.registry import create
from medfedpure.core.streams import Streams
from medfedpure.defence.acceleration import Acceleration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.export.trace import LEAST_TORCH, check_torch
from medfedpure.export.write import Exported, export_model, format_of
from medfedpure.testing import tiny_classifier

pytestmark = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < LEAST_TORCH, reason="export refuses this PyTorch"
)
SHAPE = DATA.image_shape


def onnx_answers(path: Path, *inputs: Tensor) -> list[Tensor]:
    """What onnxruntime says, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {port.name: value.numpy() for port, value in zip(session.get_inputs(), inputs, strict=True)}
    return [torch.from_numpy(found) for found in session.run(None, given)]


def facts_in(path: Path) -> dict[str, Any]:
    """What an ONNX file says of itself."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["medfedpure"])
    return found


def noise(count: int, shape: Sequence[int] = SHAPE, seed: int = 1) -> Tensor:
    """Images `(N, C, H, W)` that no check of the exporter has seen."""
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(seed))


def predictor(widths: tuple[int, ...] = (8,), shape: tuple[int, int, int] = SHAPE) -> Any:
    """A diffusion purifier around an untrained network."""
    purifier = create("purifier", "ddpm", model={"widths": widths})
    return purifier.adopt(purifier.make_network(shape, seed=0), shape)


def squeezing(policy: Any = "abstain", target_fpr: float | None = 0.1, **options: Any) -> DefendedClassifier:
    """What the recipe "fast" makes, around a small classifier."""
    detector = create("detector", "feature_squeezing", {"bits": (), **options})
    chain = DefendedClassifier(tiny_classifier(), detector=detector, policy=policy)
    return chain if target_fpr is None else chain.calibrate(BENIGN, target_fpr)


# -- what a file answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config", "size"),
    [
        ("small_cnn", {}, 32),
        pytest.param("resnet18", {}, 32, marks=pytest.mark.slow),
        pytest.param("resnet18", {"input_size": 24, "imagenet_input": True}, 32, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", {}, 64, marks=pytest.mark.slow),
        pytest.param("mixed", {"robust_config": {"widths": (8, 16)}, "plain_config": {"widths": (8, 16)}}, 32),
    ],
    ids=["small_cnn", "resnet18", "resnet18, shrinking", "efficientnet_lite0, enlarging", "mixed"],
)
def test_a_classifier_answers_alike_in_onnxruntime(name: str, config: Any, size: int, tmp_path: Path) -> None:
    model = create("classifier", name, config).create_model(
        in_channels=1, num_classes=3, image_size=size, class_names=("a", "b", "c"), weights=None
    )
    export_model(model, tmp_path / "model.onnx")
    for count in (1, 5):
        images = noise(count, (1, size, size))
        (logits,) = onnx_answers(tmp_path / "model.onnx", images)
        with torch.no_grad():
            assert torch.allclose(logits, model(images), atol=2e-5), f"{name} answers otherwise to {count} images"


@pytest.mark.parametrize("widths", [(8,), pytest.param((8, 16), marks=pytest.mark.slow)], ids=["flat", "two levels"])
def test_the_noise_predictor_answers_alike_in_onnxruntime(widths: tuple[int, ...], tmp_path: Path) -> None:
    shape = (1, 13, 15)  # sides that the network must fill up to whole blocks
    purifier = predictor(widths, shape)
    found = export_model(purifier, tmp_path / "noise.onnx", image_shape=shape)
    for count in (1, 5):
        noisy, timestep = noise(count, shape) * 1.5 - 0.25, torch.linspace(0.5, 149.5, count)
        (predicted,) = onnx_answers(tmp_path / "noise.onnx", noisy, timestep)
        with torch.no_grad():
            assert torch.allclose(predicted, purifier.predict_noise(noisy, timestep), atol=2e-5), f"{count} images"
    assert found.facts["purifier"]["config"]["schedule"]["timesteps"] == 1000, "who denoises needs the schedule"
    assert found.facts["deepest_timestep"] == 150


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> tuple[DefendedClassifier, Path, Exported]:
    """A defence by the recipe "fast" on phantoms, the file it was exported to, and what was said of it."""
    data = create("dataset", "phantom", images=160, image_size=32).read()
    parts = data.split({"benign": 0.6, "test": 0.4}, seed=0)
    model = tiny_classifier(32)
    chain = medfedpure.defend(
        model, parts["benign"].images, recipe="fast", target_fpr=0.1, check_share=0, class_names=("none", "lesion")
    )
    path = tmp_path_factory.mktemp("fast") / "defended.onnx"
    return chain, path, medfedpure.export_model(chain, path)


def test_a_fast_defence_answers_alike_in_onnxruntime(fast: tuple[DefendedClassifier, Path, Exported]) -> None:
    chain, path, _ = fast
    phantoms = create("dataset", "phantom", images=60, image_size=32, seed=5).read().images
    images = torch.cat((phantoms, noise(4, phantoms.shape[1:])))
    wanted = chain.predict(images, seed=0)
    assert 0 < int(wanted.flagged.sum()) < len(images), "flags of both kinds are compared"
    for count in (1, 5, len(images)):
        logits, score, flagged = onnx_answers(path, images[-count:])
        assert torch.allclose(logits, wanted.logits[-count:], atol=2e-5)
        assert wanted.scores is not None
        assert torch.allclose(score, wanted.scores[-count:], atol=1e-5)
        assert torch.equal(flagged, wanted.flagged[-count:])
        assert torch.equal(flagged, wanted.abstained[-count:]), "under 'abstain' a flagged image is refused"


def test_what_breaks_the_detector_is_not_let_pass(fast: tuple[DefendedClassifier, Path, Exported]) -> None:
    _, path, _ = fast
    images = torch.full((2, 1, 32, 32), 0.25)
    images[1, 0, 3, 3] = torch.nan
    _, score, flagged = onnx_answers(path, images)
    assert score.isnan().tolist() == [False, True]
    assert flagged.tolist()[1], "a score that is no number counts as the highest"


COMPOSED = {"parts": [{"plugin": "mahalanobis"}, {"plugin": "feature_squeezing"}]}


@pytest.mark.parametrize(
    ("name", "config"),
    [("mahalanobis", {}), pytest.param("compose", COMPOSED, marks=pytest.mark.slow)],
    ids=["mahalanobis", "compose"],
)
def test_other_detectors_without_draws(name: str, config: Any, tmp_path: Path) -> None:
    detector = create("detector", name, config)
    chain = DefendedClassifier(tiny_classifier(), detector=detector, policy="none")
    detector.fit(BENIGN, context=chain.context())
    found = export_model(chain.calibrate(BENIGN, 0.1), tmp_path / "other.onnx")
    wanted = chain.predict(DATA.images, seed=0)
    logits, score, flagged = onnx_answers(tmp_path / "other.onnx", DATA.images)
    assert wanted.scores is not None
    assert torch.allclose(logits, wanted.logits, atol=2e-5)
    assert torch.allclose(score, wanted.scores, rtol=1e-5, atol=1e-5)
    assert torch.equal(flagged, wanted.flagged)
    assert "keeps its verdict" in found.facts["outputs"]["flagged"]


class Medians(nn.Module):
    """A classifier of one's own that asks for medians of an even number of values."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)[:, :6]
        return torch.cat((rows.median(1, keepdim=True).values, rows.median(1).indices[:, None].to(rows)), 1)


def test_a_module_of_ones_own_and_medians_of_even_numbers(tmp_path: Path) -> None:
    chain = DefendedClassifier(Medians(), policy="none")
    with pytest.raises(InputError, match=r"does not know the size of its images: pass image_shape=\(C, H, W\)"):
        export_model(chain, tmp_path / "own.onnx")
    export_model(chain, tmp_path / "own.onnx", image_shape=(1, 4, 4))
    images = noise(7, (1, 4, 4))
    (logits,) = onnx_answers(tmp_path / "own.onnx", images)
    assert torch.equal(logits, Medians()(images))


def test_without_a_threshold_there_are_scores_and_no_flags(tmp_path: Path) -> None:
    found = export_model(squeezing("none", target_fpr=None), tmp_path / "scores.pt2")
    assert list(found.facts["outputs"]) == ["logits", "score"]
    assert found.facts["calibration"] is None
    answers = torch.export.load(tmp_path / "scores.pt2").module()(noise(2))
    assert [len(one) for one in answers] == [2, 2]


def test_a_file_of_torch_export(tmp_path: Path) -> None:
    chain = squeezing()
    found = export_model(chain, tmp_path / "defended.pt2")
    extra = {"medfedpure.json": ""}
    program = torch.export.load(tmp_path / "defended.pt2", extra_files=extra)
    assert json.loads(extra["medfedpure.json"]) == found.facts
    for count in (1, 5):
        wanted = chain.predict(DATA.images[:count], seed=0)
        logits, score, flagged = program.module()(DATA.images[:count])
        assert torch.equal(logits, wanted.logits)
        assert wanted.scores is not None
        assert torch.equal(score, wanted.scores)
        assert torch.equal(flagged, wanted.flagged)


def test_a_model_that_trains_goes_on_training(tmp_path: Path) -> None:
    model = tiny_classifier().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    export_model(model, tmp_path / "model.pt2")
    assert all(part.training for part in model.modules()), "it is put in eval mode, and not put back"
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# -- what a file says --------------------------------------------------------------------------------------------


def test_a_defence_says_what_it_is(fast: tuple[DefendedClassifier, Path, Exported]) -> None:
    chain, path, found = fast
    told = facts_in(path)
    assert told == found.facts
    assert chain.calibration is not None
    assert told["calibration"]["threshold"] == chain.calibration.threshold()
    assert told["calibration"]["target_fpr"] == 0.1
    assert told["class_names"] == ["none", "lesion"]
    assert told["image_shape"] == [1, 32, 32]
    assert told["pixel_range"] == [0.0, 1.0]
    assert told["medfedpure"] == medfedpure.__version__
    assert told["policy"] == "abstain"
    assert told["detector"]["config"] == {"bits": [], "windows": [3]}
    assert "refused" in told["outputs"]["flagged"]
    assert told["weights"] is None
    assert told["largest_batch"] is None
    assert "not a medical device" in told["notice"]
    assert "not a medical device" in onnx.load(path).doc_string


def test_a_restriction_of_the_weights_travels(tmp_path: Path) -> None:
    model = tiny_classifier()
    model.origin = Origin(
        source="the file other.pth", licence="theirs", restriction="research only", sha256="ab" * 32, loaded=3, wanted=4
    )
    found = export_model(DefendedClassifier(model, policy="none"), tmp_path / "model.onnx")
    assert facts_in(tmp_path / "model.onnx")["weights"] == model.origin.model_dump(mode="json")
    assert onnx.load(tmp_path / "model.onnx").doc_string.count("RESTRICTED: research only") == 1
    assert "RESTRICTED: research only" in found.describe()


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_no_path_of_this_machine_is_in_a_file(name: str, tmp_path: Path) -> None:
    export_model(tiny_classifier(), tmp_path / name)
    content = (tmp_path / name).read_bytes()
    homes = {Path(medfedpure.__file__).parents[1], Path(torch.__file__).parents[1], Path(__file__).parent, tmp_path}
    assert not [home for home in homes if str(home).encode() in content]


@pytest.mark.slow
def test_how_many_images_go_in_at_once_is_said(tmp_path: Path) -> None:
    shape = (1, 8, 8)
    found = export_model(predictor((8, 8), shape), tmp_path / "noise.pt2", image_shape=shape)
    most, program = found.facts["largest_batch"], torch.export.load(tmp_path / "noise.pt2").module()
    assert most is not None, "diffusers' layers branch on the number of images"
    assert len(program(noise(most, shape), torch.ones(most))[0]) == most
    with pytest.raises(Exception, match=str(most)):
        program(noise(most + 1, shape), torch.ones(most + 1))


# -- what cannot be exported -------------------------------------------------------------------------------------


class Deterministic(Detector):
    """Says that it draws nothing."""

    deterministic = True

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return images.flatten(1).mean(1)


class OutsideTorch(Deterministic):
    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        return torch.from_numpy(images.numpy().mean((1, 2, 3)))


class ReadsAnotherLibrary(Deterministic):
    per_image_streams = False


class Branches(nn.Module):
    """Answers bright images in another way."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)[:, :2]
        return rows if float(images.mean()) < 0.5 else 1 - rows


def purifying(policy: Any) -> DefendedClassifier:
    chain = diffusing()
    chain.policy = policy
    return chain


def composed() -> DefendedClassifier:
    chain = diffusing()
    detector = create(
        "detector", "compose", parts=[{"plugin": "feature_squeezing"}, {"plugin": "denoising_disagreement"}]
    )
    return DefendedClassifier(chain.classifier, detector=detector, purifier=chain.purifier, policy="none")


def around(classifier: nn.Module, detector: Detector | None) -> DefendedClassifier:
    return DefendedClassifier(classifier, detector=detector, policy="none", image_facts=squeezing().image_facts)


REFUSED = {
    "purifies what is flagged": (
        lambda: purifying("purify_flagged"),
        "policy 'purify_flagged' .* its purifier 'ddpm' cleans the images that are flagged.* keyed by the images' ids",
    ),
    "purifies everything": (
        lambda: DefendedClassifier(tiny_classifier(), purifier=create("purifier", "median"), policy="purify_all"),
        "policy 'purify_all' .* its purifier 'median' cleans every image, as strongly as",
    ),
    "draws": (
        lambda: purifying("none"),
        "detector 'denoising_disagreement' cannot be exported: it draws noise from streams that are keyed",
    ),
    "a part draws": (composed, "detector 'compose' cannot be exported: its part 'denoising_disagreement' draws noise"),
    "another library": (
        lambda: around(tiny_classifier(), ReadsAnotherLibrary()),
        "detector 'ReadsAnotherLibrary' cannot be exported: it reads another library",
    ),
    "outside torch": (
        lambda: around(tiny_classifier(), OutsideTorch()),
        "detector 'OutsideTorch' cannot be exported, as torch.export cannot follow it",
    ),
    "a branch": (
        lambda: around(Branches(), Deterministic()),
        "the classifier cannot be exported, as torch.export cannot follow it: .*depends on the images' values",
    ),
    "another arithmetic": (
        lambda: squeezing().accelerate(Acceleration(autocast=True)),
        "its threshold are of another arithmetic than the file's",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_says_why_and_what_to_do(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make, said = REFUSED[case]
    with pytest.raises(ConfigError, match=said) as error:
        export_model(make(), tmp_path / "file.pt2")
    assert any(word in str(error.value) for word in ("Export ", "Say in torch operations")), "and what to do?"
    assert not list(tmp_path.iterdir()), "nothing is written"
    assert capfd.readouterr().err == "", "torch's notes to its developers are no help"


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: squeezing(target_fpr=None), NotCalibratedError, "needs a threshold"),
        (
            lambda: DefendedClassifier(tiny_classifier(), detector=create("detector", "mahalanobis"), policy="none"),
            NotFittedError,
            "'mahalanobis' is not fitted",
        ),
        (lambda: create("purifier", "median"), InputError, "'median' has no noise predictor"),
        (lambda: nn.Flatten(), InputError, r"got Flatten: wrap a module of your own, DefendedClassifier\("),
        (lambda: diffusing().purifier, InputError, "'ddpm' does not know the size of its images"),
    ],
    ids=["not calibrated", "not fitted", "a filter", "a bare module", "no size"],
)
def test_what_is_not_ready_is_refused(make: Any, error: type[Exception], said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        export_model(make(), tmp_path / "file.onnx")
    assert not list(tmp_path.iterdir())


def test_a_shape_that_contradicts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is for images of shape \(1, 32, 32\), and image_shape=\(3, 32, 32\)"):
        export_model(tiny_classifier(), tmp_path / "file.onnx", image_shape=(3, 32, 32))


def test_an_operation_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    class Bessel(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.special.bessel_j1(images.flatten(1)[:, :2])

    with pytest.raises(ConfigError, match=r"cannot be written as ONNX.*bessel_j1.*write format='torch'"):
        export_model(DefendedClassifier(Bessel(), policy="none"), tmp_path / "own.onnx", image_shape=(1, 4, 4))
    export_model(DefendedClassifier(Bessel(), policy="none"), tmp_path / "own.pt2", image_shape=(1, 4, 4))


class OtherwiseInAFile(nn.Module):
    """Stands for whatever a file would answer otherwise."""

    def forward(self, images: Tensor) -> Tensor:
        rows = images.flatten(1)[:, :2]
        return rows + 0.01 if torch.compiler.is_exporting() else rows


@pytest.mark.parametrize("name", ["own.onnx", "own.pt2"])
def test_a_file_that_answers_otherwise_is_not_kept(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"of before")
    with pytest.raises(ArtifactError, match=r"`logits` differs by 0\.01 from torch.*nothing was written"):
        export_model(DefendedClassifier(OtherwiseInAFile(), policy="none"), tmp_path / name, image_shape=(1, 4, 4))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"of before")]


def test_the_format_follows_from_the_name() -> None:
    assert format_of(Path("a.ONNX"), None) == "onnx"
    assert format_of(Path("a.pt2"), None) == "torch"
    assert format_of(Path("a.bin"), "torch") == "torch"
    with pytest.raises(ConfigError, match="ends neither in"):
        format_of(Path("a.bin"), None)
    with pytest.raises(ConfigError, match="'torch' was asked for"):
        format_of(Path("a.onnx"), "torch")
    with pytest.raises(ConfigError, match="no format is named 'tflite'; the formats are onnx, torch"):
        format_of(Path("a.onnx"), "tflite")  # type: ignore[arg-type]


def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'medfedpure\[export\]', or write format='torch'"):
        export_model(tiny_classifier(), tmp_path / "model.onnx")
    export_model(tiny_classifier(), tmp_path / "model.pt2")


def test_an_older_torch_is_refused() -> None:
    check_torch("2.14.1+cpu")
    check_torch("3.0.0a0")
    with pytest.raises(MissingRequirementError, match=r"PyTorch 2\.14 or newer, and 2\.5\.1 is here"):
        check_torch("2.5.1")


# -- the command -------------------------------------------------------------------------------------------------


def command(*words: Any) -> Any:
    """`medfedpure export` in this process."""
    return CliRunner().invoke(app, ["export", *map(str, words)])


def test_the_command_exports_a_defence_and_its_classifier(tmp_path: Path) -> None:
    chain = squeezing()
    chain.save(tmp_path / "guarded")
    answer = command(tmp_path / "guarded", "--out", tmp_path / "new" / "guarded.pt2", "--format", "torch", "--json")
    assert answer.exit_code == 0, answer.output
    assert json.loads(answer.output)["policy"] == "abstain"
    answer = command(tmp_path / "guarded", "--part", "classifier", "--out", tmp_path / "bare.pt2")
    assert answer.exit_code == 0, answer.output
    assert "images to logits; checked in torch" in answer.output
    assert "not a medical device" in answer.output
    (logits,) = torch.export.load(tmp_path / "bare.pt2").module()(DATA.images)
    assert torch.equal(logits, chain.predict(DATA.images, seed=0).logits)


def test_the_command_exports_the_noise_predictor_of_a_defence(tmp_path: Path) -> None:
    facts = ImageFacts(SHAPE, ("plain", "disc"))
    chain = DefendedClassifier(tiny_classifier(), purifier=predictor(), policy="purify_all", image_facts=facts)
    chain.save(tmp_path / "guarded")
    refused = command(tmp_path / "guarded", "--out", tmp_path / "all.pt2")
    assert isinstance(refused.exception, ConfigError)
    assert "--part classifier" in str(refused.exception)
    answer = command(tmp_path / "guarded", "--part", "purifier", "--out", tmp_path / "noise.pt2")
    assert answer.exit_code == 0, answer.output
    assert "noisy, timestep to noise" in answer.output


def test_the_command_says_what_it_takes(tmp_path: Path) -> None:
    chain = replace_classifier(squeezing())
    chain.save(tmp_path / "own")
    tiny_classifier().save(tmp_path / "model")
    create("purifier", "median").save(tmp_path / "median")
    for words, said in (
        ((tmp_path / "median",), "holds a purifier; a saved classifier or a saved defence is exported"),
        ((tmp_path / "model", "--part", "purifier"), "is a classifier, and its purifier was asked for"),
        ((tmp_path / "model", "--part", "head"), "no part is named 'head'"),
        ((tmp_path / "own",), "--classifier module:function"),
    ):
        answer = command(*words, "--out", tmp_path / "file.pt2")
        assert said in str(answer.exception), answer.output
    assert not (tmp_path / "file.pt2").exists()


def replace_classifier(chain: DefendedClassifier) -> DefendedClassifier:
    """The same defence around a module of one's own."""
    own = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))
    return DefendedClassifier(own, detector=chain.detector, policy="none", image_facts=chain.image_facts)


def test_the_command_exports_a_defence_around_a_module_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = replace_classifier(squeezing())
    chain.save(tmp_path / "own")
    (tmp_path / "exported_module.py").write_text(
        "from torch import nn\n\n\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    for part in ("defence", "classifier"):
        words = ("own", "--classifier", "exported_module:build", "--part", part)
        answer = command(*words, "--out", "file.pt2")
        assert answer.exit_code == 0, answer.exception
        logits = torch.export.load("file.pt2").module()(DATA.images)[0]
        assert torch.equal(logits, chain.predict(DATA.images, seed=0).logits)
