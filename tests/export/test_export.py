"""Files for other runtimes answer as medfedpure does, say what they are, and are written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from chains import BENIGN, DATA
from exports import SHAPE, TORCH_FITS, predictor, squeezing
from torch import Tensor, nn

import medfedpure
from medfedpure.core.disk.weights import Origin
from medfedpure.core.errors import (
    InputError,
)
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.export.write import Exported, export_model
from medfedpure.testing import tiny_classifier

pytestmark = TORCH_FITS


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
