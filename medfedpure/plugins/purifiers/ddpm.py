"""Diffusion purification with a depth of its own for each image.

After DiffPure (Nie et al. 2022, arXiv 2205.07460) and MedFedPure (arXiv 2511.11625): noise an image
to depth t*, then run the reverse process. Here t* follows the detector's score,

    t* = t_min + strength * (t_max - t_min),

continuous, and the reverse process is DDIM (Song et al. 2021, arXiv 2010.02502) in a handful of
steps. At a fractional t the log-SNR is interpolated between integer timesteps, where everything
equals diffusers' schedulers; the network is trained on fractional timesteps. Images are in [0, 1]
outside and in [-1, 1] inside this file.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import InputError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification, State
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, isolated_rng
from medfedpure.core.training import Task, TrainingConfig, train
from medfedpure.models.unet import NoiseUNet, noise_levels


class UNetConfig(Config):
    """Size of the noise predictor."""

    widths: tuple[int, ...] = Field((48, 96), min_length=1, description="channels of each level, multiples of 8")
    layers_per_block: int = Field(1, ge=1, description="residual blocks at each level")
    unshuffle: int = Field(2, ge=1, description="pixels folded into channels along each side; 1 = none")

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if any(width % 8 for width in self.widths):
            raise ValueError(f"widths must be multiples of 8 (group normalization); got {self.widths}")
        return self


class DDPMConfig(Config):
    """Schedule, depth and network."""

    schedule: Literal["linear", "cosine"] = Field("linear", description="the paper's linear betas, or cosine")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of the linear schedule")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of the linear schedule")
    timesteps: int = Field(1000, ge=2, description="length T of the schedule")
    t_min: float = Field(60.0, ge=0, description="depth at strength 0; t = 0 leaves an image as it is")
    t_max: float = Field(140.0, ge=0, description="depth at strength 1; training covers timesteps up to here")
    num_inference_steps: int = Field(5, ge=1, description="DDIM steps, each one network evaluation")
    model: UNetConfig = Field(default_factory=UNetConfig, description="the noise predictor")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(steps=2000, batch_size=64, learning_rate=2e-3, ema=0.995),
        description="its training",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.t_min <= self.t_max < self.timesteps:
            raise ValueError(f"0 <= t_min <= t_max < timesteps is wanted; got {self.t_min}, {self.t_max}")
        return self


class DDPM(Purifier):
    """Noise to t*, denoise with DDIM: `num_inference_steps` evaluations for each image."""

    Config = DDPMConfig
    differentiable: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        c = self.config
        self.register_buffer(
            "levels", noise_levels(c.beta_start, c.beta_end, c.timesteps, c.schedule), persistent=False
        )
        self.network: nn.Module | None = None
        self.channels = 0

    # -- training ------------------------------------------------------------------------------

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh noise predictor for `(C, H, W)` images; the architecture depends on C only."""
        model = self.config.model
        with isolated_rng(seed):
            return NoiseUNet(image_shape[0], model.widths, model.layers_per_block, model.unshuffle).eval()

    def task(self) -> Task:
        """Predict the noise at timesteps up to t_max."""
        return DiffusionTask(self)

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained noise predictor."""
        self.network, self.channels = network.eval(), image_shape[0]
        return self.mark_fitted()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train the noise predictor on benign images."""
        del context
        network = self.make_network(data.image_shape, seed)
        train(network, self.task(), data, self.config.training, seed=seed, description="diffusion model")
        return self.adopt(network, data.image_shape)

    def fitted_state(self) -> State:
        """The network's tensors."""
        assert self.network is not None
        return State.of(self.network, channels=self.channels)

    def restore(self, state: State) -> None:
        """Rebuild the network and load it strictly."""
        shape = (int(state.values["channels"]), 1, 1)
        network = self.make_network(shape, seed=0)
        load_strictly(network, state.tensors, "the diffusion model of 'ddpm'")
        self.adopt(network, shape)

    # -- diffusion -----------------------------------------------------------------------------

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(alpha_bar), sqrt(1 - alpha_bar) at fractional timesteps `(N,)`; 1 and 0 at t <= 0."""
        clamped = timestep.to(torch.float64).clamp(0, self.config.timesteps - 1)
        lower = clamped.detach().floor().long().clamp(max=self.config.timesteps - 2)
        share = clamped - lower
        levels = self.get_buffer("levels").to(torch.float64)
        level = levels[lower] * (1 - share) + levels[lower + 1] * share
        started = timestep > 0
        signal = torch.where(started, torch.sigmoid(level).sqrt(), 1.0)
        noise = torch.where(started, torch.sigmoid(-level).sqrt(), 0.0)
        return signal, noise

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """sqrt(alpha_bar) x + sqrt(1 - alpha_bar) noise for `(N, C, H, W)` in [-1, 1]; `(N,)` timesteps."""
        signal, sigma = (_column(value, clean) for value in self.coefficients(timestep))
        return signal * clean + sigma * noise

    def step(self, noisy: Tensor, predicted: Tensor, timestep: Tensor, previous: Tensor) -> Tensor:
        """One DDIM step (eta = 0) from `timestep` `(N,)` to `previous` `(N,)`, formula (12) of Song et al.

        x0 = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), clipped to [-1, 1];
        x_prev = sqrt(a_prev) x0 + sqrt(1 - a_prev) eps.
        """
        signal, sigma = (_column(value, noisy) for value in self.coefficients(timestep))
        signal_prev, sigma_prev = (_column(value, noisy) for value in self.coefficients(previous))
        clean = ((noisy - sigma * predicted) / signal).clamp(-1, 1)
        return signal_prev * clean + sigma_prev * predicted

    def denoise(
        self, images: Tensor, timestep: Tensor, *, steps: int, streams: Streams, stage: str = "denoise"
    ) -> Tensor:
        """Noise images `(N, C, H, W)` in [0, 1] to depth `(N,)` and denoise them in `steps` evaluations."""
        self.check_fitted()
        assert self.network is not None
        if images.shape[1] != self.channels:
            raise InputError(f"this purifier was fitted on {self.channels} channels; got {tuple(images.shape)}")
        dtype = next(self.network.parameters()).dtype
        noise = streams.normal(images.shape[1:], stage=stage, like=images).to(dtype)
        current = self.add_noise(images.to(dtype) * 2 - 1, noise, timestep)
        for place in range(steps):
            now = timestep * ((steps - place) / steps)
            after = timestep * ((steps - place - 1) / steps)
            current = self.step(current, self.network(current, now.to(dtype)), now, after)
        cleaned = ((current + 1) / 2).clamp(0, 1).to(images.dtype)
        return torch.where(_column(timestep, images) > 0, cleaned, images)

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        """`(N, C, H, W)` cleaned at t* = t_min + strength (t_max - t_min)."""
        c = self.config
        timestep = c.t_min + strength * (c.t_max - c.t_min)
        steps = c.num_inference_steps
        cleaned = self.denoise(images, timestep, steps=steps, streams=streams, stage="purify")
        return Purification(cleaned, steps * (timestep.detach() > 0).long(), timestep)


class DiffusionTask(Task):
    """E ||eps - eps_theta(x_t, t)||^2 with t uniform and fractional in (0, t_max], formula (14) of Ho et al. 2020."""

    def __init__(self, purifier: DDPM) -> None:
        self.purifier = purifier

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """Mean squared error of the predicted noise on one batch."""
        clean = batch.images * 2 - 1
        timestep = (1 - streams.uniform((1,), stage="timestep", like=clean).squeeze(1)) * self.purifier.config.t_max
        noise = streams.normal(clean.shape[1:], stage="noise", like=clean)
        predicted: Tensor = model(self.purifier.add_noise(clean, noise, timestep), timestep)
        return (predicted - noise).square().mean()


def _column(value: Tensor, like: Tensor) -> Tensor:
    return value.to(like.dtype)[:, None, None, None]
