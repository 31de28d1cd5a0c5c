"""A diffusers U-Net that works on pixel-unshuffled images: about r^2 cheaper at equal resolution."""

from __future__ import annotations

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle

from medfedpure.core.errors import InputError

GROUPS = 8
"""Of each normalization."""


class NoiseUNet(nn.Module):
    """Predicts the noise in images; timesteps may be fractional and differ within a batch.

    Args:
        channels: C of the images.
        widths: channels of each resolution level.
        layers_per_block: residual blocks at each level.
        unshuffle: r; r x r pixels become channels before the first convolution.
        classes: K; a vector of each class, and one of none, is added to that of the timestep. 0 = knows of no classes.
        attention: self-attention at the coarsest level, on the way down, in the middle and on the way up.
    """

    def __init__(
        self,
        channels: int,
        widths: tuple[int, ...],
        layers_per_block: int,
        unshuffle: int,
        classes: int = 0,
        *,
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.unshuffle = unshuffle
        self.classes = classes
        self.multiple = unshuffle * 2 ** (len(widths) - 1)
        self.widest = widths[-1]
        attend, plain = "Attn" if attention else "", len(widths) - 1
        self.network = UNet2DModel(
            in_channels=channels * unshuffle**2,
            out_channels=channels * unshuffle**2,
            block_out_channels=widths,
            layers_per_block=layers_per_block,
            down_block_types=("DownBlock2D",) * plain + (f"{attend}DownBlock2D",),
            up_block_types=(f"{attend}UpBlock2D",) + ("UpBlock2D",) * plain,
            norm_num_groups=GROUPS,
            add_attention=attention,
            num_class_embeds=classes + 1 if classes else None,
        )

    def forward(self, noisy: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        """Noise `(N, C, H, W)` in images `(N, C, H, W)` at timesteps `(N,)`; any H and W but the smallest.

        With classes, of images of labels `(N,)` int64 in 0 ... K; K, or no labels, leave the class open.

        Raises:
            InputError: images so small that nothing is left to normalize.
        """
        height, width = noisy.shape[2:]
        missing = (-width % self.multiple, -height % self.multiple)
        sides = [(side + more) // self.multiple for side, more in zip((height, width), missing[::-1], strict=True)]
        if self.widest // GROUPS * sides[0] * sides[1] < 2:
            raise InputError(
                f"images of {height} x {width} are folded to {sides[0]} x {sides[1]} by unshuffle {self.unshuffle} and "
                f"{len(self.network.config.block_out_channels)} levels, which leaves a group normalization one value: "
                "choose a smaller unshuffle or fewer widths, or larger images"
            )
        padded = pad(noisy, (0, missing[0], 0, missing[1]), mode="replicate") if any(missing) else noisy
        folded = pixel_unshuffle(padded, self.unshuffle)
        if self.classes and labels is None:
            labels = torch.full((len(noisy),), self.classes, device=noisy.device)
        predicted: Tensor = pixel_shuffle(self.network(folded, timestep, labels).sample, self.unshuffle)
        return predicted[:, :, :height, :width]


def noise_levels(beta_start: float, beta_end: float, timesteps: int, schedule: str) -> Tensor:
    """log(alpha_bar / (1 - alpha_bar)) of diffusers' schedule at the integer timesteps, `(T,)` float64."""
    from diffusers import DDPMScheduler

    names = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
    scheduler = DDPMScheduler(
        num_train_timesteps=timesteps, beta_start=beta_start, beta_end=beta_end, beta_schedule=names[schedule]
    )
    kept = scheduler.alphas_cumprod.to(torch.float64)
    return torch.log(kept) - torch.log1p(-kept)
