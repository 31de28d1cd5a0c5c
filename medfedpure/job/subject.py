"""What is evaluated: a saved defence, benign images it was not trained on, and other models to craft attacks on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.errors import ArtifactError, ConfigError, DataError
from medfedpure.core.registry import registry
from medfedpure.core.storage import DOCUMENT, FORMAT, read_document_only, read_json
from medfedpure.data.readers.folders import class_folders, some
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.images import ImageFacts
from medfedpure.evaluation.images import HINT, read_images, reader_of
from medfedpure.job.config import RunConfig
from medfedpure.job.division import divide
from medfedpure.job.folder import CACHE, CONFIG, DEFENCES, RESULTS, complete
from medfedpure.job.own_module import own_module


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
    classifier: nn.Module | None = None,
) -> Subject:
    """Find everything.

    Args:
        defence: a folder that `DefendedClassifier.save` wrote, or the output folder of a demo, a run or a federation;
            these bring the other clients' classifiers as attackers, and a demo or a run its own test images.
        data: folder of images, .npz file, or data set plugin.
        options: configuration of the data set plugin, beyond what the classifier asks for.
        client: of a run, whose defence; by default the first.
        attackers: folders of further defences or classifiers.
        classifier: the user's own module, of a defence around one; its weights become the saved ones.

    Raises:
        ConfigError: no images, no such client, classes of unknown order, or a classifier beside a run.
        DataError: images that do not fit the classifier, or are no longer those of the run.
        ArtifactError: a folder that is not what it should be.
    """
    others: dict[str, nn.Module] = {}
    own, told = None, ""
    federation: dict[str, tuple[DefendedClassifier, ImageDataset]] = {}
    chain = None
    run, defence = defence, defence_of(defence, client)
    if run != defence:
        if classifier is not None:
            raise ConfigError(
                f"{run} is a run and brings its classifiers: --classifier goes with a defence of your own"
            )
        if data is None:
            tests = _test_parts(run)
            federation = {name: (DefendedClassifier.load(run / DEFENCES / name), test) for name, test in tests.items()}
            chain, own = federation[defence.name]
            told = f"{defence.name}'s test part, dealt again from {run / CONFIG}: not trained, tuned or calibrated on"
            others = {name: one.classifier for name, (one, _) in federation.items() if name != defence.name}
        else:
            others = {name: _classifier(run / DEFENCES / name) for name in _clients(run) if name != defence.name}
    if chain is None:
        chain = DefendedClassifier.load(defence, classifier=classifier)
    facts = facts_of(chain)
    if own is None:
        if data is None:
            raise ConfigError(f"images are wanted: {HINT}")
        own, told = images_for(data, options or {}, facts), "make sure that nothing was trained on them"
    for folder in attackers:
        name = _named(folder, others)
        if name in others:
            raise ConfigError(f"two attackers would be named {name}: copy or rename the folder {folder}")
        others[name] = _classifier(folder)
    for name, wanted in {defence.name: facts, **{name: _built_for(model) for name, model in others.items()}}.items():
        if wanted is not None:
            _check_fits(name, wanted, own)
    return Subject(defence.name, chain, own, others, told, federation if len(federation) > 1 else {})


def defence_of(folder: Path, client: str | None) -> Path:
    """The folder of a saved defence: the one that is named, or of a run a client's.

    Raises:
        ConfigError: no such client, a client of what is no run, or a real federation's folder, where they lie deeper.
    """
    complete(folder)
    if (folder / CONFIG).is_file() and not (folder / DOCUMENT).is_file():
        return folder / DEFENCES / _client(folder, client)
    if not (folder / DOCUMENT).is_file() and (below := _of_sites(folder)):
        raise ConfigError(f"{folder} is no defence itself, and holds some: name one of {some(below)}, without --client")
    if client is not None:
        raise ConfigError(f"{folder} is one defence: --client goes with the output folder of a demo, run or federation")
    return folder


def _of_sites(folder: Path) -> list[Path]:
    """Defences where a real federation leaves them: seen from a site's output, from the site, and from all."""
    return [
        place.parent
        for above in ("defence", "out/defence", "sites/*/out/defence")
        for place in sorted(folder.glob(f"{above}/{DOCUMENT}"))
    ]


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
    if "defences" in recorded:
        raise ConfigError(f"{run} is a federation, and no record says what its defences have not seen: {HINT}")
    format = recorded.get("format", 1) if recorded else _format_of_defences(run)
    config = RunConfig.from_toml(run / CONFIG)
    known = registry().load("dataset", config.data.plugin)
    drawn = dict(known.upgrade(config.data.config, format))
    if format == 1 and "classes" in known.Config.model_fields and "class_names" in recorded:
        drawn["classes"] = recorded["class_names"]  # that version ordered them by another rule
    config = config.model_copy(update={"data": config.data.model_copy(update={"config": drawn})})
    parts = divide(config, run / CACHE if (run / CACHE).is_dir() else None)
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
                    f"another fingerprint), so they may have been trained on: {HINT}"
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


