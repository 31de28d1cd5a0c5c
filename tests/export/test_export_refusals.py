"""What cannot be exported, or would answer otherwise, is refused, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from chains import diffusing
from exports import TORCH_FITS, squeezing
from torch import Tensor, nn

from medfedpure.core.detector import Detector, ScoreContext
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
from medfedpure.export.trace import check_torch
from medfedpure.export.write import export_model, format_of
from medfedpure.testing import tiny_classifier

pytestmark = TORCH_FITS


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
