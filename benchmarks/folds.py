"""What the benchmarks share: grouped folds of a data set, each with a classifier, a diffusion model and attacks.

The parts of a fold are trained once and kept in its folder, so that a long run can be continued, and two
benchmarks measure the same thing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import medfedpure
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import Detector, ScoreContext
from medfedpure.core.purifier import Purifier
from medfedpure.core.settings import Augmentation, TrainingConfig
from medfedpure.core.storage import atomic_folder, read_document, write_document, write_json
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.data.augmentation import robust_augmentation
from medfedpure.data.copies import with_purified
from medfedpure.figures.metrics import classification_figures
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

EPS = 0.015
CONTROL = "uniform noise"
APGD = {"eps_step": 0.003, "max_iter": 20, "nb_random_init": 1, "batch_size": 64}
CARLINI = {"max_iter": 10, "binary_search_steps": 3, "batch_size": 32}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "pgd": ("pgd", {"norm": "linf", "eps": EPS, "step": 0.003, "steps": 7}),
    "pgd 8/255": ("pgd", {"norm": "linf", "eps": "8/255", "step": "2/255", "steps": 7}),
    "fgsm": ("fgsm", {"norm": "linf", "eps": EPS}),
    "apgd": ("art", {"attack": "AutoProjectedGradientDescent", "eps": EPS, "options": APGD}),
    "carlini l2": ("art", {"attack": "CarliniL2Method", "norm": "l2", "eps": None, "options": CARLINI}),
}
AT_MOST = {"apgd": 64, "carlini l2": 16}
NOTES = {"tune": ": defaults are chosen here", "test": ""}
ADAPTED = {"stem": "medium", "purified_copies": 8, "out": Path("runs", "adapted")}
"""The classifier where purified images are read: a cheaper one, which has seen such images; and its folder."""
MOST_TESTED = 4
"""Images of a group that are tested: more of them would cost time and tell little."""
AUGMENTATIONS = {
    "light": Augmentation(shift=4, intensity=0.3, noise=0.01),
    "robust": robust_augmentation().model_copy(update={"quarter_turns": True}),
}
"""Of the classifier's training images; Br35H is full of turned and mirrored copies."""
SHARES = {"train": 0.65, "tune": 0.1, "calibrate": 0.25}
"""Of the images outside a fold's test part: to train, to choose defaults on, to calibrate thresholds."""


@dataclass(frozen=True)
class Setting:
    """What is measured; a folder holds folds of one setting only."""

    data: str
    size: int
    classifier: str
    folds: int
    max_per_group: int
    seed: int
    classifier_steps: int
    denoiser_steps: int
    autoencoder_steps: int
    fingerprint: str
    augmentation: str
    stem: str
    purified_copies: int

    def reader(self) -> str:
        """The classifier in words."""
        parts = [self.classifier, f"{self.classifier_steps} steps"]
        parts += [f"stem {self.stem}"] if self.stem != "auto" else []
        parts += [f"{self.augmentation} augmentation"] if self.augmentation != "light" else []
        parts += (
            [f"trained on {self.purified_copies} purified copies of each image too"] if self.purified_copies else []
        )
        return ", ".join(parts)


@dataclass(frozen=True)
class Attacked:
    """An attack on images of a part; a slow one on some that the bare classifier reads correctly.

    Attributes:
        images: `(N, C, H, W)`, attacked.
        place: `(N,)`, which images of the part they were.
        right: `(N,)` bool, the bare classifier reads the benign image correctly.
        success: `(N,)` bool, it does, and is fooled.
        text: the threat in words.
    """

    images: Tensor
    place: Tensor
    right: Tensor
    success: Tensor
    text: str


