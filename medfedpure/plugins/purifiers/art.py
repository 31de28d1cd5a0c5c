"""Image preprocessors of the Adversarial Robustness Toolbox (Nicolae et al. 2018, arXiv 1807.01069) by name.

JPEG compression (Das et al. 2017), spatial smoothing and feature squeezing (Xu et al. 2018), total variation
minimization (Guo et al. 2018) and others: whatever takes images and gives images of the same shape.

    purified(x) = preprocessor(x), without its labels
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from art.defences import preprocessor
from art.defences.preprocessor.preprocessor import Preprocessor
from pydantic import Field, model_validator
from torch import Tensor

from medfedpure.core.config import Config
from medfedpure.core.errors import ConfigError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import Purification
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.plugins.foreign import seeded_globals

USABLE = ("JpegCompression", "SpatialSmoothing", "FeatureSqueezing", "TotalVarMin")
"""Those of ART that take one image at prediction time: the others augment training data, encode, or need sound."""
RANDOM = frozenset({"TotalVarMin"})


class ArtPurifierConfig(Config):
    """Which preprocessor, and its options."""

    preprocessor: str = Field("JpegCompression", description="class name in art.defences.preprocessor")
    options: dict[str, Any] = Field(default_factory=dict, description="further arguments of the ART class")

    @model_validator(mode="after")
    def _known(self) -> ArtPurifierConfig:
        if self.preprocessor not in USABLE:
            raise ValueError(f"{self.preprocessor} does not clean images: choose one of {', '.join(USABLE)}")
        unknown = sorted(set(self.options) - _parameters(self.preprocessor))
        if unknown:
            takes = ", ".join(sorted(_parameters(self.preprocessor)))
            raise ValueError(f"ART's {self.preprocessor} takes no {', '.join(unknown)}; it takes {takes}")
        return self


def _parameters(name: str) -> frozenset[str]:
    given = {"self", "clip_values", "channels_first", "apply_fit", "apply_predict", "verbose"}
    return frozenset(inspect.signature(getattr(preprocessor, name).__init__).parameters) - given


class ArtPurifier(Purifier):
    """Not differentiable; the strength is not used."""

    Config = ArtPurifierConfig

    def __init__(self, config: Any = None, **options: Any) -> None:
        super().__init__(config, **options)
        self.deterministic = self.config.preprocessor not in RANDOM
        name = self.config.preprocessor
        self._takes = frozenset(inspect.signature(getattr(preprocessor, name).__init__).parameters)
        self._preprocessor = self._make()

    def _make(self) -> Preprocessor:
        name = self.config.preprocessor
        takes = self._takes
        given = {"clip_values": (0.0, 1.0), "channels_first": True, "apply_predict": True, "verbose": False}
        fitting = {key: value for key, value in given.items() if key in takes}
        try:
            made: Preprocessor = getattr(preprocessor, name)(**fitting, **self.config.options)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"ART refuses these options of {name}: {error}") from error
        return made

    def purify(self, images: Tensor, strength: Tensor, *, streams: Streams) -> Purification:  # noqa: ARG002
        """`(N, C, H, W)`, image by image, so that the noise of one never depends on the others."""
        rows = []
        # Classes without this option read (N, H, W, C).
        moved = "channels_first" not in self._takes
        for image, image_id in zip(images.detach().cpu(), streams.ids.tolist(), strict=True):
            with seeded_globals(derive_seed(streams.seed, image_id, "art")):
                given = image[None].float()
                array, _ = self._preprocessor((given.permute(0, 2, 3, 1) if moved else given).numpy())
            row = torch.from_numpy(np.ascontiguousarray(array))
            rows.append(row.permute(0, 3, 1, 2) if moved else row)
        cleaned = torch.cat(rows).to(images).clamp(0, 1) if rows else images.clone()
        return Purification(cleaned, torch.zeros(len(images), dtype=torch.int64, device=images.device))
