"""Adversarial patch (Brown et al. 2017, arXiv 1712.09665), through ART.

    max over p of  E over images x, places and angles t  [ loss( paste(p, x, t) ) ]

One patch is learned for all images of a class, and pasted into each at a random place and angle. It is no
perturbation of a bounded size: within the patch, a pixel may become anything.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torchvision  # noqa: F401  ART needs it here, and does not say so until it runs
from pydantic import Field
from torch import Tensor, nn

from medfedpure.core.config import Config
from medfedpure.core.errors import InputError
from medfedpure.plugins.attacks.art import ArtAttack, build


class AdversarialPatchConfig(Config):
    """A round patch of a quarter of the image's side."""

    scale: float = Field(0.25, gt=0, le=1, description="side of the patch, as a share of the image's smaller side")
    shape: Literal["circle", "square"] = Field("circle", description="form of the patch")
    rotation: float = Field(22.5, ge=0, le=180, description="largest angle of the patch, in degrees")
    steps: int = Field(100, ge=1, description="passes over the images while the patch is learned")
    learning_rate: float = Field(0.1, gt=0, description="of Adam, in [0, 1] units")
    batch_size: int = Field(64, ge=1, description="images at a time")


class AdversarialPatch(ArtAttack):
    """White-box, without a budget; untargeted unless targets are given. With a mask, the whole patch lies inside.

    Raises:
        InputError: a mask into which the patch does not fit.
    """

    Config = AdversarialPatchConfig

    art_class = "AdversarialPatchPyTorch"
    supports_mask = True

    def make(self, estimator: Any, *, targeted: bool) -> Any:
        """A patch not yet learned, in the channels of the images."""
        channels, height, width = estimator.input_shape
        edge = min(height, width)
        shape = (channels, edge, edge)
        return build(self.art_class, estimator, patch_shape=shape, targeted=targeted, **self.art_options())

    def craft(self, estimator: Any, images: Tensor, wanted: Tensor, mask: Tensor | None, *, targeted: bool) -> Tensor:
        """Images with their patches; classes are attacked apart, since one patch cannot pull both ways."""
        centres = None if mask is None else self._centres(mask)
        patched = images.clone()
        for label in wanted.unique():
            rows = wanted == label
            attack = self.make(estimator, targeted=targeted)
            given = images[rows].detach().float().cpu().numpy()
            places = None if centres is None else centres[rows].cpu().numpy()
            one_hot = nn.functional.one_hot(wanted[rows], estimator.nb_classes).float().cpu().numpy()
            attack.generate(x=given, y=one_hot, mask=places)
            patched[rows] = torch.from_numpy(attack.apply_patch(given, scale=self.config.scale, mask=places)).to(images)
        return patched

    def art_options(self) -> dict[str, Any]:
        """Size and training under ART's names."""
        c = self.config
        return {
            "scale_min": c.scale,
            "scale_max": c.scale,
            "patch_type": c.shape,
            "rotation_max": c.rotation,
            "max_iter": c.steps,
            "learning_rate": c.learning_rate,
            "batch_size": c.batch_size,
            "verbose": False,
        }

    def _centres(self, mask: Tensor) -> Tensor:
        """`(N, H, W)` bool, the centres from which no corner of the patch leaves the mask or the image."""
        height, width = mask.shape[2:]
        half = self.config.scale * min(height, width) / 2
        reach = math.ceil(half * (math.sqrt(2) if self.config.shape == "square" else 1)) + 1
        blocked = nn.functional.pad((~mask).float(), (reach, reach, reach, reach), value=1.0)
        centres = nn.functional.max_pool2d(blocked, 2 * reach + 1, stride=1)[:, 0] == 0
        # ART keeps this far from the edges of an image that is not square, and fails where nothing is left.
        rows, columns = (math.ceil(self.config.scale * side / 2) + 1 for side in (height, width))
        centres[:, :rows] = centres[:, height - rows :] = False
        centres[:, :, :columns] = centres[:, :, width - columns :] = False
        without = int((~centres.flatten(1).any(1)).sum())
        if without:
            raise InputError(
                f"the masks of {without} of {len(mask)} images hold no patch of {2 * half:.0f} pixels: "
                "widen the masks or lower scale"
            )
        return centres