@dataclass(frozen=True)
class Fold:
    """One fold: its parts, and what was trained on its train part.

    Attributes:
        parts: train, tune, calibrate and test; no near-duplicate group is in two of them.
        augmentation: what the classifier's training images went through.
    """

    number: int
    seed: int
    folder: Path
    parts: dict[str, ImageDataset]
    classifier: ClassifierModel
    denoiser: Any
    autoencoder_steps: int
    augmentation: Augmentation

    def context(self) -> ScoreContext:
        """What a detector may use."""
        return ScoreContext(self.classifier, self.classifier.features, self.denoiser)

    def verdicts(self, part: str) -> Tensor:
        """Labels `(N,)` that the bare classifier gives."""
        with torch.no_grad():
            return torch.cat([self.classifier(batch.images).argmax(1) for batch in self.parts[part].batches(64)])

    def clean_balanced_accuracy(self, part: str) -> float:
        """Of the bare classifier."""
        data = self.parts[part]
        return classification_figures(self.verdicts(part), data.labels, data.num_classes).balanced_accuracy

    def attacked(self, part: str, name: str) -> Attacked:
        """A static attack on the bare classifier, kept in the fold's folder."""
        path = self.folder / f"{part} {name}".replace(" ", "_").replace("/", "_")
        if not path.exists():
            self._attack(part, name, path)
        document, tensors = read_document(path, kind="attacked", keys=("attack", "text"))
        if document["attack"] != _recipe(name, self.parts[part]):
            raise SystemExit(f"{path} was made by another attack or of other images ({document['attack']}): delete it")
        columns = (tensors[key] for key in ("images", "place", "right", "success"))
        return Attacked(*columns, text=document["text"])

    def _attack(self, part: str, name: str, path: Path) -> None:
        data = self.parts[part]
        place, right = mixed_order(data, self.seed), self.verdicts(part) == data.labels
        if name in AT_MOST:
            place = place[right[place]][: AT_MOST[name]]
        plugin, options = ATTACKS[name]
        attack = medfedpure.create("attack", plugin, **options)
        streams = Streams(self.seed, data.ids[place])
        found = attack(self.classifier, data.images[place], data.labels[place], streams=streams)
        document = {"kind": "attacked", "attack": _recipe(name, data), "text": attack.describe()}
        tensors = {"images": found.images, "place": place, "right": right[place]}
        with atomic_folder(path) as work:
            write_document(work, document, {**tensors, "success": found.success & right[place]})

    def autoencoder(self) -> Any:
        """A masked autoencoder detector, which scores reconstruction errors; trained once for all that use it."""
        folder = self.folder / "mae"
        if not folder.exists():
            training = {"steps": self.autoencoder_steps, "batch_size": 32, "ema": 0.99}
            made = medfedpure.create("detector", "mae", score={"kind": "reconstruction"}, training=training)
            context = ScoreContext(checkpoint=self.folder / "mae_checkpoint")
            made.fit(self.parts["train"], context=context, seed=self.seed).save(folder)
        return Detector.load(folder)

    def noised(self, part: str, most: int) -> tuple[Tensor, Tensor]:
        """The control: so many images of the part with uniform noise of the attacks' eps, and their places."""
        data, place = self.parts[part], mixed_order(self.parts[part], self.seed)[:most]
        noise = 2 * Streams(self.seed, data.ids[place]).uniform(data.image_shape, stage="control") - 1
        return (data.images[place] + EPS * noise).clamp(0, 1), place


def mixed_order(data: ImageDataset, seed: int) -> Tensor:
    """An order of the images `(N,)` whose every beginning has all classes, and one image of many groups."""
    shuffled = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed % 2**63)).tolist()
    seen: Counter[int] = Counter()
    taken: Counter[tuple[int, int]] = Counter()
    keys = []
    for place in shuffled:
        group = int(data.groups[place])
        keys.append((seen[group], place))
        seen[group] += 1
    ranked = []
    for occurrence, place in sorted(keys, key=lambda key: key[0]):
        label = int(data.labels[place])
        ranked.append((occurrence, taken[occurrence, label], label, place))
        taken[occurrence, label] += 1
    return torch.tensor([place for *_, place in sorted(ranked)], dtype=torch.int64)


