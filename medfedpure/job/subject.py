"""What is evaluated: a saved defence, benign images it was not trained on, and other models to craft attacks on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ArtifactError, ConfigError, DataError
from medfedpure.core.registry import create, registry
from medfedpure.core.storage import DOCUMENT, FORMAT, read_document_only, read_json
from medfedpure.data.readers.folders import class_folders
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.job.config import RunConfig
from medfedpure.job.division import divide
from medfedpure.job.folder import CONFIG, DEFENCES, RESULTS, complete

_HINT = "pass --data with a folder of one sub-folder per class, a MedMNIST .npz, or the name of a data set plugin"


@dataclass(frozen=True)
class Subject:
    """A defence and what it is evaluated with.

    Attributes:
        name: for reports.
        chain: the defence.
        data: labelled benign images.
        attackers: other models by name, that transfer attacks are crafted on.
        told: where the images come from, for whoever started the evaluation.
        federation: of a run of several clients, every client's defence and test images.
    """

    name: str
    chain: DefendedClassifier
    data: ImageDataset
    attackers: dict[str, nn.Module]
    told: str
    federation: dict[str, tuple[DefendedClassifier, ImageDataset]] = field(default_factory=dict)


def load_subject(
    defence: Path,
    *,
    data: str | None = None,
    options: dict[str, Any] | None = None,
    client: str | None = None,
    attackers: Sequence[Path] = (),
) -> Subject:
    """Find everything.

    Args:
        defence: a folder that `DefendedClassifier.save` wrote, or the output folder of a demo or a run; that one
            brings its own test images, and the other clients' classifiers as attackers.
        data: folder of images, .npz file, or data set plugin.
        options: configuration of the data set plugin, beyond what the classifier asks for.
        client: of a run, whose defence; by default the first.
        attackers: folders of further defences or classifiers.

    Raises:
        ConfigError: no images, no such client.
        DataError: images that do not fit the classifier, or are no longer those of the run.
        ArtifactError: a folder that is not what it should be.
    """
    others: dict[str, nn.Module] = {}
    own, told = None, ""
    federation: dict[str, tuple[DefendedClassifier, ImageDataset]] = {}
    chain = None
    complete(defence)
    if (defence / CONFIG).is_file() and not (defence / DOCUMENT).is_file():
        run, defence = defence, defence / DEFENCES / _client(defence, client)
        if data is None:
            tests = _test_parts(run)
            federation = {name: (DefendedClassifier.load(run / DEFENCES / name), test) for name, test in tests.items()}
            chain, own = federation[defence.name]
            told = f"{defence.name}'s test part, dealt again from {run / CONFIG}: not trained, tuned or calibrated on"
            others = {name: one.classifier for name, (one, _) in federation.items() if name != defence.name}
        else:
            others = {name: _classifier(run / DEFENCES / name) for name in _clients(run) if name != defence.name}
    elif client is not None:
        raise ConfigError(f"{defence} is one defence: --client goes with the output folder of a demo or a run")
    if chain is None:
        chain = DefendedClassifier.load(defence)
    if own is None:
        if data is None:
            raise ConfigError(f"images are wanted: {_HINT}")
        own, told = _read(data, options or {}, chain.classifier), f"{data}: make sure that nothing was trained on it"
    for folder in attackers:
        name = _named(folder, others)
        if name in others:
            raise ConfigError(f"two attackers would be named {name}: copy or rename the folder {folder}")
        others[name] = _classifier(folder)
    for name, model in {defence.name: chain.classifier, **others}.items():
        _check_fits(name, model, own)
    return Subject(defence.name, chain, own, others, told, federation if len(federation) > 1 else {})


def _client(run: Path, client: str | None) -> str:
    clients = _clients(run)
    if not clients or (client is not None and client not in clients):
        raise ConfigError(f"{run / DEFENCES} holds the clients {', '.join(clients) or 'of no run'}; got {client!r}")
    return client or clients[0]


def _clients(run: Path) -> list[str]:
    folder = run / DEFENCES
    return sorted(path.name for path in folder.iterdir() if (path / DOCUMENT).is_file()) if folder.is_dir() else []


def _test_parts(run: Path) -> dict[str, ImageDataset]:
    """The test parts of a run by client, after making sure that they are still those that were left out of training."""
    recorded = _recorded(run)
    format = recorded.get("format", 1) if recorded else _format_of_defences(run)
    config = RunConfig.from_toml(run / CONFIG)
    known = registry().load("dataset", config.data.plugin)
    drawn = dict(known.upgrade(config.data.config, format))
    if format == 1 and "classes" in known.Config.model_fields and "class_names" in recorded:
        drawn["classes"] = recorded["class_names"]  # that version ordered them by another rule
    config = config.model_copy(update={"data": config.data.model_copy(update={"config": drawn})})
    parts = divide(config)
    clients = _clients(run)
    if missing := [client for client in clients if client not in parts]:
        raise ConfigError(f"{run / CONFIG} deals images to {', '.join(parts)}; {', '.join(missing)} is none of them")
    tests = {client: parts[client]["test"] for client in clients}
    if recorded:
        splits = recorded.get("splits", {})
        for client, test in tests.items():
            if splits.get(client, {}).get("test") != test.fingerprint(format):
                raise DataError(
                    f"the images behind {run / CONFIG} are no longer those of the run ({client}'s test part has "
                    f"another fingerprint), so they may have been trained on: {_HINT}"
                )
    return tests


def _format_of_defences(run: Path) -> int:
    """Of a run that was cut off before it wrote its results: that of its defences."""
    found = [read_document_only(run / DEFENCES / client)["format"] for client in _clients(run)]
    return min(found, default=FORMAT)


def _recorded(run: Path) -> dict[str, Any]:
    """The results of a run; {} where it wrote none. Raises ArtifactError for those of a later version."""
    path = run / RESULTS
    if not path.is_file():
        return {}
    found = read_json(path)
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds a {type(found).__name__}, not the results of a run: restore it")
    if type(found.get("format", 1)) is not int:
        raise ArtifactError(f"{path} has format {found['format']!r}: restore it")
    if found.get("format", 1) > FORMAT:
        raise ArtifactError(
            f"{path} has format {found['format']}, that of a later medfedpure; this version reads formats 1 to "
            f"{FORMAT}: upgrade medfedpure"
        )
    return found


def _read(data: str, options: dict[str, Any], classifier: nn.Module) -> ImageDataset:
    path = Path(data).expanduser()
    built = classifier if isinstance(classifier, ClassifierModel) else None
    asked: dict[str, Any] = {}
    if path.is_dir():
        if built is not None:
            found = class_folders(path)
            if sorted(built.class_names) != sorted(found):
                raise DataError(
                    f"{data} holds the classes {', '.join(found)}; this classifier was trained for "
                    f"{', '.join(built.class_names)}: rename or remove sub-folders until they are the same"
                )
            asked = {"image_size": built.image_size, "channels": built.in_channels, "classes": built.class_names}
        return _created("image_folder", {"root": data, **asked, **options})
    if path.suffix == ".npz":
        asked = {"class_names": built.class_names} if built is not None else {}
        return _created("medmnist", {"path": data, "parts": ("test",), **asked, **options})
    if data not in [record.name for record in registry().plugins("dataset")]:
        raise DataError(f"{data!r} is no folder, no .npz file and no data set plugin: {_HINT}")
    fields = registry().load("dataset", data).Config.model_fields
    if built is not None:
        known = {"image_size": built.image_size, "channels": built.in_channels}
        asked = {name: value for name, value in known.items() if name in fields}
    return _created(data, {**asked, **options})


def _created(plugin: str, options: dict[str, Any]) -> ImageDataset:
    found: ImageDataset = create("dataset", plugin, options).read()
    return found


def _classifier(folder: Path) -> nn.Module:
    """Of a saved defence, or a saved classifier by itself."""
    inner = folder / "classifier"
    return ClassifierModel.load(inner if inner.is_dir() else folder)


def _named(folder: Path, taken: dict[str, nn.Module]) -> str:
    name = folder.resolve().name
    return name if name not in taken else f"{folder.resolve().parent.name}/{name}"


def _check_fits(name: str, model: nn.Module, data: ImageDataset) -> None:
    if not isinstance(model, ClassifierModel):
        return
    wanted = (model.in_channels, model.image_size, model.image_size)
    if data.image_shape != wanted:
        raise DataError(
            f"the classifier of {name} reads images of shape {wanted}; {data.name} holds {data.image_shape}"
        )
    if data.class_names != model.class_names:
        raise DataError(
            f"the classifier of {name} knows the classes {', '.join(model.class_names)}; {data.name} holds "
            f"{', '.join(data.class_names)}"
        )
