"""Pictures of any size as centred squares of whole numbers: padded with black, never stretched, resized by Lanczos."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor

from medfedpure.core.dataset import bits_of

if TYPE_CHECKING:  # pictures are read where NumPy is not installed
    import numpy
    from numpy.typing import NDArray


def square_of(image: Image.Image, size: int, pixel_bits: Literal[8, 16]) -> Tensor:
    """A picture of mode L, RGB, or F of 0 ... 65535, as `(C, size, size)` uint8 or uint16; F gives uint16 always.

    Lanczos averages over all pixels when shrinking, and unlike a box keeps thin structures at 28 to 64 pixels; its
    slight overshoot at edges is clipped.
    """
    side = max(image.size)
    if image.width != image.height:
        square = Image.new(image.mode, (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    if side != size:
        # The gap lets very large pictures be averaged in whole steps first.
        image = image.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if image.mode == "F":
        grey = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32).round_().clamp_(0, 65535)
        return grey.to(torch.int32).to(torch.uint16).reshape(1, size, size)
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    values = values.reshape(size, size, len(image.getbands())).permute(2, 0, 1)
    return values if pixel_bits == 8 else (values.to(torch.int32) * 257).to(torch.uint16)


def square_of_shares(shares: NDArray[numpy.float32], size: int, aspect: float = 1.0) -> Tensor:
    """A picture `(C, H, W)` in [0, 1] as `(C, size, size)` uint16, where 1 is 65535.

    Args:
        shares: of white.
        size: of the square.
        aspect: how much higher than wide a pixel is; others than 1 are made square.
    """
    planes = []
    for plane in shares:
        image = Image.fromarray(plane * 65535)
        if abs(aspect - 1) > 0.01:
            image = _with_square_pixels(image, size, aspect)
        planes.append(bits_of(square_of(image, size, 16)))
    return torch.cat(planes).view(torch.uint16)


def to_eight_bits(pixels: Tensor) -> Tensor:
    """Pixels of any shape, uint16 to the nearest of uint8; 65535 becomes 255."""
    return ((pixels.to(torch.int32) * 255 + 32767) // 65535).to(torch.uint8)


def _with_square_pixels(image: Image.Image, size: int, aspect: float) -> Image.Image:
    """The picture as large as the square holds it, whatever its pixels are like."""
    height, width = image.height * aspect, float(image.width)
    scale = size / max(height, width)
    shape = (max(round(width * scale), 1), max(round(height * scale), 1))
    return image.resize(shape, Image.Resampling.LANCZOS)