def _recipe(name: str, data: ImageDataset) -> list[Any]:
    return [*ATTACKS[name], AT_MOST.get(name, "every image"), data.fingerprint()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every benchmark over folds can be told."""
    parser.add_argument("--data", type=Path, required=True, help="one sub-folder per class, or a MedMNIST .npz")
    parser.add_argument("--out", type=Path, default=Path("runs", "folds"), help="keeps what is trained and measured")
    parser.add_argument("--only", type=int, nargs="+", help="these folds only")
    parser.add_argument("--part", choices=("tune", "test"), default="test", help="where to measure")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64, help="of the images of a folder; a MedMNIST file has its own")
    parser.add_argument("--classifier", default="resnet18")
    parser.add_argument("--stem", choices=("auto", "small", "medium", "large"), default="auto", help="of a resnet18")
    parser.add_argument("--augmentation", choices=tuple(AUGMENTATIONS), default="light", help="of the classifier")
    parser.add_argument(
        "--purified-copies", type=int, default=0, metavar="N", help="of every image that the classifier is trained on"
    )
    parser.add_argument("--max-per-group", type=int, default=8)
    parser.add_argument("--most", type=int, help="at most so many images")
    parser.add_argument("--seed", type=int, default=0)
    heads = ("CLASSIFIER", "DENOISER", "AUTOENCODER")
    parser.add_argument("--steps", type=int, nargs=3, default=[600, 1500, 1200], metavar=heads)


def open_data(given: argparse.Namespace) -> tuple[ImageDataset, Setting]:
    """The images, and what is measured of them; the folder is made, or refused where it holds another setting."""
    data = read_data(given.data, given.size, given.max_per_group, given.seed, given.most)
    shape = (data.name, data.image_shape[1], given.classifier, given.folds, given.max_per_group, given.seed)
    setting = Setting(*shape, *given.steps, data.fingerprint(), given.augmentation, given.stem, given.purified_copies)
    open_folder(given.out, setting)
    return data, setting


def read_data(path: Path, size: int, max_per_group: int, seed: int, most: int | None = None) -> ImageDataset:
    """A folder of images or a MedMNIST file; at most so many images of a group, and of all."""
    if path.suffix == ".npz":
        # The file holds no names; of the collections that are measured here, class 1 is the finding.
        data = medfedpure.create("dataset", "medmnist", path=path, positive="class 1").read()
    else:
        options = {"root": path, "image_size": size, "channels": 1}
        data = medfedpure.create("dataset", "image_folder", **options).read()
    data = data.cap_groups(max_per_group, seed)
    if most is not None and most < len(data):
        data = data.split({"kept": most / len(data), "left": 1 - most / len(data)}, seed=seed)["kept"]
    return data


def open_folder(out: Path, setting: Setting) -> None:
    """Make the folder of a run, or refuse one that holds another setting."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "setting.json"
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != asdict(setting):
            raise SystemExit(f"{out} holds folds of other images or another setting, {found}: choose another --out")
    else:
        write_json(path, asdict(setting))


def prepare(setting: Setting, data: ImageDataset, number: int, out: Path, say: Callable[[str], None]) -> Fold:
    """Train what a fold needs, or read it from its folder."""
    folds = data.split({f"fold{place}": 1 / setting.folds for place in range(setting.folds)}, seed=setting.seed)
    test = folds.pop(f"fold{number}").cap_groups(MOST_TESTED, setting.seed)
    rest = ImageDataset.concatenate(list(folds.values()))
    parts = {**rest.split(SHARES, seed=derive_seed(setting.seed, "parts", number)), "test": test}
    seed, folder = derive_seed(setting.seed, "fold", number), out / f"fold_{number}"
    say(f"fold {number}: " + ", ".join(f"{len(part)} to {name}" for name, part in parts.items()))
    if not (folder / "denoiser").exists():
        say("training the diffusion model")
        _denoiser(setting, parts["train"], seed, folder / "denoiser_checkpoint").save(folder / "denoiser")
    denoiser: Any = Purifier.load(folder / "denoiser")
    if not (folder / "classifier").exists():
        say("training the classifier")
        seen = _seen(setting, parts["train"], denoiser, seed)
        _classifier(setting, seen, seed, folder / "checkpoint").save(folder / "classifier")
    model = ClassifierModel.load(folder / "classifier").to(memory_format=torch.channels_last)
    augmentation = AUGMENTATIONS[setting.augmentation]
    return Fold(number, seed, folder, parts, model, denoiser, setting.autoencoder_steps, augmentation)


def _seen(setting: Setting, data: ImageDataset, denoiser: Any, seed: int) -> ImageDataset:
    """What the classifier is trained on: a third originals, the rest cleaned at every depth that a chain may use."""
    copies = setting.purified_copies
    if copies == 0:
        return data
    purifier = medfedpure.create("purifier", "ddpm", t_min=10, t_max=150)
    purifier.adopt(InBfloat16(denoiser.network), data.image_shape)
    return with_purified(data, purifier, copies=copies, originals=max(copies // 2, 1), seed=seed)


def _classifier(setting: Setting, data: ImageDataset, seed: int, checkpoint: Path) -> ClassifierModel:
    channels, size, _ = data.image_shape
    options: dict[str, Any] = {"stem": setting.stem} if setting.classifier == "resnet18" else {}
    model: ClassifierModel = medfedpure.create("classifier", setting.classifier, **options).create_model(
        in_channels=channels, num_classes=data.num_classes, image_size=size, seed=seed
    )
    task = ClassificationTask(AUGMENTATIONS[setting.augmentation])
    training = {"batch_size": 32, "learning_rate": 1e-3, "ema": 0.98, "precision": "bfloat16"}
    budget = TrainingConfig(steps=setting.classifier_steps, **training)
    model = model.to(memory_format=torch.channels_last)
    train(model, task, data, budget, seed=seed, description="classifier", checkpoint=checkpoint)
    return model.eval()


def _denoiser(setting: Setting, data: ImageDataset, seed: int, checkpoint: Path) -> Any:
    budget = {"steps": setting.denoiser_steps, "batch_size": 32, "learning_rate": 2e-3, "ema": 0.995}
    options = {"t_max": 150, "training": {**budget, "precision": "bfloat16"}, "model": UNET}
    context = ScoreContext(checkpoint=checkpoint)
    return medfedpure.create("purifier", "ddpm", **options).fit(data, context=context, seed=seed)


class InBfloat16(nn.Module):
    """A network that computes in bfloat16; what comes in and goes out is float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, timestep: Tensor) -> Tensor:
        """As the network's own."""
        with torch.autocast(images.device.type, torch.bfloat16):
            found: Tensor = self.network(images, timestep)
        return found.to(images.dtype)


UNET: dict[str, Any] = {"widths": [48, 96], "unshuffle": 2}


def progress() -> Callable[[str], None]:
    """A function that prints a line with the seconds since now."""
    start = time.perf_counter()
    return lambda text: print(f"[{time.perf_counter() - start:6.0f} s] {text}", flush=True)
