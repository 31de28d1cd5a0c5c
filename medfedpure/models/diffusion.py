"""The forward and the reverse process of a diffusion model, at a depth of its own for each image.

Forward (Ho et al. 2020, arXiv 2006.11239): x_t = sqrt(a_t) x + sqrt(1 - a_t) eps, a_t the product of
1 - beta up to t. Here t may be fractional: the log-SNR is interpolated between integer timesteps, where
everything equals diffusers' schedulers, and t <= 0 is the clean image. Images are in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from medfedpure.acceleration.compiled import prepared
from medfedpure.core.streams import Streams
from medfedpure.models.unet import noise_levels

Sampler = Literal["ddim", "ddpm"]
Network = Callable[[Tensor, Tensor], Tensor]


class Diffusion(nn.Module):
    """A noise schedule, its steps, and the reverse process of a batch of mixed depths.

    Args:
        schedule: "linear" betas or "cosine".
        beta_start, beta_end: of the linear schedule.
        timesteps: length T.
    """

    def __init__(self, schedule: str, beta_start: float, beta_end: float, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps
        self.register_buffer("levels", noise_levels(beta_start, beta_end, timesteps, schedule), persistent=False)

    def coefficients(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t), sqrt(1 - a_t) at fractional timesteps `(N,)`, float64; 1 and 0 at t <= 0."""
        clamped = timestep.to(torch.float64).clamp(0, self.timesteps - 1)
        lower = clamped.detach().floor().long().clamp(max=self.timesteps - 2)
        share = clamped - lower
        levels = self.get_buffer("levels").to(timestep.device, torch.float64)
        level = levels[lower] * (1 - share) + levels[lower + 1] * share
        started = timestep > 0
        signal = torch.where(started, torch.sigmoid(level).sqrt(), 1.0)
        noise = torch.where(started, torch.sigmoid(-level).sqrt(), 0.0)
        return signal, noise

    def log_snr(self, timestep: Tensor) -> Tensor:
        """log(a_t / (1 - a_t)) at timesteps `(N,)` > 0, float64."""
        signal, noise = self.coefficients(timestep)
        return 2 * (signal.log() - noise.log())

    def at_log_snr(self, level: Tensor) -> Tensor:
        """The fractional timesteps `(N,)` of log-SNR values `(N,)`: the inverse of `log_snr` on [0, T - 1]."""
        levels = self.get_buffer("levels").to(level)
        place = torch.searchsorted(-levels, -level).clamp(1, self.timesteps - 1)
        above, below = levels[place - 1], levels[place]
        return place - 1 + ((above - level) / (above - below)).clamp(0, 1)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """sqrt(a_t) x + sqrt(1 - a_t) noise for `(N, C, H, W)`; `(N,)` timesteps."""
        signal, sigma = (column(value, clean) for value in self.coefficients(timestep))
        return signal * clean + sigma * noise

    def predict_clean(self, noisy: Tensor, predicted: Tensor, timestep: Tensor) -> Tensor:
        """x0 = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t), clipped to [-1, 1]."""
        signal, sigma = (column(value, noisy) for value in self.coefficients(timestep))
        return ((noisy - sigma * predicted) / signal).clamp(-1, 1)

    def ddim_step(self, clean: Tensor, predicted: Tensor, previous: Tensor) -> Tensor:
        """sqrt(a_prev) x0 + sqrt(1 - a_prev) eps: formula (12) of Song et al. 2021 (arXiv 2010.02502), eta = 0."""
        signal, sigma = (column(value, clean) for value in self.coefficients(previous))
        return signal * clean + sigma * predicted

    def ddpm_step(self, noisy: Tensor, clean: Tensor, now: Tensor, previous: Tensor, noise: Tensor) -> Tensor:
        """A draw from the posterior q(x_prev | x_now, x0), formulas (6) and (7) of Ho et al. 2020.

        With a = a_now / a_prev: mean = sqrt(a_prev) (1 - a) / (1 - a_now) x0 + sqrt(a) (1 - a_prev) / (1 - a_now)
        x_now; variance (1 - a_prev) / (1 - a_now) (1 - a), zero at the last step.
        """
        (signal, sigma), (signal_prev, sigma_prev) = self.coefficients(now), self.coefficients(previous)
        ratio = signal / signal_prev
        # 1 - a_now / a_prev without cancellation
        lost = (sigma**2 - sigma_prev**2) / signal_prev**2
        of_clean, of_noisy = signal_prev * lost / sigma**2, ratio * sigma_prev**2 / sigma**2
        variance = sigma_prev**2 / sigma**2 * lost
        moving = variance > 0  # at the last step nothing is drawn, and the root of 0 has no gradient
        spread = torch.where(moving, variance, 1.0).sqrt() * moving
        mean = column(of_clean, clean) * clean + column(of_noisy, clean) * noisy
        return mean + column(spread, clean) * noise

    def reverse(
        self,
        network: Network,
        images: Tensor,
        timestep: Tensor,
        steps: Tensor | int,
        *,
        sampler: Sampler = "ddim",
        streams: Streams,
        stage: str,
        keep_low: float = 0.0,
        save_memory: bool = True,
    ) -> Tensor:
        """Noise every image to its own depth and take it back in its own number of steps.

        One dense batch for each step; the images with most steps stay longest, and the others leave as they
        finish, so the cost is the sum of all images' own network evaluations.

        Args:
            network: noise predicted in `(N, C, H, W)` at `(N,)`.
            images: `(N, C, H, W)` in [-1, 1].
            timestep: `(N,)` depths; differentiable.
            steps: network evaluations of each image, `(N,)` int64, or one number for all; 0 leaves an image as it is.
                A tensor that is not on the CPU costs a device synchronization, the only one.
            sampler: "ddim" (deterministic after the first noise) or "ddpm" (fresh noise at each step).
            streams: of the images.
            stage: name of the noise.
            keep_low: std in pixels of the Gaussian below whose frequencies the input is kept; 0 = none.
            save_memory: recompute activations in the backward pass, so that memory does not grow with steps.
        """
        own, start, depth, back = streams, images, timestep, None
        current = self.add_noise(images, streams.normal(images.shape[1:], stage=stage, like=images), timestep)
        if isinstance(steps, int):
            counts, total = [steps] * len(images), torch.full((len(images),), steps, device=images.device)
        else:
            known = steps.cpu()
            order = known.argsort(descending=True, stable=True)
            counts, own, total = known[order].tolist(), streams.select(order), _beside(known[order], images)
            order, back = _beside(order, images), _beside(order.argsort(), images)
            current, start, depth = current[order], start[order], depth[order]
        started = column((total > 0).to(images), images) > 0
        total = total.to(timestep.dtype)
        how: dict[str, Any] = {"diffusion": self, "sampler": sampler, "keep_low": keep_low}
        step = prepared(reverse_step, network, what="a step of the reverse process", **how)
        left: list[Tensor] = []
        for place in range(counts[0] if counts else 0):
            active = sum(count > place for count in counts)
            if active < len(current):
                left.append(current[active:])
                current, own = current[:active], own.select(torch.arange(active))
            now = depth[:active] * ((total[:active] - place) / total[:active])
            after = depth[:active] * ((total[:active] - place - 1) / total[:active])
            given: tuple[Tensor, ...] = (current, now, after, start[:active])
            if sampler == "ddpm":
                given += (own.normal(images.shape[1:], stage=f"{stage} ancestral", draw=place, like=images),)
            if save_memory and torch.is_grad_enabled() and current.requires_grad:
                current = checkpoint(step, *given, use_reentrant=False, preserve_rng_state=False)
            else:
                current = step(*given)
        left.append(current)
        moved = torch.where(started, torch.cat(left[::-1]), start)
        return moved if back is None else moved[back]


