"""Does the prediction survive a light cleaning by a diffusion model?

    score(x) = mean over draws of JS( f(x), f(D(x)) )

f the classifier, D the purifier's own diffusion model at a low timestep in one to three network
evaluations, JS the Jensen-Shannon divergence. The idea that an adversarial prediction moves when the
image is reformed is MagNet's (Meng and Chen 2017, arXiv 1705.09064); the reformer here is diffusion.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.errors import ConfigError, MissingRequirementError
from medfedpure.core.streams import Streams
from medfedpure.figures.divergences import jensen_shannon


class DenoisingDisagreementConfig(Config):
    """Depth and cost of the cleaning."""

    timestep: float = Field(20.0, gt=0, description="diffusion depth of the cleaning")
    steps: int = Field(1, ge=1, description="network evaluations of one cleaning")
    draws: int = Field(1, ge=1, description="independent cleanings that are averaged")


class DenoisingDisagreement(Detector):
    """Requires the classifier, and a denoiser such as the `ddpm` purifier of the same chain."""

    Config = DenoisingDisagreementConfig
    differentiable = True

    @property
    def requires(self) -> frozenset[str]:
        """The classifier and a denoiser."""
        return frozenset({"classifier", "denoiser"})

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)` in [0, ln 2]: how far the prediction moves under cleaning."""
        classifier = context.classifier
        if classifier is None:
            raise MissingRequirementError("denoising_disagreement requires a classifier")
        logits = context.predict_logits(images)
        shifts = [jensen_shannon(logits, classifier(clean)) for clean in self.cleaned(images, context, streams)]
        return torch.stack(shifts).mean(0)

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N, 1, H, W)`: how much the cleaning changes each pixel, averaged over draws and channels."""
        changes = [(clean - images).abs().mean(1, keepdim=True) for clean in self.cleaned(images, context, streams)]
        return torch.stack(changes).mean(0)

    def cleaned(self, images: Tensor, context: ScoreContext, streams: Streams) -> list[Tensor]:
        """One lightly cleaned version `(N, C, H, W)` of the images for each draw."""
        denoiser = context.denoiser
        if denoiser is None:
            raise MissingRequirementError("denoising_disagreement requires a denoiser")
        deepest = getattr(denoiser, "deepest", None)
        if deepest is not None and self.config.timestep > deepest():
            raise ConfigError(
                f"denoising_disagreement cleans at timestep {self.config.timestep:g}, and the diffusion model of this "
                f"chain was trained up to {deepest():g}: choose a smaller timestep here, or a larger t_max there"
            )
        depth = torch.full((len(images),), self.config.timestep, dtype=images.dtype, device=images.device)
        return [
            denoiser.denoise(images, depth, steps=self.config.steps, streams=streams.child(f"disagreement{draw}"))
            for draw in range(self.config.draws)
        ]
