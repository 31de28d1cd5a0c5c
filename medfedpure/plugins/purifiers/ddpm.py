"""Diffusion purification with a depth of its own for each image.

After DiffPure (Nie et al. 2022, arXiv 2205.07460) and MedFedPure (arXiv 2511.11625): noise an image
to depth t*, then run the reverse process. Here t* follows the detector's score,

    t* = t_min + strength * (t_max - t_min),

continuous, and so does the number of network evaluations: ceil(num_inference_steps t* / t_max) for DDIM
(Song et al. 2021, arXiv 2010.02502) in a handful of steps, ceil(t*) for ancestral sampling, one for the
one-step estimate of x0. At a fractional t the log-SNR is interpolated between integer timesteps, where
everything equals diffusers' schedulers; the network is trained on fractional timesteps. Images are in
[0, 1] outside and in [-1, 1] inside.
"""

from __future__ import annotations

import math
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
from medfedpure.models.diffusion import Diffusion, sample_timesteps
from medfedpure.models.unet import NoiseUNet


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


class DiffusionConfig(Config):
    """Schedule, network and training: what every diffusion purifier has."""

    schedule: Literal["linear", "cosine"] = Field("linear", description="the paper's linear betas, or cosine")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of the linear schedule")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of the linear schedule")
    timesteps: int = Field(1000, ge=2, description="length T of the schedule")
    keep_low: float = Field(
        0.0, ge=0, description="guidance: keep the input's frequencies below a Gaussian of that many pixels; 0 = none"
    )
    timestep_sampling: Literal["uniform", "log_snr"] = Field(
        "uniform", description="how training draws timesteps, up to the deepest that purification uses"
    )
    loss_weighting: Literal["none", "min_snr"] = Field(
        "none", description="min_snr: errors weigh min(SNR, 5) / SNR (Hang et al. 2023, arXiv 2303.09556)"
    )
    model: UNetConfig = Field(default_factory=UNetConfig, description="the noise predictor")
    training: TrainingConfig = Field(
        default_factory=lambda: TrainingConfig(steps=2000, batch_size=64, learning_rate=2e-3, ema=0.995),
        description="its training",
    )

    def deepest(self) -> float:
        """The deepest timestep that purification uses; training goes no further."""
        raise NotImplementedError


class DDPMConfig(DiffusionConfig):
    """Depth, and the way back."""

    t_min: float = Field(60.0, ge=0, description="depth at strength 0; t = 0 leaves an image as it is")
    t_max: float = Field(140.0, ge=0, description="depth at strength 1; training covers timesteps up to here")
    sampler: Literal["ddim", "ddpm", "one_step"] = Field(
        "ddim", description="deterministic in few steps, ancestral with one step for each timestep, or one estimate"
    )
    num_inference_steps: int = Field(5, ge=1, description="DDIM steps at t_max, each one network evaluation")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.t_min <= self.t_max < self.timesteps:
            raise ValueError(f"0 <= t_min <= t_max < timesteps is wanted; got {self.t_min}, {self.t_max}")
        return self

    def deepest(self) -> float:
        """t_max."""
        return self.t_max


