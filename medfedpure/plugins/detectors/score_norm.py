"""How much noise does a diffusion model see in the image as it is?

    score(x) = log Q_q { mean of eps_theta(2 x - 1, t)_i^2 over i in b : b a block of pixels }

eps_theta is the chain's own noise predictor, at a timestep so low that what it looks for is of the size of a
perturbation, and no noise is added. -eps_theta / sigma_t is the diffusion model's score, and an image away from the
benign ones has a longer one: Zhang et al. 2023 (arXiv 2305.16035) average scores over noised copies, SSNI (arXiv
2506.06027) chooses depths by their norm. The quantile Q_q over blocks leaves the few textured ones out.

It needs no classifier, and so sees an attack before it succeeds. It sees noise as well, and is blind to smooth changes.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from medfedpure.core.config import Config
from medfedpure.core.detector import Detector, NoisePredictor, ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.streams import Streams


class ScoreNormConfig(Config):
    """Where the score is taken, and over what."""

    timestep: float = Field(1.0, gt=0, description="of the diffusion model; its noise there is what is looked for")
    block: int = Field(4, ge=1, description="side of the blocks in pixels")
    quantile: float = Field(0.75, ge=0, le=1, description="over the blocks of an image")


class ScoreNorm(Detector):
    """Requires a noise predictor such as the `ddpm` purifier of the same chain; one evaluation, no draw."""

    Config = ScoreNormConfig
    differentiable = True
    deterministic = True

    @property
    def requires(self) -> frozenset[str]:
        """A denoiser."""
        return frozenset({"denoiser"})

    def score(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N,)`: log of the squared noise that is seen, 0 where it is all that was looked for."""
        del streams
        energy = self.energy(images, context)
        block = min(self.config.block, *energy.shape[2:])
        blocks = functional.avg_pool2d(energy, block, ceil_mode=True, count_include_pad=False).flatten(1)
        return torch.quantile(blocks, self.config.quantile, dim=1).clamp_min(1e-12).log().to(images.dtype)

    def suspicion_map(self, images: Tensor, *, context: ScoreContext, streams: Streams) -> Tensor:
        """`(N, 1, H, W)`: the squared noise that is seen at each pixel."""
        del streams
        return self.energy(images, context).to(images.dtype)

    def energy(self, images: Tensor, context: ScoreContext) -> Tensor:
        """`(N, 1, H, W)`, float32 at least: the squared predicted noise, averaged over channels."""
        denoiser = context.denoiser
        if not isinstance(denoiser, NoisePredictor):
            raise MissingRequirementError(
                "score_norm requires a denoiser with predict_noise, such as the purifier 'ddpm'; got "
                f"{type(denoiser).__name__}"
            )
        depth = torch.full((len(images),), self.config.timestep, dtype=images.dtype, device=images.device)
        noise = denoiser.predict_noise(images, depth)
        # quantiles of half precision do not exist
        return noise.to(torch.promote_types(noise.dtype, torch.float32)).square().mean(1, keepdim=True)
