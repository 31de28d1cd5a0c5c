"""Accelerated chains say the same within rounding, and leave types as they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from chains import assert_same
from torch import Tensor, nn

import medfedpure
from medfedpure import Acceleration, DefendedClassifier
from medfedpure.acceleration import compiled
from medfedpure.acceleration.compiled import CompilationWarning
from medfedpure.core.errors import ConfigError
from medfedpure.defence.views import exact_view
from medfedpure.evaluation.readings import hear
from medfedpure.figures.intervals import realised_fpr_interval
from medfedpure.figures.metrics import auroc
from medfedpure.testing import tiny_classifier, tiny_dataset

DATA = tiny_dataset(40, size=16)
SMALL = {"widths": (8, 16)}
SIZES = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128}


def chain(asked: Any = "off", *, policy: Any = "purify_all", **sampling: Any) -> DefendedClassifier:
    options = {"num_inference_steps": 2, **sampling}
    purifier = medfedpure.create("purifier", "ddpm", model=SMALL, t_min=20, t_max=60, sampling=options)
    purifier.adopt(purifier.make_network((1, 16, 16), seed=0), (1, 16, 16))
    detector = medfedpure.create("detector", "denoising_disagreement")
    made = DefendedClassifier(tiny_classifier(16, 1), detector=detector, purifier=purifier, policy=policy)
    return made.accelerate(asked).calibrate(DATA, 0.3, seed=1)


@pytest.mark.parametrize(
    ("switches", "tolerance"),
    [
        ({"channels_last": True}, 1e-5),
        ({"autocast": True}, 0.05),
        pytest.param({"compile": True}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_the_same_within_rounding(switches: dict[str, bool], tolerance: float) -> None:
    plain, fast = (made.predict(DATA.images, seed=3) for made in (chain(), chain(Acceleration(**switches))))
    assert fast.logits.dtype == fast.images.dtype == fast.scores.dtype == torch.float32
    assert float((fast.probabilities - plain.probabilities).abs().max()) <= tolerance
    assert float((fast.images - plain.images).abs().max()) <= tolerance
    assert float((fast.scores - plain.scores).abs().max()) <= tolerance
    if switches.get("autocast"):
        assert not torch.equal(fast.images, plain.images), "bfloat16 rounds"


def test_small_divergences_survive_half_precision() -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.03125, 0.0]])
    exact = medfedpure.figures.divergences.jensen_shannon(one, other)
    half = medfedpure.figures.divergences.jensen_shannon(one.bfloat16(), other.bfloat16())
    assert float(exact) > 0
    assert float(half) == pytest.approx(float(exact), rel=1e-3)


# -- what is asked for ---------------------------------------------------------------------------------------------


def test_words_for_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Acceleration.auto("cpu") == Acceleration(), "nothing is faster there and answers the same"
    for capability, halves in (((8, 0), True), ((7, 5), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        found = Acceleration.auto("cuda:0")
        assert found == Acceleration(autocast=halves, channels_last=True, compile=True, noise="device")
    for asked in ("fast", True, None):
        with pytest.raises(ConfigError, match='"auto" or "off" is wanted'):
            chain().accelerate(asked)
    with pytest.raises(ConfigError, match=r"chain\.accelerate\('auto'\)"):
        Acceleration("auto")
    assert chain("auto").acceleration == chain("off").acceleration == Acceleration()


def test_the_device_decides_at_every_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a chain that is moved to CUDA and back, where only what `auto` says of the device changes."""
    made = chain(asked="auto")
    before, strides = made.predict(DATA, seed=3), [weight.stride() for weight in made.classifier.parameters()]
    elsewhere = Acceleration(autocast=True, channels_last=True, noise="device")
    monkeypatch.setattr(Acceleration, "auto", lambda device: elsewhere)
    there = made.predict(DATA, seed=3)
    assert made.acceleration == elsewhere
    assert there.trace.noise == "device"
    assert not torch.equal(there.images, before.images)
    assert [weight.stride() for weight in made.classifier.parameters()] != strides, "channels last"
    assert torch.equal(made.predict(DATA, seed=3).logits, there.logits), "two runs on one device agree to the bit"
    off = copy.deepcopy(made).accelerate("off").predict(DATA, seed=3)
    assert torch.equal(off.logits, before.logits), "what is asked for goes before what suits the device"
    monkeypatch.undo()
    after = made.predict(DATA, seed=3)
    assert [weight.stride() for weight in made.classifier.parameters()] == strides
    for name in ("logits", "scores", "images"):
        assert torch.equal(getattr(after, name), getattr(before, name)), f"{name} are as before"


