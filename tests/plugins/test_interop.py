"""A defence is a module like any other: ART, foolbox and torchattacks attack it as it is."""

import numpy
import pytest
import torch

import medfedpure
from medfedpure.evaluation.views import bpda_view
from medfedpure.testing import tiny_classifier, tiny_dataset

BENIGN = tiny_dataset(120, seed=3)
BATCH = tiny_dataset().batch(torch.arange(12) * 4)
IMAGES, LABELS = BATCH.images, BATCH.labels
EPS = 0.2


def purify_all():
    return medfedpure.DefendedClassifier(
        tiny_classifier(), purifier=medfedpure.create("purifier", "median"), policy="purify_all"
    )


def gated():
    chain = medfedpure.DefendedClassifier(
        tiny_classifier(),
        detector=medfedpure.create("detector", "feature_squeezing"),
        purifier=medfedpure.create("purifier", "median"),
    )
    return chain.calibrate(BENIGN.batch(torch.arange(0, 120, 2)).images, 0.1)


CHAINS = pytest.mark.parametrize("chain", [purify_all(), gated()], ids=["purify_all", "gated"])


def accuracy(chain, images):
    with torch.no_grad():
        return float((chain(images).argmax(1) == LABELS).float().mean())


@CHAINS
def test_art_attacks_a_chain(chain):
    art = pytest.importorskip("art.attacks.evasion")
    estimator = medfedpure.to_art(chain, input_shape=(1, 32, 32), num_classes=2)
    array = art.FastGradientMethod(estimator, eps=EPS).generate(IMAGES.numpy(), LABELS.numpy())
    assert numpy.abs(array - IMAGES.numpy()).max() <= EPS * 1.0001
    assert accuracy(chain, torch.from_numpy(array)) < accuracy(chain, IMAGES) - 0.3


def test_arts_classifier_answers_as_the_chain_does_in_either_precision():
    pytest.importorskip("art")
    chain = purify_all()
    estimator = medfedpure.to_art(chain, input_shape=(1, 32, 32), num_classes=2)
    with torch.no_grad():
        wanted = chain(IMAGES)
    for dtype in (numpy.float32, numpy.float64):
        assert torch.allclose(torch.from_numpy(estimator.predict(IMAGES.numpy().astype(dtype))), wanted, atol=1e-5)


@CHAINS
def test_foolbox_attacks_a_chain(chain):
    foolbox = pytest.importorskip("foolbox", reason="foolbox is not installed: pip install 'medfedpure[test]'")
    model = foolbox.PyTorchModel(chain, bounds=(0, 1), device="cpu")
    _, images, fooled = foolbox.attacks.LinfFastGradientAttack()(model, IMAGES, LABELS, epsilons=EPS)
    assert float((images - IMAGES).abs().max()) <= EPS * 1.0001
    assert accuracy(chain, images) < accuracy(chain, IMAGES) - 0.3
    assert float(fooled.float().mean()) == pytest.approx(1 - accuracy(chain, images))


@pytest.mark.slow
@pytest.mark.parametrize("version", ["standard", "rand"])
@pytest.mark.parametrize("shown", ["the chain", "bpda"])
def test_torchattacks_attacks_a_view(shown, version):
    """Its AutoAttack, whose targeted part wants more than three classes."""
    torchattacks = pytest.importorskip(
        "torchattacks", reason="its pins clash with Flower's: run `make test-torchattacks`, in its own environment"
    )
    generator = torch.Generator().manual_seed(0)
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5, bias=False))
    with torch.no_grad():
        bare[1].weight.copy_(torch.randn(5, 64, generator=generator))
    images = torch.rand(20, 1, 8, 8, generator=generator)
    chain = medfedpure.DefendedClassifier(bare, purifier=medfedpure.create("purifier", "median"), policy="purify_all")
    view = chain if shown == "the chain" else bpda_view(chain)
    labels = view(images).argmax(1)
    attack = torchattacks.AutoAttack(view, norm="Linf", eps=EPS, version=version, n_classes=5)
    found = attack(images, labels).detach()
    assert float((found - images).abs().max()) <= EPS * 1.0001
    assert float((view(found).argmax(1) == labels).float().mean()) < 0.4
