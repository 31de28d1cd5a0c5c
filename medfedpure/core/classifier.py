"""Classifier plugins are architectures; ClassifierModel is one built network with its facts."""

from __future__ import annotations

import threading
import warnings
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from medfedpure.core import storage
from medfedpure.core.checks import check_image_layout
from medfedpure.core.component import Component, check_types
from medfedpure.core.config import describe
from medfedpure.core.disk.weights import Origin, fill, read_weights, rules_of
from medfedpure.core.errors import ArtifactError, ConfigError, InputError, MissingWeightsError, UntrainedWarning
from medfedpure.core.registry import create, registry
from medfedpure.core.streams import isolated_rng

LARGEST = {"in_channels": 256, "num_classes": 100_000, "image_size": 8192}
MOST_VALUES = 2**26
"""Of one image: 8192 x 8192 in grey."""


class Classifier(Component):
    """An architecture: a saved defence rebuilds its network from the plugin's name and config.

    One method to write: `build`. `head_keys` and `features` have defaults that suit a network whose
    last child with parameters is the head.
    """

    kind: ClassVar[str] = "classifier"
    deterministic = True
    differentiable = True
    default_weights: ClassVar[str | None] = None
    """What `create_model` starts from unless told otherwise: "imagenet", or None for weights drawn from the seed."""
    weights_prefix: ClassVar[str] = ""
    """What stands before the names of published weights in this network's state_dict."""

    @abstractmethod
    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """A new network from images `(N, C, H, W)` in [0, 1] to logits `(N, K)`.

        Normalization is a layer of the network. Weights may be drawn from torch's global
        generator: `create_model` seeds it and restores it.
        """
        raise NotImplementedError

    def imagenet_weights(self) -> tuple[Mapping[str, Tensor], Origin]:
        """Published ImageNet weights by their own names, and where they are from; `loaded` and `wanted` are not read.

        Raises:
            ConfigError: none are known for this architecture.
            MissingWeightsError: they are known, and neither their package is installed nor a hub can be reached.
        """
        raise ConfigError(
            f"no ImageNet weights are known for the classifier {self.name!r}: choose 'efficientnet_lite0', 'resnet18' "
            "or 'timm', or pass the path of a file"
        )

    def unfilled_keys(self, model: nn.Module) -> frozenset[str]:
        """Keys of `model.state_dict()` that published weights never fill: the head, and the normalization of images."""
        own = ("normalize.mean", "normalize.std")
        return self.head_keys(model) | {key for key in model.state_dict() if key.endswith(own)}

    def head_keys(self, model: nn.Module) -> frozenset[str]:
        """Which keys of `model.state_dict()` belong to the head."""
        name = self._head_name(model)
        return frozenset(key for key in model.state_dict() if key.startswith(f"{name}."))

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """What the head receives, flattened to `(N, F)`."""
        caught: list[Tensor] = []
        own = threading.get_ident()

        def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if threading.get_ident() == own:  # the network is shared, and another thread may be asking it too
                caught.append(inputs[0])

        handle = model.get_submodule(self._head_name(model)).register_forward_pre_hook(catch)
        try:
            model(images)
        finally:
            handle.remove()
        return caught[0].flatten(1)

    def _head_name(self, model: nn.Module) -> str:
        names = [name for name, child in model.named_children() if any(True for _ in child.parameters())]
        if not names:
            raise InputError(f"{type(model).__name__} has no child with parameters: override head_keys and features")
        return names[-1]

    def create_model(
        self,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
        class_names: tuple[str, ...] = (),
        seed: int = 0,
        weights: str | Path | None = "default",
        rename: str | Mapping[str, str] | None = None,
        min_loaded: float = 0.95,
    ) -> ClassifierModel:
        """Build a network, in eval mode.

        Args:
            in_channels: C of the images `(N, C, S, S)`.
            num_classes: K.
            image_size: S in pixels.
            class_names: K names in the order of the logits; by default their numbers.
            seed: of the weights that come from nowhere else: the head's, or all.
            weights: where the others start: "default" (as the architecture says, see `default_weights`), "imagenet", a
                file (.safetensors, or torch's format read with `weights_only=True`), or None for none. No path is kept.
            rename: how the file's names become this network's: regular expressions and what replaces them, or the name
                of published rules: "lvmmed_resnet", "lvmmed_vit".
            min_loaded: the share of the network's tensors, the head left out, that must come from the weights; and of
                the file's in parts that the network has, the share that must be wanted, so that the weights of a
                deeper network are refused.

        Raises:
            InputError: the network does not map `(N, C, S, S)` to `(N, K)`.
            ArtifactError: the weights cannot be read, or do not fit; the text lists what did not.
            ConfigError: no ImageNet weights are known for this architecture, or the rules are none.
            MissingWeightsError: ImageNet weights were asked for, and are not at hand.

        Warns:
            UntrainedWarning: by default ImageNet weights are used, and none are at hand; or weights fit, and a few
                tensors, such as a first convolution of another size, keep what they were drawn with.
        """
        _check_sizes(in_channels, num_classes, image_size)
        with isolated_rng(seed):
            network = self.build(in_channels=in_channels, num_classes=num_classes, image_size=image_size).eval()
            with torch.no_grad():
                shape = tuple(network(torch.zeros(2, in_channels, image_size, image_size)).shape)
        if shape != (2, num_classes):
            raise InputError(f"{self.name} maps 2 images to {shape}; logits of shape (2, {num_classes}) are wanted")
        names = class_names or tuple(str(label) for label in range(num_classes))
        model = ClassifierModel(self, network, in_channels, image_size, names).eval()
        model.origin = self._start(network, weights, rename, min_loaded)
        return model

    def _start(
        self, network: nn.Module, weights: str | Path | None, rename: str | Mapping[str, str] | None, least: float
    ) -> Origin | None:
        """Fill a network with published weights; None where it keeps those it was drawn with."""
        rules = rules_of(rename)
        chosen = self.default_weights if weights == "default" else weights
        if chosen is None:
            if rename is not None:
                raise ConfigError("rename= says how the names of weights change, and there are no weights: pass them")
            return None
        if chosen == "imagenet":
            try:
                tensors, origin = self.imagenet_weights()
            except MissingWeightsError as error:
                if weights != "default":
                    raise
                warnings.warn(f"{error}; the network starts untrained", UntrainedWarning, stacklevel=3)
                return None
        else:
            tensors, digest = read_weights(chosen)
            origin = Origin(
                source=f"the file {''.join(c if c.isprintable() else '?' for c in Path(chosen).name)}",
                licence=rules.licence,
                restriction=rules.restriction,
                sha256=digest,
                loaded=0,
                wanted=0,
            )
        loaded, wanted = fill(
            network,
            tensors,
            keys=network.state_dict().keys() - self.unfilled_keys(network),
            prefix=self.weights_prefix,
            rules=rules,
            min_loaded=least,
            what=origin.source,
        )
        return origin.model_copy(update={"loaded": loaded, "wanted": wanted})