class DiffusionPurifier(Purifier):
    """What diffusion purifiers share: the network, its training, and the reverse process."""

    differentiable: ClassVar[bool] = True
    needs_fit: ClassVar[bool] = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        c = self.config
        self.diffusion = Diffusion(c.schedule, c.beta_start, c.beta_end, c.timesteps)
        self.network: nn.Module | None = None
        self.channels = 0

    # -- training ------------------------------------------------------------------------------

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh noise predictor for `(C, H, W)` images; the architecture depends on C only."""
        model = self.config.model
        with isolated_rng(seed):
            return NoiseUNet(image_shape[0], model.widths, model.layers_per_block, model.unshuffle).eval()

    def task(self) -> Task:
        """Predict the noise at the timesteps that purification uses."""
        return DiffusionTask(self)

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained noise predictor."""
        self.network, self.channels = network.eval(), image_shape[0]
        return self.mark_fitted()

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train the noise predictor on benign images; goes on from `context.checkpoint` where there is one."""
        network = self.make_network(data.image_shape, seed)
        checkpoint = None if context is None else context.checkpoint
        settings = self.config.training
        train(network, self.task(), data, settings, seed=seed, description="diffusion model", checkpoint=checkpoint)
        return self.adopt(network, data.image_shape)

    def fitted_state(self) -> State:
        """The network's tensors."""
        assert self.network is not None
        return State.of(self.network, channels=self.channels)

    def restore(self, state: State) -> None:
        """Rebuild the network and load it strictly."""
        shape = (int(state.values["channels"]), 1, 1)
        network = self.make_network(shape, seed=0)
        load_strictly(network, state.tensors, f"the diffusion model of {self.name!r}")
        self.adopt(network, shape)

    # -- purification --------------------------------------------------------------------------

    def clean(
        self, images: Tensor, timestep: Tensor, steps: Tensor, *, ancestral: bool = False, streams: Streams, stage: str
    ) -> Tensor:
        """Images `(N, C, H, W)` in [0, 1], noised to `(N,)` and taken back in `(N,)` evaluations."""
        self.check_fitted()
        assert self.network is not None
        if images.shape[1] != self.channels:
            raise InputError(f"this purifier was fitted on {self.channels} channels; got {tuple(images.shape)}")
        dtype = next(self.network.parameters()).dtype
        moved = self.diffusion.reverse(
            self.network,
            images.to(dtype) * 2 - 1,
            timestep,
            steps,
            sampler="ddpm" if ancestral else "ddim",
            streams=streams,
            stage=stage,
            keep_low=self.config.keep_low,
        )
        cleaned = ((moved + 1) / 2).clamp(0, 1).to(images.dtype)
        return torch.where((steps > 0)[:, None, None, None], cleaned, images)

    def denoise(self, images: Tensor, timestep: Tensor, *, steps: int, streams: Streams) -> Tensor:
        """Noise images `(N, C, H, W)` in [0, 1] to depth `(N,)` and denoise them in `steps` DDIM evaluations."""
        evaluations = steps * (timestep.detach() > 0).long()
        return self.clean(images, timestep, evaluations, streams=streams, stage="denoise")

    def denoise_once(self, noisy: Tensor, sigma: float) -> Tensor:
        """x0 of images in [0, 1] plus Gaussian noise of std sigma, in one evaluation (Carlini et al. 2023).

        The depth t is where (1 - a_t) / a_t = (2 sigma)^2, the noise's variance in [-1, 1] units.

        Raises:
            InputError: that depth lies beyond what the network was trained for.
        """
        self.check_fitted()
        assert self.network is not None
        level = torch.tensor([-2 * math.log(2 * sigma)], dtype=torch.float64, device=noisy.device)
        timestep = self.diffusion.at_log_snr(level)
        if float(timestep) > self.config.deepest():
            raise InputError(
                f"noise of std {sigma:g} lies at timestep {float(timestep):.0f}, and this diffusion model was trained "
                f"up to {self.config.deepest():g}: choose a smaller sigma, or train it deeper"
            )
        signal, _ = self.diffusion.coefficients(timestep)
        depth = timestep.to(noisy.dtype).expand(len(noisy))
        scaled = (noisy * 2 - 1) * signal.to(noisy.dtype)
        clean = self.diffusion.predict_clean(scaled, self.network(scaled, depth), depth)
        return ((clean + 1) / 2).clamp(0, 1)


class DDPM(DiffusionPurifier):
    """Noise to t*, then DDIM in few steps, ancestral sampling, or one estimate of x0."""

    Config = DDPMConfig

    def evaluations(self, timestep: Tensor) -> Tensor:
        """Network evaluations `(N,)` int64 of depths `(N,)`; none at t = 0."""
        c, depth = self.config, timestep.detach().double()
        if c.sampler == "one_step":
            return (depth > 0).long()
        wanted = depth if c.sampler == "ddpm" else c.num_inference_steps * depth / max(c.t_max, 1e-12)
        # float noise in t* must not cost a step
        return (wanted - 1e-6).ceil().long().clamp_min(0)

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        """`(N, C, H, W)` cleaned at t* = t_min + strength (t_max - t_min)."""
        c = self.config
        timestep = c.t_min + strength * (c.t_max - c.t_min)
        steps = self.evaluations(timestep)
        ancestral = c.sampler == "ddpm"
        cleaned = self.clean(images, timestep, steps, ancestral=ancestral, streams=streams, stage="purify")
        return Purification(cleaned, steps, timestep)


class DiffusionTask(Task):
    """E w(t) ||eps - eps_theta(x_t, t)||^2 at fractional t, formula (14) of Ho et al. 2020."""

    def __init__(self, purifier: DiffusionPurifier) -> None:
        self.purifier = purifier

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """Mean squared error of the predicted noise on one batch."""
        config, diffusion = self.purifier.config, self.purifier.diffusion
        clean = batch.images * 2 - 1
        share = streams.uniform((1,), stage="timestep", like=clean).squeeze(1)
        timestep = sample_timesteps(diffusion, share, config.deepest(), config.timestep_sampling)
        noise = streams.normal(clean.shape[1:], stage="noise", like=clean)
        predicted: Tensor = model(diffusion.add_noise(clean, noise, timestep), timestep)
        errors = (predicted - noise).square().flatten(1).mean(1)
        if config.loss_weighting == "min_snr":
            snr = diffusion.log_snr(timestep).exp()
            errors = errors * (snr.clamp(max=5) / snr).to(errors.dtype)
        return errors.mean()
