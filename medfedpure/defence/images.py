"""What images a defence is for: a record that goes where the defence goes, and refuses others in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from medfedpure.core.component import check_types
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ArtifactError, InputError

_DEEPEST = 65535


@dataclass(frozen=True)
class ImageFacts:
    """Shape, classes and depth of the images that a defence was fitted on.

    Attributes:
        image_shape: (C, H, W).
        class_names: K different names in the order of the logits; () where unknown.
        top: the pixel that stands for 1.0, such as 255, or 4095 for 12 bits; 0 where unknown.

    Raises:
        InputError: a shape that is none, one class alone, names that are no texts or equal, a pixel beyond 16 bits.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...] = ()
    top: int = 0

    def __post_init__(self) -> None:
        shape, names, top = self.image_shape, self.class_names, self.top
        if not _are_whole(shape) or len(shape) != 3 or min(shape) < 1:
            raise InputError(f"an image has the shape (C, H, W), whole numbers from 1; got {shape!r:.80}")
        texts = isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)
        if not texts or len(set(names)) != len(names) or len(names) == 1:
            raise InputError(f"class names are two or more different texts, or () where unknown; got {names!r:.200}")
        if not _are_whole((top,)) or not 0 <= top <= _DEEPEST:
            raise InputError(f"top is a pixel of at most 16 bits, or 0 where unknown; got {top!r:.80}")

    @classmethod
    def of(cls, data: ImageDataset, classes: int) -> Self:
        """Those of a data set for a classifier of K classes; its class names where they are K."""
        names = data.class_names if data.num_classes == classes else ()
        return cls(data.image_shape, names, data.top)

    def document(self) -> dict[str, Any]:
        """As plain values."""
        return {"image_shape": list(self.image_shape), "class_names": list(self.class_names), "top": self.top}

    @classmethod
    def read(cls, document: Any, where: str) -> Self:
        """From what `document` gave.

        Raises:
            ArtifactError: it was not saved so.
        """
        wanted = {"image_shape": list, "class_names": list, "top": int}
        if not isinstance(document, dict) or document.keys() != wanted.keys():
            raise ArtifactError(f"{where} does not say what images it is for as this version saves it: restore it")
        check_types(document, wanted, where)
        try:
            return cls(tuple(document["image_shape"]), tuple(document["class_names"]), document["top"])
        except (InputError, TypeError) as error:
            raise ArtifactError(f"{where} says of its images what cannot be: {error}") from error

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError unless images of that (N, C, H, W) are of this (C, H, W)."""
        if tuple(shape[1:]) != self.image_shape:
            wanted = ", ".join(map(str, self.image_shape))
            raise InputError(
                f"images of shape {tuple(shape)} came, and this defence was fitted on (N, {wanted}): resize and "
                "convert them as those were, or fit another defence"
            )

    def check(self, data: ImageDataset) -> None:
        """Raise InputError unless a data set has this shape and depth and, where it names classes, these in order."""
        self.check_shape(data.pixels.shape)
        if self.top and data.top != self.top:
            raise InputError(
                f"in {data.name} the pixel {data.top} stands for 1.0, and in the images of this defence "
                f"{self.top}: read them with the same depth, or pass data.images if they are as bright as those were"
            )
        if self.class_names and data.num_classes > 1 and data.class_names != self.class_names:
            raise InputError(
                f"{data.name} holds the classes {', '.join(data.class_names)}, and this defence knows "
                f"{', '.join(self.class_names)}: read them under these names in this order"
            )

    def describe(self) -> str:
        """One line for people."""
        channels, height, width = self.image_shape
        colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        depth = f", {self.top} stands for 1.0" if self.top else ""
        names = ", ".join(self.class_names) or "of unknown names"
        return f"{colour} images of {height} x {width} pixels{depth}; classes {names}"


def _are_whole(values: Any) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, int) and not isinstance(value, bool) for value in values)
