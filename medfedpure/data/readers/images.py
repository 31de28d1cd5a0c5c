"""Image files as people have them: which files are images, and one file as a square of whole numbers.

A file is an image when its ending says so (`ENDINGS`) or when its first bytes do; the decoder goes by
the bytes alone, so a PNG named .jpg is read, and a text named .jpg is an error. Everything else
(groups.csv, notes) is passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal

import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from torch import Tensor

from medfedpure.core.errors import DataError
from medfedpure.data.readers.deep_colour import layout_of, read_values
from medfedpure.data.readers.folders import what_else
from medfedpure.data.readers.squares import square_of

ENDINGS = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"})
# A reader registers itself when imported. No other is ever tried: some of Pillow's start programs.
_READERS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
_FORMATS = tuple(
    name for name in ("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP") if name in Image.OPEN
)  # WebP is not in every build
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"GIF87a", b"GIF89a")
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0


def is_image(path: Path) -> bool:
    """Whether a file claims, by its ending or its first bytes, to be an image; it may still be damaged."""
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        if what_else(path):
            return False
        with path.open("rb") as stream:
            head = stream.read(12)
    except OSError:
        return False
    # Two letters alone would take a text that begins with "BM" for a bitmap.
    bitmap = head[:2] == b"BM" and head[6:10] == bytes(4)
    return bitmap or head.startswith(_SIGNATURES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


@dataclass(frozen=True)
class Decoder:
    """Reads one file as `(channels, image_size, image_size)` uint8 or uint16.

    The picture is turned as its EXIF orientation says, laid over black where it is transparent,
    padded with black to a centred square (never stretched), then resized with Lanczos: it averages
    over all pixels when shrinking, and unlike a box keeps thin structures at 28 to 64 pixels;
    its slight overshoot at edges is clipped.

    Files of 16 bits, grey or colour, are scaled by the range that the file declares: 65535, or for a TIFF
    with fewer bits per sample that range; never by the picture's own extremes, which would give every
    picture another contrast. Many scanners store 12 bits in 16 without saying so: `bit_depth` says it.
    Of CMYK and of premultiplied colour of 16 bits the upper 8 are read, and `bit_depth` is refused.

    Attributes:
        image_size: height and width in pixels.
        channels: 1 = luminance (ITU-R 601), 3 = RGB.
        bit_depth: bits really used by files of 16 bits; None = what the file declares.
        pixel_bits: of the result. With 16 the scaled range is 0 ... 65535, and files of 8 bits are multiplied by 257.
        dim: collects the 16-bit files that use less than a sixteenth of their declared range.
    """

    image_size: int
    channels: int
    bit_depth: int | None = None
    pixel_bits: Literal[8, 16] = 8
    dim: list[Path] = field(default_factory=list)

    def read(self, path: Path) -> Tensor:
        """Decode one file.

        Raises:
            DataError: the file is damaged, too large, holds several pictures or has no known range;
                the text is the reason without the file's name.
        """
        try:
            if other := what_else(path):
                raise DataError(f"it is {other}, not a file")
            planes = [square_of(picture, self.image_size, self.pixel_bits) for picture in self._flat(path)]
            if len(planes) == 1 and len(planes[0]) == 1:
                planes *= self.channels
            return torch.cat(planes)
        except UnidentifiedImageError as error:
            raise DataError(_why_unknown(path)) from error
        except DataError:
            raise
        except Exception as error:  # Pillow's readers raise almost anything on damaged files
            if isinstance(error, OSError) and error.strerror:  # the system refuses, in a text that names the file
                raise DataError(f"it cannot be read: {error.strerror}") from error
            raise DataError(f"{error}" or type(error).__name__) from error

    def is_deep(self, path: Path) -> bool:
        """Whether a file holds more than 8 bits a value; False where it cannot be opened."""
        try:
            if what_else(path):
                return False
            with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as opened:
                deep = _is_sixteen(opened, opened.format) or bool(layout_of(opened))
                return deep and self._bits(_tags(opened)) > 8
        except Exception:  # as in `read`, which says what is wrong
            return False

    def _flat(self, path: Path) -> list[Image.Image]:
        """The upright picture in mode L or RGB; where it keeps 16 bits, in F, one for grey and three for colour."""
        # Given a path, Pillow maps uncompressed TIFFs into memory, and garbles those that are to be turned.
        with path.open("rb") as stream, Image.open(stream, formats=_FORMATS) as opened:
            kind = opened.format
            frames = getattr(opened, "n_frames", 1)
            # MPO is a JPEG followed by further views, as cameras write it: the first one is the picture.
            if frames > 1 and kind != "MPO":
                raise DataError(f"holds {frames} pictures, one is wanted: a volume is read slice by slice")
            side, limit = max(opened.size), Image.MAX_IMAGE_PIXELS
            if limit is not None and side * side > limit:
                raise DataError(
                    f"{opened.width}x{opened.height} would be a square of more than {limit} pixels: "
                    "shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
                )
            tags, layout = _tags(opened), layout_of(opened)
            if layout:
                return self._colour(stream, layout, opened.info.get("transparency"), tags, path)
            if layout == "" and self.bit_depth not in (None, 16):
                raise DataError(
                    f"bit_depth={self.bit_depth} cannot be applied to its {opened.mode} colour of 16 bits, of which "
                    "only the upper 8 are read: save it as RGB, or as colour of 8 bits"
                )
            image = ImageOps.exif_transpose(opened)
        if _is_sixteen(image, kind):
            image = self._scaled(image, tags, path)
            if self.pixel_bits == 16:
                return [image]
        elif image.mode in ("I", "F"):
            raise DataError(
                f"its {image.mode!r} pixels (32-bit or signed) have no known range: save it as 8 or 16 bits"
            )
        elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        elif image.mode != "L":
            image = image.convert("RGB")
        return [image.convert("L" if self.channels == 1 else "RGB")]

    def _colour(
        self, stream: BinaryIO, layout: str, clear: object, tags: dict[int, object], path: Path
    ) -> list[Image.Image]:
        """Colour of 16 bits over black, over the range of the result, as `_flat` gives it.

        Args:
            stream: of the file.
            layout: how it keeps its values.
            clear: the one colour that is transparent, if there is one.
            tags: of a TIFF.
            path: for `dim`.
        """
        values = read_values(stream, layout, _FORMATS)
        colour, opacity = (values[..., :-1], values[..., -1:]) if values.shape[2] in (2, 4) else (values, None)
        top = self._top(self._bits(tags), int(colour.max()), path)
        if isinstance(clear, tuple):
            colour = colour * (colour != torch.tensor(clear)).any(2, keepdim=True)
        share = colour.float() / top
        if opacity is not None:
            share *= opacity / (top if int(opacity.max()) <= top else 65535)
        if self.channels == 1 and share.shape[2] == 3:
            share = (share * share.new_tensor([0.299, 0.587, 0.114])).sum(2, keepdim=True)
        height, width, bands = share.shape
        if self.pixel_bits == 16:
            planes = (share * 65535).permute(2, 0, 1).contiguous()
            return [Image.frombytes("F", (width, height), plane.numpy().tobytes()) for plane in planes]
        flat = (share * 255).round().to(torch.uint8).contiguous().numpy().tobytes()
        image = Image.frombytes("L" if bands == 1 else "RGB", (width, height), flat)
        return [image.convert("L" if self.channels == 1 else "RGB")]

    def _bits(self, tags: dict[int, object]) -> int:
        """That a value of 16 bits really uses."""
        declared = tags.get(_BITS_PER_SAMPLE, 16)
        return self.bit_depth or int(declared[0] if isinstance(declared, tuple) else str(declared))

    def _top(self, bits: int, largest: int, path: Path) -> int:
        """The value that stands for white, after a look at the largest there is."""
        top: int = 2**bits - 1
        if largest > top:
            raise DataError(f"holds the value {largest}, above {top}: bit_depth={bits} is too small")
        if 0 < largest <= top // 16:
            self.dim.append(path)
        return top

    def _scaled(self, image: Image.Image, tags: dict[int, object], path: Path) -> Image.Image:
        """Grey of 16 bits over the range of the result: in mode F, or with 8 bits rounded in mode L."""
        image = image.convert("I")
        top = self._top(self._bits(tags), int(image.getextrema()[1]), path)  # type: ignore[arg-type]
        white, half = (255.0, 0.5) if self.pixel_bits == 8 else (65535.0, 0.0)
        scale, black = white / top, half
        if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts such files only up to 8 bits
            scale, black = -scale, white + half
        grey = image.convert("F").point(lambda value: value * scale + black)
        # Half a step was added because the conversion to L cuts.
        return grey.convert("L") if self.pixel_bits == 8 else grey


def _why_unknown(path: Path) -> str:
    """Why what is in a file is no picture."""
    try:
        return "not a JPEG, PNG, TIFF, BMP, GIF or WebP that can be read" if path.stat().st_size else "empty file"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"


def _is_sixteen(image: Image.Image, kind: str | None) -> bool:
    """Whether a picture of a format is grey of 16 bits; older versions of Pillow read such a PNG in mode I."""
    return image.mode.startswith("I;16") or (image.mode == "I" and kind == "PNG")


def _tags(image: Image.Image) -> dict[int, object]:
    """A TIFF's; of other formats none."""
    return dict(getattr(image, "tag_v2", {}))