@pytest.mark.parametrize("noise", ["reference", "device"])
def test_a_thousand_images_say_the_same_in_half_precision(noise: Any) -> None:
    """Under the threshold of float32, and equal noise: other noise changes as much as another seed does."""
    train, data = tiny_dataset(32, size=16), tiny_dataset(700, size=16, seed=5)
    training = {"steps": 80, "batch_size": 8, "learning_rate": 1e-2}
    few = {"num_inference_steps": 2}
    purifier = medfedpure.create(
        "purifier", "ddpm", model=SMALL, t_min=10, t_max=60, sampling=few, training=training
    ).fit(train)
    classifier, tested = tiny_classifier(16, 1), data.select(torch.arange(200, 700))
    detector = medfedpure.create("detector", "score_norm", timestep=20)
    plain = DefendedClassifier(classifier, detector=detector, purifier=purifier)
    plain.accelerate(Acceleration(noise=noise)).calibrate(data.images[:200], 0.05)
    attack = medfedpure.create("attack", "pgd_eot", eps=0.3, step=0.12, steps=4)
    images = torch.cat((tested.images, attack(classifier, tested.images, tested.labels).images))
    fast = copy.copy(plain).accelerate(Acceleration(autocast=True, noise=noise))
    one, other, again = (made.predict(images, seed=3, batch_size=250) for made in (plain, fast, fast))
    assert not torch.equal(one.logits, other.logits), "bfloat16 rounds"
    assert float((one.labels == other.labels).double().mean()) >= 0.995
    assert int(one.flagged.sum()) > 50, "the test shows nothing of the purifier"
    areas = [auroc(found.scores[:500], found.scores[500:]) for found in (one, other)]
    assert areas[0] > 0.9, "of a detector that separates: where scores overlap, rounding moves any area"
    assert abs(areas[1] - areas[0]) <= 0.002
    low, high = realised_fpr_interval(500, rank=plain.calibration.rank(), calibration=200)
    assert low <= float(other.flagged[:500].double().mean()) <= high
    for name in ("logits", "scores", "images"):
        assert torch.equal(getattr(again, name), getattr(other, name)), f"{name}: two runs agree to the bit"


# -- compiled ------------------------------------------------------------------------------------------------------


class Compiler:
    """Stands for torch.compile: sizes of the batches that came, by function."""

    def __init__(self) -> None:
        self.sizes: dict[str, list[int]] = {}

    def __call__(self, function: Callable[..., Tensor], **how: Any) -> Callable[..., Tensor]:
        def run(network: nn.Module, *rows: Tensor, **constants: Any) -> Tensor:
            self.sizes.setdefault(function.__name__, []).append(len(rows[0]))
            return function(network, *rows, **constants)

        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    """And shapes are static, as on CUDA."""
    found = Compiler()
    monkeypatch.setattr(torch, "compile", found)
    monkeypatch.setattr(compiled, "plan", lambda device, gradient: {"dynamic": gradient})
    return found


WAYS = [
    {"sampler": "ancestral"},
    {"sampler": "ddim", "adaptive_steps": True, "num_inference_steps": 4},
    {"sampler": "ancestral", "adaptive_steps": True, "num_inference_steps": 4, "keep_low": 1.0},
]


@pytest.mark.parametrize("way", WAYS)
def test_ragged_batches_and_mixed_depths_are_padded(way: dict[str, Any], compiler: Compiler) -> None:
    plain, fast = (chain(asked, policy="purify_flagged", **way) for asked in ("off", Acceleration(compile=True)))
    wanted = plain.predict(DATA, seed=3)
    assert 1 < int(wanted.purified.sum()) < len(DATA), "some of the images are purified"
    for batch_size in (40, 7, 1):
        assert_same(fast.predict(DATA, seed=3, batch_size=batch_size), wanted, f"batches of {batch_size}")
    assert compiler.sizes.keys() == {"logits_of", "reverse_step"}
    assert all(set(sizes) <= SIZES for sizes in compiler.sizes.values()), f"other sizes came: {compiler.sizes}"
    assert 1 in compiler.sizes["reverse_step"], "an image alone"


