"""A masked autoencoder of timm blocks (He et al. 2022, arXiv 2111.06377) that also denoises.

Masked patches are painted in from the visible ones; visible patches come back as input plus a
predicted correction, so that the network can also learn to remove small perturbations.
"""

from __future__ import annotations

import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class MaskedAutoencoder(nn.Module):
    """ViT encoder over visible patches, lighter decoder over all of them.

    Args:
        channels: C.
        image_size: side of the square images, a multiple of the patch size.
        patch_size: side of a patch.
        width, depth, heads: of the encoder.
        decoder_width, decoder_depth: of the decoder.
    """

    def __init__(
        self,
        channels: int,
        image_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        decoder_width: int,
        decoder_depth: int,
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.side = image_size // patch_size
        self.patches = self.side**2
        values = channels * patch_size**2
        self.embed = PatchEmbed(image_size, patch_size, channels, width)
        self.position = nn.Parameter(torch.randn(1, self.patches, width) * 0.02)
        self.encoder = nn.Sequential(*[Block(width, heads, qkv_bias=True) for _ in range(depth)])
        self.encoder_norm = nn.LayerNorm(width)
        self.narrow = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.randn(1, 1, decoder_width) * 0.02)
        self.decoder_position = nn.Parameter(torch.randn(1, self.patches, decoder_width) * 0.02)
        self.decoder = nn.Sequential(*[Block(decoder_width, heads, qkv_bias=True) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(decoder_width)
        self.paint = nn.Linear(decoder_width, values)
        self.correct = nn.Linear(decoder_width, values)
        nn.init.zeros_(self.correct.weight)
        nn.init.zeros_(self.correct.bias)

    def to_patches(self, images: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, L, C * p * p)`."""
        return pixel_unshuffle(images, self.patch_size).flatten(2).transpose(1, 2)

    def to_images(self, patches: Tensor) -> Tensor:
        """`(N, L, C * p * p)` to `(N, C, H, W)`."""
        return pixel_shuffle(patches.transpose(1, 2).unflatten(2, (self.side, self.side)), self.patch_size)

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Reconstructed patches.

        Args:
            images: `(N, C, H, W)`.
            masked: `(N, L)` bool, True where a patch is hidden; equally many in every row.

        Returns:
            `(N, L, C * p * p)`: painted where masked, input plus correction where visible.
        """
        count = len(images)
        visible = (~masked).nonzero()[:, 1].reshape(count, -1)
        tokens = self.embed(images) + self.position
        kept = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[2]))
        encoded = self.narrow(self.encoder_norm(self.encoder(kept)))
        filled = self.mask_token.expand(count, self.patches, -1).to(encoded.dtype)
        filled = filled.scatter(1, visible[..., None].expand(-1, -1, encoded.shape[2]), encoded)
        decoded = self.decoder_norm(self.decoder(filled + self.decoder_position))
        corrected = self.to_patches(images) + self.correct(decoded)
        return torch.where(masked[..., None], self.paint(decoded), corrected)