def _built_for(model: nn.Module) -> ImageFacts | None:
    """What images a plugin's classifier was built for, without names that are its classes' numbers; else None."""
    if not isinstance(model, ClassifierModel):
        return None
    names = model.class_names
    if names == tuple(map(str, range(len(names)))):  # numbers mean nothing
        names = ()
    return ImageFacts((model.in_channels, model.image_size, model.image_size), names)


def facts_of(chain: DefendedClassifier) -> ImageFacts | None:
    """What images a defence is for, as far as it or its classifier knows."""
    own, built = chain.image_facts, _built_for(chain.classifier)
    if own is None or built is None or own.class_names:
        return own or built
    return replace(own, class_names=built.class_names)


def model_of(named: str) -> tuple[nn.Module, ImageFacts | None]:
    """A model by its folder or by "package.module:function", and what images it was built for, where it knows.

    Raises:
        ConfigError: there is neither.
        ArtifactError: a folder that holds no classifier.
    """
    folder = Path(named).expanduser()
    if folder.is_dir():
        found = _classifier(folder)
    elif ":" in named:
        found = own_module(named)
    else:
        raise ConfigError(
            f"{named} is no folder: a saved classifier or defence is wanted, or package.module:function that builds "
            "a model"
        )
    return found, _built_for(found)


def images_for(
    data: str, options: dict[str, Any], facts: ImageFacts | None, *, parts: tuple[str, ...] = ("test",)
) -> ImageDataset:
    """The images that a user named, as a model of these facts reads them.

    Args:
        data: folder of images, .npz file, or data set plugin.
        options: configuration of the data set plugin; it wins.
        facts: None where nothing is known of the model.
        parts: of a MedMNIST file.

    Raises:
        ConfigError: nobody says how large images are, or which sub-folder is which logit.
        DataError: images that cannot be read, or of other classes.
    """
    plugin, _ = reader_of(data)
    asked: dict[str, Any] = {} if facts is None else _size(facts)
    if plugin == "image_folder":
        asked |= _of_folder(Path(data).expanduser(), facts, options)
    elif plugin == "medmnist":
        asked |= {"parts": parts}
        if facts is not None and facts.class_names:
            asked["class_names"] = facts.class_names
    return read_images(data, options, asked)


def _size(facts: ImageFacts) -> dict[str, Any]:
    """How a data set plugin is asked for images of this shape, where they are squares."""
    channels, height, width = facts.image_shape
    return {"image_size": height, "channels": channels} if height == width else {}


def _of_folder(path: Path, facts: ImageFacts | None, options: dict[str, Any]) -> dict[str, Any]:
    """How the image files of a folder must be read: which sub-folder is which logit, and with how many bits.

    Raises:
        DataError: sub-folders of other names.
        ConfigError: nobody says which sub-folder is which logit, or how large images are.
    """
    found = class_folders(path)
    names = facts.class_names if facts is not None else ()
    unknown = [] if names else ["classes"]
    if facts is None or not _size(facts):
        unknown.append("image_size")
    if missing := [key for key in unknown if key not in options]:
        example = {"classes": found, "image_size": 64}
        shown = json.dumps({key: example[key] for key in missing})
        raise ConfigError(
            f"this model does not know the {' and '.join(missing)} of its images, and the order of the sub-folders "
            f"of {path} says nothing of that of its logits: pass them, as in --data-config '{shown}', the classes in "
            "the order of the logits; or fit it anew with class_names=..."
        )
    if not names:
        return {}
    if "classes" not in options and sorted(names) != sorted(found):
        raise DataError(
            f"{path} holds the classes {', '.join(found)}; this classifier was trained for {', '.join(names)}: rename "
            "or remove sub-folders until they are the same"
        )
    top = facts.top if facts is not None else 0
    depth: dict[str, Any] = {"pixel_bits": 8 if top <= 255 else 16} if top else {}
    if 255 < top < 65535 and top & (top + 1) == 0:
        depth["bit_depth"] = top.bit_length()
    return {"classes": names, **depth}


def _classifier(folder: Path) -> nn.Module:
    """Of a saved defence, or a saved classifier by itself."""
    inner = folder / "classifier"
    return ClassifierModel.load(inner if inner.is_dir() else folder)


def _named(folder: Path, taken: dict[str, nn.Module]) -> str:
    name = folder.resolve().name
    return name if name not in taken else f"{folder.resolve().parent.name}/{name}"


def _check_fits(name: str, facts: ImageFacts, data: ImageDataset) -> None:
    if data.image_shape != facts.image_shape:
        raise DataError(
            f"the classifier of {name} reads images of shape {facts.image_shape}; {data.name} holds {data.image_shape}"
        )
    if facts.class_names and data.class_names != facts.class_names:
        raise DataError(
            f"the classifier of {name} knows the classes {', '.join(facts.class_names)}; {data.name} holds "
            f"{', '.join(data.class_names)}"
        )
    # Files of 9 to 15 bits are scaled to 16, so that these cannot be told apart here; any other brightness can.
    scaled = facts.top > 255 and facts.top & (facts.top + 1) == 0 and data.top > 255
    if facts.top and data.top != facts.top and not scaled:
        raise DataError(
            f"{name} was fitted on images whose pixel {facts.top} stands for 1.0; in {data.name} it is {data.top}: "
            "read them with as many bits, or pass an ImageDataset of that top to medfedpure.evaluate"
        )