def reverse_step(
    network: Network,
    current: Tensor,
    now: Tensor,
    after: Tensor,
    start: Tensor,
    fresh: Tensor | None = None,
    *,
    diffusion: Diffusion,
    sampler: Sampler,
    keep_low: float,
) -> Tensor:
    """One step back of `(N, C, H, W)`, from timesteps `(N,)` to `(N,)`: one network evaluation.

    Args:
        network: see `Diffusion.reverse`.
        current: `(N, C, H, W)` in [-1, 1], noised to `now`.
        now: `(N,)`.
        after: `(N,)`, below `now`.
        start: `(N, C, H, W)`, what was noised.
        fresh: `(N, C, H, W)` noise, of the sampler "ddpm".
        diffusion: its noise levels.
        sampler: see `Diffusion.reverse`.
        keep_low: see `Diffusion.reverse`.
    """
    predicted = network(current, now.to(current.dtype))
    clean = diffusion.predict_clean(current, predicted, now)
    if keep_low:
        clean = clean + low_frequencies(start - clean, keep_low)
    if sampler == "ddim":
        return diffusion.ddim_step(clean, predicted, after)
    assert fresh is not None
    return diffusion.ddpm_step(current, clean, now, after, fresh)


def predicted_noise(network: Network, noisy: Tensor, timestep: Tensor) -> Tensor:
    """The noise `(N, C, H, W)` in images `(N, C, H, W)` in [-1, 1] at timesteps `(N,)`, in one evaluation."""
    return network(noisy, timestep)


def _beside(known: Tensor, images: Tensor) -> Tensor:
    """What the host knows, where the images are, without waiting for them."""
    return known.to(images.device, non_blocking=True)


def column(value: Tensor, like: Tensor) -> Tensor:
    """`(N,)` as `(N, 1, 1, 1)` of another tensor's dtype."""
    return value.to(like.dtype)[:, None, None, None]


def low_frequencies(images: Tensor, sigma: float) -> Tensor:
    """`(N, C, H, W)` blurred by a Gaussian of `sigma` pixels, borders repeated."""
    radius = min(max(round(3 * sigma), 1), *(side - 1 for side in images.shape[2:]))
    line = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-0.5 * (line / sigma) ** 2)
    weights = weights / weights.sum()
    channels = images.shape[1]
    across, down = weights.reshape(1, 1, 1, -1), weights.reshape(1, 1, -1, 1)
    for kernel, border in ((across, (radius, radius, 0, 0)), (down, (0, 0, radius, radius))):
        padded = functional.pad(images, border, mode="replicate")
        images = functional.conv2d(padded, kernel.expand(channels, -1, -1, -1), groups=channels)
    return images


def sample_timesteps(
    diffusion: Diffusion, share: Tensor, deepest: float, kind: Literal["uniform", "log_snr"]
) -> Tensor:
    """Timesteps `(N,)` in (0, deepest] from uniform numbers `(N,)` in [0, 1).

    "uniform" in t, or uniform in log-SNR between t = 1 and the deepest, which dwells on the shallow ones.
    """
    if kind == "uniform":
        return (1 - share) * deepest
    ends = diffusion.log_snr(torch.tensor([1.0, deepest], device=share.device))
    level = ends[1] + (ends[0] - ends[1]) * share.to(torch.float64)
    return diffusion.at_log_snr(level).to(share.dtype)
