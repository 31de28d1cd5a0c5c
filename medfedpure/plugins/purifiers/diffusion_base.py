"""What diffusion purifiers share: network, training, and cleaning at given depths.

Images are in [0, 1] outside and in [-1, 1] inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfedpure.acceleration.compiled import prepared
from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import InputError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import State, device_of
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, isolated_rng
from medfedpure.core.task import Task
from medfedpure.models.diffusion import Diffusion, predicted_noise, sample_timesteps
from medfedpure.models.samples import write_samples
from medfedpure.models.unet import NoiseUNet
from medfedpure.training.loop import train

SHOWN = 8
"""Images in the picture of samples."""


Width = Annotated[int, Field(ge=8, le=4096)]


SIZES: tuple[tuple[float, int, tuple[int, ...]], ...] = ((96, 2, (48, 96)), (math.inf, 4, (64, 128)))
"""Up to which longer side of images in pixels: unshuffle, and widths. See `benchmarks.unet_size`."""


class UNetConfig(Config):
    """Size of the noise predictor; what is not given follows the images' size once they are known."""

    widths: tuple[Width, ...] | None = Field(
        None, min_length=1, max_length=8, description="channels of each level, multiples of 8; none = by image size"
    )
    layers_per_block: int = Field(1, ge=1, le=16, description="residual blocks at each level")
    unshuffle: int | None = Field(
        None,
        ge=1,
        le=64,
        description="pixels folded into channels along each side, 1 folds none; none = by image size",
    )
    attention: bool = Field(False, description="self-attention at the coarsest level")

    @model_validator(mode="after")
    def _groups(self) -> Self:
        if any(width % 8 for width in self.widths or ()):
            raise ValueError(f"widths must be multiples of 8 (group normalization); got {self.widths}")
        return self

    def of(self, image_shape: tuple[int, int, int]) -> Self:
        """The same with nothing left open, for `(C, H, W)` images."""
        _, unshuffle, widths = next(size for size in SIZES if max(image_shape[1:]) <= size[0])
        chosen = {"unshuffle": self.unshuffle or unshuffle, "widths": self.widths or widths}
        return self.model_copy(update=chosen)


class ScheduleConfig(Config):
    """How much noise each timestep holds."""

    kind: Literal["linear", "cosine"] = Field("linear", description="the paper's linear betas, or cosine")
    beta_start: float = Field(1e-4, gt=0, lt=1, description="first beta of the linear schedule")
    beta_end: float = Field(0.02, gt=0, lt=1, description="last beta of the linear schedule")
    timesteps: int = Field(1000, ge=2, le=100_000, description="length T of the schedule")


class ObjectiveConfig(Config):
    """What training minimizes."""

    timestep_sampling: Literal["uniform", "log_snr"] = Field(
        "uniform", description="how training draws timesteps, up to the deepest that purification uses"
    )
    weighting: Literal["none", "min_snr"] = Field(
        "none", description="min_snr: errors weigh min(SNR, 5) / SNR (Hang et al. 2023, arXiv 2303.09556)"
    )


class SamplingConfig(Config):
    """The way back, as far as every diffusion purifier can choose it."""

    keep_low: float = Field(
        0.0, ge=0, description="guidance: keep the input's frequencies below a Gaussian of that many pixels; 0 = none"
    )


class DiffusionConfig(Config):
    """Schedule, network and training: what every diffusion purifier has.

    Attributes:
        moved: where the options stand now that had no section before format 2.
    """

    moved: ClassVar[Mapping[str, str]] = {
        "schedule": "schedule.kind",
        "beta_start": "schedule.beta_start",
        "beta_end": "schedule.beta_end",
        "timesteps": "schedule.timesteps",
        "timestep_sampling": "objective.timestep_sampling",
        "loss_weighting": "objective.weighting",
        "keep_low": "sampling.keep_low",
    }

    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="the noise of each timestep")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="what training minimizes")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="the way back")
    save_memory: bool = Field(
        True, description="an exact attack recomputes activations, so memory does not grow with steps; False is faster"
    )
    model: UNetConfig = Field(default_factory=UNetConfig, description="the noise predictor")
    training: TrainingConfig = Field(
        TrainingConfig(steps=2000, batch_size=64, learning_rate=2e-3, ema=0.995),
        description="its training",
    )

    @model_validator(mode="before")
    @classmethod
    def _in_sections(cls, given: Any) -> Any:
        keys = given.keys() & cls.moved.keys() if isinstance(given, Mapping) else ()
        if flat := sorted(key for key in keys if not isinstance(given[key], Mapping | Config)):
            raise ValueError("; ".join(f"{key} is now {cls.moved[key]}" for key in flat))
        return given

    def deepest(self) -> float:
        """The deepest timestep that purification uses; training goes no further."""
        raise NotImplementedError