def test_the_score_asks_the_compiled_classifier_too(compiler: Compiler) -> None:
    made = chain(Acceleration(compile=True), policy="none")
    compiler.sizes.clear()
    made.predict(DATA.images[:5], seed=3)
    assert compiler.sizes["logits_of"] == [8, 8], "the images, and what the detector made of them"


def test_a_detector_of_one_classifier_finds_its_layers(compiler: Compiler) -> None:
    made = chain(Acceleration(compile=True), policy="none")
    lent = made.context().classifier
    assert lent is not made.classifier, "it is compiled"
    assert lent.class_names is made.classifier.class_names
    assert lent.network is made.classifier.network
    assert not lent.training
    assert type(copy.deepcopy(lent).classifier) is type(made.classifier)
    with pytest.raises(AttributeError, match="no_such_layer"):
        _ = lent.no_such_layer


def test_evaluations_are_counted_in_a_compiled_chain_as_in_another(compiler: Compiler) -> None:
    images, ids, told = DATA.images[:11], DATA.ids[:11], {}
    for asked in ("off", Acceleration(compile=True)):
        made = chain(asked, policy="purify_flagged")
        made.predict(images, ids, seed=3)
        said = [hear(made, images, ids, seed=3, draws=1, batch_size=5) for _ in range(2)]
        assert said[0].rows == said[1].rows
        told[str(asked)] = said[0].rows
    assert len(set(told.values())) == 1
    assert said[0].rows >= 11, "the detector asks the network about every image"


def test_a_chain_goes_on_where_nothing_can_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, **how: object) -> Callable[..., Tensor]:
        raise RuntimeError("Dynamo is not supported here")

    wanted = chain().predict(DATA, seed=3)
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(CompilationWarning) as told:
        found = chain(Acceleration(compile=True)).predict(DATA, seed=3)
    assert torch.equal(found.logits, wanted.logits)
    first = sorted(str(warning.message).partition(" could")[0] for warning in told)
    steps = ["a step of the reverse process"] * 2  # of the detector's sampler and of the purifier's
    assert first == [*steps, "the classifier"], "once each"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_padded_sizes_compiled_by_torch_say_the_same(way: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    how = {"dynamic": False, "backend": "aot_eager"}
    monkeypatch.setattr(compiled, "plan", lambda device, gradient: how)
    plain, fast = (chain(asked, **way) for asked in ("off", Acceleration(compile=True)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompilationWarning)
        for count in (1, 5):
            images = DATA.images[:count]
            one, other = (made.predict(images, DATA.ids[:count], seed=3) for made in (plain, fast))
            assert_same(other, one, f"{count} images")


def gradients(asked: Any, way: dict[str, Any]) -> list[Tensor]:
    """Of two losses of one look, the graph kept between them, as aware attacks do."""
    made, images = chain(asked, policy="purify_flagged", **way), DATA.images[:3].clone().requires_grad_(True)
    with made.noise_sequence(0):
        logits, scores = exact_view(made).look(images)
    asked_for = ((logits[:, 0], True), (scores, False))
    return [torch.autograd.grad(value.sum(), images, retain_graph=again)[0] for value, again in asked_for]


@pytest.mark.parametrize("way", WAYS)
def test_an_exact_gradient_goes_through_the_same_functions(way: dict[str, Any], compiler: Compiler) -> None:
    wanted = gradients("off", way)
    compiler.sizes.clear()
    for plain, fast in zip(wanted, gradients(Acceleration(compile=True), way), strict=True):
        assert float(plain.abs().max()) > 0
        assert torch.equal(fast, plain)
    assert 3 in compiler.sizes["reverse_step"], "with a gradient nothing is padded"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS[2:])
def test_an_exact_gradient_goes_through_what_torch_compiles(
    way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"dynamic": True, "backend": "aot_eager_decomp_partition"}
    monkeypatch.setattr(compiled, "plan", lambda device, gradient: how)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CompilationWarning)
        found = gradients(Acceleration(compile=True), way)
    for plain, fast in zip(gradients("off", way), found, strict=True):
        assert float((fast - plain).abs().max()) <= 1e-3 * float(plain.abs().max())
