"""What of a saved folder is exported."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from torch import nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.errors import ConfigError
from medfedpure.core.storage import read_document_only
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.export.graph import Shape

Part = Literal["defence", "classifier", "purifier"]


def load_part(
    folder: Path, part: Part | None = None, *, classifier: nn.Module | None = None
) -> tuple[nn.Module, Shape | None]:
    """A saved classifier, or a part of a saved defence; and (C, H, W) where only the defence knows it.

    Args:
        folder: what was saved.
        part: of a defence: all of it, its classifier, or its purifier; None = all.
        classifier: the user's own module, of a defence around one; its weights become the saved ones.

    Raises:
        ConfigError: neither a classifier nor a defence, or a part that it has not.
        ArtifactError: a folder that is not what it should be.
    """
    if part is not None and part not in get_args(Part):
        raise ConfigError(f"no part is named {part!r}; a defence has {', '.join(get_args(Part))}")
    kind = read_document_only(folder).get("kind")
    if kind == "classifier_model":
        if part not in (None, "classifier"):
            raise ConfigError(f"{folder} is a classifier, and its {part} was asked for: name the folder of a defence")
        return ClassifierModel.load(folder), None
    if kind != "defence":
        raise ConfigError(f"{folder} holds a {kind}; a saved classifier or a saved defence is exported")
    chain = DefendedClassifier.load(folder, classifier=classifier)
    shape = None if chain.image_facts is None else chain.image_facts.image_shape
    if part == "purifier":
        if chain.purifier is None:
            raise ConfigError(f"the defence in {folder} has no purifier: export the defence, or its classifier")
        assert isinstance(chain.purifier, nn.Module)
        return chain.purifier, shape
    if part == "classifier" and not isinstance(chain.classifier, ClassifierModel):
        return DefendedClassifier(chain.classifier, policy="none", image_facts=chain.image_facts), None
    return (chain.classifier if part == "classifier" else chain), None