class DiffusionPurifier(Purifier):
    """What diffusion purifiers share: the network, its training, and the reverse process."""

    Config: ClassVar[type[DiffusionConfig]] = DiffusionConfig
    differentiable = True
    needs_fit = True

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        schedule = self.config.schedule
        self.diffusion = Diffusion(schedule.kind, schedule.beta_start, schedule.beta_end, schedule.timesteps)
        self.network: nn.Module | None = None
        self.channels = 0

    @classmethod
    def upgrade(cls, config: Mapping[str, Any], format: int) -> Mapping[str, Any]:
        """Format 1 had no sections: its options move into those of `Config`."""
        if format > 1:
            return config
        nested: dict[str, Any] = {}
        for key, value in config.items():
            section, _, name = cls.Config.moved.get(key, key).rpartition(".")
            (nested.setdefault(section, {}) if section else nested)[name] = value
        return nested

    # -- training ------------------------------------------------------------------------------

    def make_network(self, image_shape: tuple[int, int, int], seed: int) -> nn.Module:
        """A fresh noise predictor for `(C, H, W)` images; where `model` leaves its size open, H and W choose it."""
        return self._built(image_shape, seed)

    def _built(self, image_shape: tuple[int, int, int], seed: int, classes: int = 0) -> nn.Module:
        model, channels = self.config.model.of(image_shape), image_shape[0]
        sizes = (model.widths, model.layers_per_block, model.unshuffle, classes)
        with isolated_rng(seed):
            return NoiseUNet(channels, *sizes, attention=model.attention).eval()

    def task(self) -> Task:
        """Predict the noise at the timesteps that purification uses."""
        return DiffusionTask(self)

    def adopt(self, network: nn.Module, image_shape: tuple[int, int, int]) -> Self:
        """Take a trained noise predictor, as `make_network` makes it; from now on `config` says its size."""
        self._hold(network, image_shape)
        return self.mark_fitted()

    def _hold(self, network: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.network, self.channels = network.eval(), image_shape[0]
        self.config = self.config.model_copy(update={"model": self.config.model.of(image_shape)})

    def fit(self, data: ImageDataset, *, context: FitContext | None = None, seed: int = 0) -> Self:
        """Train the noise predictor on benign images.

        With `context.checkpoint` it goes on from there, and beside it, in NAME_samples.png, some training images, what
        noise makes of them at the deepest timestep, and what the network makes of that show how far it is.
        """
        context = context or FitContext()
        network, checkpoint = self.make_network(data.image_shape, seed).to(context.device), context.checkpoint

        def show(current: nn.Module) -> None:
            assert checkpoint is not None
            some = data.batch(torch.arange(min(SHOWN, len(data)))).to(device_of(current))
            path = checkpoint.with_name(f"{checkpoint.name}_samples.png")
            write_samples(path, self.diffusion, current, some.images, self.config.deepest(), Streams(seed, some.ids))

        train(
            network,
            self.task(),
            data,
            self.config.training,
            seed=seed,
            description="diffusion model",
            checkpoint=checkpoint,
            on_check=None if checkpoint is None else show,
        )
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

    def deepest(self) -> float:
        """The deepest timestep that the network was trained for."""
        deepest: float = self.config.deepest()
        return deepest

    def _scaled(self, images: Tensor) -> tuple[nn.Module, Tensor]:
        """The network, and images in [-1, 1] of its dtype."""
        self.check_fitted()
        assert self.network is not None
        return self.network, self._scaled_for(self.network, images)

    def _scaled_for(self, network: nn.Module, images: Tensor) -> Tensor:
        """Images in [-1, 1] of the dtype of a network of as many channels as this purifier's."""
        if images.shape[1] != self.channels:
            raise InputError(f"this purifier was fitted on {self.channels} channels; got {tuple(images.shape)}")
        return images.to(next(network.parameters()).dtype) * 2 - 1

    def clean(
        self,
        images: Tensor,
        timestep: Tensor,
        steps: Tensor | int,
        *,
        ancestral: bool = False,
        streams: Streams,
        stage: str,
    ) -> Tensor:
        """Images `(N, C, H, W)` in [0, 1], noised to `(N,)` and taken back in `(N,)` evaluations; t <= 0 stays."""
        network, scaled = self._scaled(images)
        moved = self.diffusion.reverse(
            network,
            scaled,
            timestep,
            steps,
            sampler="ddpm" if ancestral else "ddim",
            streams=streams,
            stage=stage,
            keep_low=self.config.sampling.keep_low,
            save_memory=self.config.save_memory,
        )
        cleaned = ((moved + 1) / 2).clamp(0, 1).to(images.dtype)
        return torch.where((timestep > 0)[:, None, None, None], cleaned, images)

    def denoise(self, images: Tensor, timestep: Tensor, *, steps: int, streams: Streams) -> Tensor:
        """Noise images `(N, C, H, W)` in [0, 1] to depth `(N,)` and denoise them in `steps` DDIM evaluations."""
        return self.clean(images, timestep, steps, streams=streams, stage="denoise")

    def predict_noise(self, images: Tensor, timestep: Tensor) -> Tensor:
        """The noise `(N, C, H, W)` of unit variance that the network sees in images in [0, 1] as they are.

        No noise is added: the images stand for ones at depth `(N,)`, one evaluation each.
        """
        network, scaled = self._scaled(images)
        predict = prepared(predicted_noise, network, what="the noise predictor")
        return predict(scaled, timestep.to(scaled.dtype)).to(images.dtype)

    def denoise_once(self, noisy: Tensor, sigma: float) -> Tensor:
        """x0 of images in [0, 1] plus Gaussian noise of std sigma, in one evaluation (Carlini et al. 2023).

        The depth t is where (1 - a_t) / a_t = (2 sigma)^2, the noise's variance in [-1, 1] units.

        Raises:
            InputError: that depth lies before the first timestep, or beyond what the network was trained for.
        """
        network, scaled = self._scaled(noisy)
        level = torch.tensor([-2 * math.log(2 * sigma)], dtype=torch.float64, device=noisy.device)
        timestep = self.diffusion.at_log_snr(level)
        if not 0 < float(timestep) <= self.deepest():
            raise InputError(
                f"noise of std {sigma:g} lies at timestep {float(timestep):.0f}, and this diffusion model was trained "
                f"for those above 0 and up to {self.deepest():g}: choose another sigma, or train it deeper"
            )
        signal, _ = self.diffusion.coefficients(timestep)
        depth = timestep.to(scaled.dtype).expand(len(noisy))
        scaled = scaled * signal.to(scaled.dtype)
        clean = self.diffusion.predict_clean(scaled, network(scaled, depth), depth)
        return ((clean + 1) / 2).clamp(0, 1).to(noisy.dtype)


class DiffusionTask(Task):
    """E w(t) ||eps - eps_theta(x_t, t)||^2 at fractional t, formula (14) of Ho et al. 2020."""

    def __init__(self, purifier: DiffusionPurifier) -> None:
        self.purifier = purifier

    def recipe(self) -> dict[str, Any]:
        """The schedule, the depth, and how timesteps are drawn and weighed."""
        fields = self.purifier.config.model_dump(mode="json", include={"schedule", "objective"})
        return {**fields, "deepest": self.purifier.deepest()}

    def predict(self, model: nn.Module, noisy: Tensor, timestep: Tensor, batch: Batch, streams: Streams) -> Tensor:
        """The noise in images `(N, C, H, W)` in [-1, 1] at timesteps `(N,)`; of the batch nothing else is told."""
        del batch, streams
        predicted: Tensor = model(noisy, timestep)
        return predicted

    def loss(self, model: nn.Module, batch: Batch, streams: Streams) -> Tensor:
        """Mean squared error of the predicted noise on one batch."""
        config, diffusion = self.purifier.config, self.purifier.diffusion
        clean = batch.images * 2 - 1
        share = streams.uniform((1,), stage="timestep", like=clean).squeeze(1)
        timestep = sample_timesteps(diffusion, share, config.deepest(), config.objective.timestep_sampling)
        noise = streams.normal(clean.shape[1:], stage="noise", like=clean)
        predicted = self.predict(model, diffusion.add_noise(clean, noise, timestep), timestep, batch, streams)
        errors = (predicted - noise).square().flatten(1).mean(1)
        if config.objective.weighting == "min_snr":
            snr = diffusion.log_snr(timestep).exp()
            errors = errors * (snr.clamp(max=5) / snr).to(errors.dtype)
        return errors.mean()
