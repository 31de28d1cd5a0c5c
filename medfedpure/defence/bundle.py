"""A whole defence as one folder: JSON and safetensors, loaded by plugin names, nothing unpickled.

folder/medfedpure.json      policy, target rate, digests of the parts; what images it is for, what its own check
                            saw, how its policy was chosen
folder/tensors.safetensors  calibration scores
folder/classifier/          plugin name, config and weights; or the tensors of a user's module
folder/detector/  folder/purifier/
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from torch import nn

from medfedpure.core import storage
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.detector import Detector
from medfedpure.core.errors import ArtifactError
from medfedpure.core.purifier import Purifier
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.images import ImageFacts
from medfedpure.defence.own_check import OwnCheck
from medfedpure.defence.recipe import Choice
from medfedpure.defence.voting import Vote

_PARTS = ("classifier", "detector", "purifier")


@dataclass(frozen=True)
class Bundle:
    """All that a defence is made of, as its constructor takes it."""

    classifier: nn.Module
    detector: Detector | None
    purifier: Purifier | None
    policy: str
    calibration: Calibration | None
    vote: Vote
    image_facts: ImageFacts | None
    own_check: OwnCheck | None
    choice: Choice | None

    def write(self, folder: str | Path) -> None:
        """Write one folder, atomically.

        A classifier built by a plugin is saved by name; any other module as its tensors with a hash of
        their names and shapes, to be brought again when loading.
        """
        with storage.atomic_folder(folder) as work:
            if isinstance(self.classifier, ClassifierModel):
                self.classifier.save(work / "classifier")
            else:
                _save_module(self.classifier, work / "classifier")
            for part in (self.detector, self.purifier):
                if part is not None:
                    part.save(work / part.kind)
            calibration = self.calibration
            document: dict[str, Any] = {
                "kind": "defence",
                "policy": self.policy,
                "vote": asdict(self.vote),
                "parts": {n: _digest_of(work / n) for n in _PARTS if (work / n).is_dir()},
                "calibration": None,
                "images": None if self.image_facts is None else self.image_facts.document(),
                "own_check": None if self.own_check is None else asdict(self.own_check),
                "choice": None if self.choice is None else self.choice.document(),
            }
            tensors = {}
            if calibration is not None:
                document["calibration"] = {"target_fpr": calibration.target_fpr, "scope": calibration.scope}
                tensors["calibration.scores"] = calibration.scores
            storage.write_document(work, document, tensors)

    @classmethod
    def read(cls, folder: str | Path, *, classifier: nn.Module | None = None) -> Self:
        """Read what `write` wrote.

        Args:
            folder: what was saved.
            classifier: the user's own module where the saved classifier is not a plugin's; it is
                checked and its weights are replaced by the saved ones.

        Raises:
            ArtifactError: truncated, edited, foreign, parts exchanged, or a module that does not fit.
            UnknownPluginError: a plugin is not installed here.
        """
        try:
            return storage.steadily(folder, lambda: cls._read(Path(folder), classifier))
        except (AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(f"{folder} is not a defence as this version saves it: {error!r}") from error

    @classmethod
    def _read(cls, path: Path, classifier: nn.Module | None) -> Self:
        document, tensors = storage.read_document(path, kind="defence", keys=("policy", "vote", "parts", "calibration"))
        if unknown := document["parts"].keys() - set(_PARTS):
            raise ArtifactError(
                f"{path} names parts that a defence has not, {', '.join(sorted(unknown))}: save it again"
            )
        for name, digest in document["parts"].items():
            if _digest_of(path / name) != digest:
                raise ArtifactError(f"{path / name} is not the part that was saved with this defence")
        stored, images, checked = document["calibration"], document.get("images"), document.get("own_check")
        chosen = document.get("choice")
        parts = document["parts"]
        return cls(
            _load_classifier(path / "classifier", classifier),
            detector=Detector.load(path / "detector") if "detector" in parts else None,
            purifier=Purifier.load(path / "purifier") if "purifier" in parts else None,
            policy=document["policy"],
            vote=Vote(**document["vote"]),
            calibration=None
            if stored is None
            else Calibration(tensors["calibration.scores"], stored["target_fpr"], stored["scope"]),
            image_facts=None if images is None else ImageFacts.read(images, str(path)),
            own_check=None if checked is None else OwnCheck.read(checked, str(path)),
            choice=None if chosen is None else Choice.read(chosen, str(path)),
        )


def _save_module(module: nn.Module, folder: Path) -> None:
    document = {"kind": "module", "type": type(module).__name__, "layout": storage.layout_hash(module)}
    with storage.atomic_folder(folder) as work:
        storage.write_document(work, document, module.state_dict())


def _load_classifier(folder: Path, classifier: nn.Module | None) -> nn.Module:
    document, tensors = storage.read_document(folder)
    if document.get("kind") == "classifier_model":
        if classifier is not None:
            raise ArtifactError(f"{folder} rebuilds its classifier by plugin name: load it without classifier=")
        return ClassifierModel.load(folder)
    if document.get("kind") != "module":
        raise ArtifactError(f"{folder} holds a {document.get('kind')!r}; a classifier was wanted")
    if classifier is None:
        raise ArtifactError(
            f"{folder} holds the weights of your own module ({document['type']}): build it and pass "
            "DefendedClassifier.load(folder, classifier=your_module); on the command line --classifier module:function"
        )
    if storage.layout_hash(classifier) != document["layout"]:
        storage.check_tensors(classifier, tensors, type(classifier).__name__)
        raise ArtifactError(f"{type(classifier).__name__} has tensors of another dtype or order than {folder}")
    storage.load_strictly(classifier, tensors, type(classifier).__name__)
    return classifier


def _digest_of(folder: Path) -> str:
    digest: str = storage.read_document_only(folder)["digest"]
    return digest