def _check_sizes(in_channels: int, num_classes: int, image_size: int) -> None:
    """Raise InputError before a network is asked for that no machine could hold."""
    if num_classes < 2:
        raise InputError(f"a classifier needs at least 2 classes; got {num_classes}")
    sizes = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
    for name, value in sizes.items():
        if not isinstance(value, int) or not 1 <= value <= LARGEST[name]:
            raise InputError(f"{name} must be a whole number in 1 ... {LARGEST[name]:,}; got {value!r}")
    if in_channels * image_size**2 > MOST_VALUES:
        raise InputError(
            f"images of {in_channels} x {image_size} x {image_size} values are too large; at most {MOST_VALUES:,} are "
            "read"
        )


class ClassifierModel(nn.Module):
    """One built network: images `(N, C, S, S)` in [0, 1] to logits `(N, K)`.

    Attributes:
        architecture: the plugin that built it.
        network: the module itself; its state_dict is what federations exchange.
        in_channels, image_size, class_names: what it was built for.
        origin: published weights that its training started from; None where there were none.
    """

    origin: Origin | None

    def __init__(
        self,
        architecture: Classifier,
        network: nn.Module,
        in_channels: int,
        image_size: int,
        class_names: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.network = network
        self.in_channels = in_channels
        self.image_size = image_size
        self.class_names = class_names
        self.origin = None

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, K)`; raises InputError when channels or size differ from what it was built for."""
        check_image_layout(images)
        wanted = (self.in_channels, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != wanted:
            raise InputError(
                f"this classifier reads images of shape (N, {wanted[0]}, {wanted[1]}, {wanted[2]}); got "
                f"{tuple(images.shape)}: resize or convert them first"
            )
        logits: Tensor = self.network(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """`(N, F)`, what the head receives."""
        return self.architecture.features(self.network, images)

    def head_keys(self) -> frozenset[str]:
        """Keys of this module's own state_dict that belong to the head."""
        return frozenset(f"network.{key}" for key in self.architecture.head_keys(self.network))

    def save(self, folder: str | Path) -> None:
        """Write the plugin's name, its config and the weights; loadable by name in any process."""
        name = self.architecture.plugin_name or registry().name_of(self.architecture)
        document: dict[str, Any] = {
            "kind": "classifier_model",
            "plugin": name,
            "config": self.architecture.config.model_dump(mode="json"),
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "class_names": list(self.class_names),
        }
        if self.origin is not None:
            document["origin"] = self.origin.model_dump(mode="json")
        with storage.atomic_folder(folder) as work:
            storage.write_document(work, document, self.network.state_dict())

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Rebuild a saved model; raises ArtifactError when the folder or its tensors do not fit."""
        document, tensors = storage.read_document(
            folder,
            kind="classifier_model",
            keys=("plugin", "config", "in_channels", "image_size", "class_names"),
        )
        types = {"plugin": str, "config": dict, "in_channels": int, "image_size": int, "class_names": list}
        check_types(document, types, str(folder))
        if not all(isinstance(name, str) for name in document["class_names"]):
            raise ArtifactError(f"{folder} names classes by something else than text: {document['class_names']!r:.80}")
        known = registry().load("classifier", document["plugin"])
        config = known.upgrade(document["config"], document["format"])
        architecture: Classifier = create("classifier", document["plugin"], config)
        names = tuple(document["class_names"])
        model = architecture.create_model(
            in_channels=document["in_channels"],
            num_classes=len(names),
            image_size=document["image_size"],
            class_names=names,
            weights=None,
        )
        model.origin = origin_in(document, folder)
        storage.load_strictly(model.network, tensors, f"the classifier {document['plugin']!r}")
        if not isinstance(model, cls):
            raise ArtifactError(f"{folder} holds a {type(model).__name__}; a {cls.__name__} was wanted")
        return model


def origin_in(document: Mapping[str, Any], folder: str | Path) -> Origin | None:
    """What a saved classifier says of its beginnings; older versions say nothing."""
    found = document.get("origin")
    try:
        return None if found is None else Origin.model_validate(found)
    except ValidationError as error:
        text = describe(error, Origin)
        raise ArtifactError(f"{folder} does not say as it should what its weights started from: {text}") from error
