"""A certificate against L2 perturbations, for a classifier under Gaussian noise of one fixed sigma.

Cohen et al. 2019 (arXiv 1902.02918): with p_A >= p the chance that the classifier says A of x + N(0,
sigma^2 I), nobody within radius sigma * Phi^-1(p) of x changes the answer of the smoothed classifier. p is the
Clopper-Pearson lower bound at confidence 1 - alpha of n draws, A the most frequent of n0 others. With a
diffusion model as one-step denoiser before the classifier it is Carlini et al. 2023 (arXiv 2206.10550).

It certifies *that* pipeline, noise, denoiser, classifier and vote, and not a gated chain: a detector that
decides which images are purified is not part of the argument. Errors of the denoiser cost radius, never
correctness. ART's randomized smoothing certifies plain smoothing too.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor, nn

from medfedpure.core.checks import check_images, check_logits
from medfedpure.core.detector import OneStepDenoiser
from medfedpure.core.errors import ConfigError, InputError
from medfedpure.core.streams import Streams
from medfedpure.core.verdict import verdicts
from medfedpure.figures.binomial import clopper_pearson_lower


@dataclass(frozen=True)
class Certificate:
    """What is certified of `N` images.

    Attributes:
        labels: `(N,)` int64, the smoothed classifier's answer; -1 where it abstains.
        radius: `(N,)`, no L2 perturbation smaller than this changes the answer; 0 where it abstains.
        sigma, n0, n, alpha, denoiser: how it was made.
    """

    labels: Tensor
    radius: Tensor
    sigma: float
    n0: int
    n: int
    alpha: float
    denoiser: str

    def accuracy(self, truth: Tensor, radius: float = 0.0) -> float:
        """Certified accuracy: the share answered rightly with at least this radius; abstentions count against it.

        Args:
            truth: `(N,)` int64, the true labels.
            radius: in L2, in [0, 1] units of a pixel.

        Raises:
            InputError: labels of another number than the images.
        """
        if truth.shape != self.labels.shape:
            raise InputError(f"labels must have shape {tuple(self.labels.shape)}; got {tuple(truth.shape)}")
        held = (self.labels == truth.to(self.labels)) & (self.radius >= radius)
        return float(held.double().mean())

    def describe(self) -> str:
        """The conditions, as they must stand beside any number."""
        return (
            f"randomized smoothing, L2, sigma {self.sigma:g}, {self.denoiser}, n0 {self.n0}, n {self.n}, each answer "
            f"wrong with probability at most {self.alpha:g}; abstentions count as uncertified"
        )


@torch.no_grad()
def certify(
    classifier: nn.Module,
    images: Tensor,
    ids: Tensor | None = None,
    *,
    sigma: float,
    denoiser: OneStepDenoiser | None = None,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int = 256,
    seed: int = 0,
) -> Certificate:
    """Certify every image under fixed Gaussian noise.

    Args:
        classifier: images `(N, C, H, W)` to logits `(N, K)`. Without a denoiser it reads noisy images, which are
            not clipped: it should have been trained on such. In eval mode: it must be one fixed function.
        images: `(N, C, H, W)` in [0, 1].
        ids: `(N,)` int64 keys of the noise; by default the running index.
        sigma: std of the noise, in [0, 1] units.
        denoiser: a fitted diffusion purifier, which removes the noise in one evaluation.
        n0: draws that choose the class.
        n: draws that bound its probability, at least 1,000 for figures to be published.
        alpha: chance that a certificate is wrong.
        batch_size: noisy copies at a time.
        seed: of the noise; it must not be known to an attacker in use.

    Raises:
        ConfigError: sigma or the numbers of draws are not positive, alpha is outside (0, 1).
        InputError: images of the wrong rank, dtype or range, ids that do not fit them, a classifier in training
            mode, or a sigma beyond what the denoiser was trained for.
    """
    check_images(images)
    if classifier.training:
        raise InputError(
            "the classifier is in training mode, where its answer depends on the batch: put it in eval mode first"
        )
    keys = torch.arange(len(images)) if ids is None else ids
    if keys.shape != (len(images),):
        raise InputError(f"ids must have shape ({len(images)},); got {tuple(keys.shape)}")
    if sigma <= 0 or n0 < 1 or n < 1 or not 0 < alpha < 1:
        raise ConfigError(f"sigma > 0, n0 >= 1, n >= 1, 0 < alpha < 1 is wanted; got {sigma}, {n0}, {n}, {alpha}")
    labels, radii = [], []
    for place, image in enumerate(images):
        streams = Streams(seed, keys[place : place + 1])
        counts = [
            _count(classifier, image, sigma, denoiser, draws, batch_size, streams.child(stage))
            for draws, stage in ((n0, "select"), (n, "estimate"))
        ]
        best = int(counts[0].argmax())
        bound = clopper_pearson_lower(int(counts[1][best]), n, alpha)
        certain = bound > 0.5
        labels.append(best if certain else -1)
        radii.append(sigma * NormalDist().inv_cdf(bound) if certain else 0.0)
    name = (
        "no denoiser"
        if denoiser is None
        else f"denoised in one step by {getattr(denoiser, 'name', type(denoiser).__name__)}"
    )
    radius = torch.tensor(radii, dtype=torch.float64)
    return Certificate(torch.tensor(labels, dtype=torch.int64), radius, sigma, n0, n, alpha, name)


def _count(
    classifier: nn.Module,
    image: Tensor,
    sigma: float,
    denoiser: OneStepDenoiser | None,
    draws: int,
    batch_size: int,
    streams: Streams,
) -> Tensor:
    """How often each class is answered, `(K,)` int64."""
    total: Tensor | None = None
    for start in range(0, draws, batch_size):
        numbers = range(start, min(start + batch_size, draws))
        # A stream of its own for each copy, so that nothing depends on the batch size.
        noise = torch.cat([streams.normal(image.shape, stage="copy", draw=number, like=image) for number in numbers])
        noisy = image + sigma * noise
        logits = classifier(noisy if denoiser is None else denoiser.denoise_once(noisy, sigma))
        check_logits(logits, len(noisy), values=True)
        votes = torch.bincount(verdicts(logits).cpu(), minlength=logits.shape[1])
        total = votes if total is None else total + votes
    assert total is not None
    return total
