"""Classifier plugins are architectures; ClassifierModel is one built network with its facts."""

from __future__ import annotations

import threading
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from medfedpure.core import storage
from medfedpure.core.checks import check_image_layout
from medfedpure.core.component import Component, check_types
from medfedpure.core.errors import ArtifactError, InputError
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

    @abstractmethod
    def build(self, *, in_channels: int, num_classes: int, image_size: int) -> nn.Module:
        """A new network from images `(N, C, H, W)` in [0, 1] to logits `(N, K)`.

        Normalization is a layer of the network. Weights may be drawn from torch's global
        generator: `create_model` seeds it and restores it.
        """
        raise NotImplementedError

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
    ) -> ClassifierModel:
        """Build a network with weights drawn from the seed, in eval mode.

        Raises:
            InputError: the network does not map `(N, C, S, S)` to `(N, K)`.
        """
        _check_sizes(in_channels, num_classes, image_size)
        with isolated_rng(seed):
            network = self.build(in_channels=in_channels, num_classes=num_classes, image_size=image_size).eval()
            with torch.no_grad():
                shape = tuple(network(torch.zeros(2, in_channels, image_size, image_size)).shape)
        if shape != (2, num_classes):
            raise InputError(f"{self.name} maps 2 images to {shape}; logits of shape (2, {num_classes}) are wanted")
        names = class_names or tuple(str(label) for label in range(num_classes))
        return ClassifierModel(self, network, in_channels, image_size, names).eval()


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
    """

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
        document = {
            "kind": "classifier_model",
            "plugin": name,
            "config": self.architecture.config.model_dump(mode="json"),
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "class_names": list(self.class_names),
        }
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
        )
        storage.load_strictly(model.network, tensors, f"the classifier {document['plugin']!r}")
        if not isinstance(model, cls):
            raise ArtifactError(f"{folder} holds a {type(model).__name__}; a {cls.__name__} was wanted")
        return model
