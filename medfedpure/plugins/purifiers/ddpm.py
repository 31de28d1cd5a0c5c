"""Diffusion purification with a depth of its own for each image.

After DiffPure (Nie et al. 2022, arXiv 2205.07460) and MedFedPure (arXiv 2511.11625): noise an image
to depth t*, then run the reverse process. Here t* follows the detector's score,

    t* = t_min + strength * (t_max - t_min),

continuous. The way back takes a handful of DDIM steps (Song et al. 2021, arXiv 2010.02502), with
`adaptive_steps` ceil(num_inference_steps t* / t_max) of them; ceil(t*) in ancestral sampling; or one, the
estimate of x0. At a fractional t the log-SNR is interpolated between integer timesteps, where
everything equals diffusers' schedulers; the network is trained on fractional timesteps. Images are in
[0, 1] outside and in [-1, 1] inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from medfedpure.core.attack import Attack
from medfedpure.core.config import Config
from medfedpure.core.dataset import Batch, ImageDataset
from medfedpure.core.detector import FitContext
from medfedpure.core.errors import InputError
from medfedpure.core.metrics import classification_figures
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification, State
from medfedpure.core.storage import load_strictly
from medfedpure.core.streams import Streams, derive_seed, isolated_rng
from medfedpure.core.training import Task, TrainingConfig, train
from medfedpure.models.diffusion import Diffusion, sample_timesteps
from medfedpure.models.unet import NoiseUNet
from medfedpure.plugins.purifiers.samples import write_samples

SHOWN = 8
"""Images in the picture of samples."""


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
    num_inference_steps: int = Field(5, ge=1, description="DDIM steps, each one network evaluation")
    adaptive_steps: bool = Field(
        False,
        description="DDIM steps in proportion to the depth: ceil(num_inference_steps t* / t_max), not all for all",
    )

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
        """Train the noise predictor on benign images.

        With `context.checkpoint` it goes on from there, and beside it, in NAME_samples.png, some training images, what
        noise makes of them at the deepest timestep, and what the network makes of that show how far it is.
        """
        network = self.make_network(data.image_shape, seed)
        checkpoint = None if context is None else context.checkpoint

        def show(current: nn.Module, done: int) -> None:
            del done
            assert checkpoint is not None
            some = data.batch(torch.arange(min(SHOWN, len(data)))).to(next(current.parameters()).device)
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

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        c = self.config
        self.depth = Depth(c.t_min, c.t_max, c.num_inference_steps)

    def evaluations(self, timestep: Tensor) -> Tensor:
        """Network evaluations `(N,)` int64 of depths `(N,)`; none at t = 0."""
        sampler, depth, deep = self.config.sampler, self.depth, timestep.detach().double()
        if sampler == "one_step":
            return (deep > 0).long()
        if sampler == "ddim" and not self.config.adaptive_steps:
            return depth.steps * (deep > 0).long()
        wanted = deep if sampler == "ddpm" else depth.steps * deep / max(depth.t_max, 1e-12)
        # float noise in t* must not cost a step
        return (wanted - 1e-6).ceil().long().clamp_min(0)

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:
        """`(N, C, H, W)` cleaned at t* = t_min + strength (t_max - t_min)."""
        timestep = self.depth.t_min + strength * (self.depth.t_max - self.depth.t_min)
        steps = self.evaluations(timestep)
        ancestral = self.config.sampler == "ddpm"
        cleaned = self.clean(images, timestep, steps, ancestral=ancestral, streams=streams, stage="purify")
        return Purification(cleaned, steps, timestep)

    def fitted_state(self) -> State:
        """The network's tensors, and the depth as it was configured or tuned."""
        assert self.network is not None
        return State.of(self.network, channels=self.channels, depth=asdict(self.depth))

    def restore(self, state: State) -> None:
        """Rebuild the network, load it strictly, and take the depth back."""
        super().restore(state)
        self.depth = Depth(**state.values["depth"])

    @torch.no_grad()
    def tune(
        self,
        data: ImageDataset,
        attack: Attack,
        *,
        classifier: nn.Module,
        depths: Sequence[float] = (20, 40, 60, 80, 100, 120, 140),
        steps: Sequence[int] = (1, 2, 3, 5),
        clean_drop: float = 0.02,
        margin: float = 0.02,
        mild_margin: float = 0.1,
        seed: int = 0,
    ) -> list[TuningRow]:
        """Choose t_min, t_max and steps on images of their own, before `calibrate`; the choice is saved.

        Every image is purified at every depth in every number of steps, benign and attacked (statically, on the
        bare classifier). Of the settings whose balanced accuracy on benign images falls by at most `clean_drop`,
        or, if there is none, falls least, the best restores most; t_max and steps are the cheapest setting, by
        steps, then depth, that restores within `margin` of it, and t_min is the smallest depth that still
        restores within `mild_margin`, in as many steps as its depth then gets.

        Args:
            data: benign images with labels, of no other part.
            attack: crafted here on the bare classifier.
            classifier: images to logits.
            depths: up to the deepest timestep that the network was trained for.
            steps: numbers of DDIM evaluations.
            clean_drop, margin, mild_margin: in balanced accuracy, [0, 1].
            seed: of the noise.

        Returns:
            What was measured at every setting.

        Raises:
            InputError: a depth beyond what the network was trained for, or no setting to choose from.
        """
        self.check_fitted()
        if not depths or not steps or max(depths) > self.config.t_max:
            raise InputError(f"depths up to t_max = {self.config.t_max:g} are wanted, and steps; got {depths}, {steps}")
        images, streams = data.images, Streams(derive_seed(seed, "tune"), data.ids)
        with torch.enable_grad():
            attacked = attack(classifier, images, data.labels, streams=streams).images

        def accuracy(given: Tensor) -> float:
            verdicts = torch.cat([classifier(part).argmax(1) for part in given.split(64)])
            return classification_figures(verdicts, data.labels, data.num_classes).balanced_accuracy

        def cleaned(given: Tensor, depth: float, count: int) -> Tensor:
            parts = torch.arange(len(given)).split(64)
            return torch.cat(
                [
                    self.denoise(given[p], given.new_full((len(p),), depth), steps=count, streams=streams.select(p))
                    for p in parts
                ]
            )

        rows = [
            TuningRow(depth, count, accuracy(cleaned(images, depth, count)), accuracy(cleaned(attacked, depth, count)))
            for depth in depths
            for count in steps
        ]
        self.depth = choose_depth(rows, accuracy(images), clean_drop, margin, mild_margin)
        return rows


@dataclass(frozen=True)
class Depth:
    """Depth at strength 0 and at strength 1, and DDIM evaluations at the latter."""

    t_min: float
    t_max: float
    steps: int


@dataclass(frozen=True)
class TuningRow:
    """Balanced accuracy of benign and of attacked images, all purified at one depth in so many steps."""

    depth: float
    steps: int
    clean: float
    restored: float


def choose_depth(rows: Sequence[TuningRow], bare: float, clean_drop: float, margin: float, mild_margin: float) -> Depth:
    """The rule of `DDPM.tune`, `bare` the balanced accuracy of benign images that nothing purified."""
    gentle = [row for row in rows if row.clean >= bare - clean_drop] or [max(rows, key=lambda row: row.clean)]
    best = max(row.restored for row in gentle)
    chosen = min((r for r in gentle if r.restored >= best - margin), key=lambda row: (row.steps, row.depth))
    mild = [r.depth for r in gentle if r.restored >= best - mild_margin and r.depth <= chosen.depth]
    return Depth(min(mild), chosen.depth, chosen.steps)


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
