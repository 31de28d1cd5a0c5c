"""What a detector costs on benign images, and what it is worth: `python -m benchmarks.benign_front [--data FOLDER]`.

On groups of their own a classifier and a diffusion model are trained, and kept under --out. Every arm is a detector in
the same gated chain, its threshold set at 5 % on calibration groups. It is read on benign test images, one of each
group; on static PGD that fooled the bare classifier; and on what `orthogonal_pgd` made against this very detector, on
fewer images. Its price is the share of the bare classifier's images per second that the whole chain keeps on benign
images, purification of those that it flags included: medians of interleaved pairs, one thread.

Each arm is one JSON file under --results; what is in it is not measured again, and --long adds to it. Without --data,
phantoms are drawn.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import medfedpure
from benchmarks.folds import AUGMENTATIONS, mixed_order, open_folder, progress, read_data
from benchmarks.speeds.timing import seconds, spread
from medfedpure.core.attack import ThreatView
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.purifier import Purifier
from medfedpure.core.results import AttackResult
from medfedpure.core.settings import TrainingConfig
from medfedpure.core.storage import atomic_folder, read_document, write_document, write_json
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.versions import versions
from medfedpure.evaluation.views import detector_view, static_view
from medfedpure.figures.intervals import cluster_bootstrap
from medfedpure.figures.metrics import auroc, true_positive_rate
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

RESULTS = Path(__file__).parent / "results" / "benign_front"
SHARES = {"train": 0.5, "calibrate": 0.2, "test": 0.3}
PER_GROUP = 4
"""Images of a near-duplicate group that are trained on."""
CLASSIFIER: dict[str, Any] = {"batch_size": 32, "learning_rate": 1e-3, "ema": 0.98, "precision": "bfloat16"}
DENOISER: dict[str, Any] = {"batch_size": 16, "learning_rate": 2e-3, "ema": 0.99, "precision": "bfloat16"}
EPS: Mapping[str, float] = {"0.015": 0.015, "8/255": 8 / 255}
STEPS = {"static": 7, "aware": 7, "long": 40}
"""Of PGD on the bare classifier, and of `orthogonal_pgd`, which knows the detector."""
ATTACKED = {"static": 64, "aware": 24, "long": 16}
"""Images that each attack is aimed at: who knows the detector pays for its gradient in every step."""
PAIRS = 3
"""How often all test images are timed, once bare and once guarded."""
STUDENT: dict[str, Any] = {"steps": 400, "batch_size": 32, "learning_rate": 3e-3, "ema": 0.98}
SMALL: dict[str, Any] = {"images": 96, "eps": (0.015, 8 / 255), "steps": 3, "training": STUDENT}
"""How `distilled` is fitted here: on few images, by short attacks."""
FEATURES = {**SMALL, "sees": ("features", "logits"), "width": 64}
ARMS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "compose": ("compose", {}),
    "score_norm": ("score_norm", {}),
    "distilled": ("distilled", SMALL),
    "staged distilled": ("staged", {"first": {"plugin": "distilled", "config": SMALL}}),
    "reduced 2": ("reduced", {"factor": 2}),
    "reduced 4": ("reduced", {"factor": 4}),
    "staged reduced 2": ("staged", {"first": {"plugin": "reduced", "config": {"factor": 2}}}),
    "fast": ("feature_squeezing", {"bits": ()}),
    "denoising_disagreement": ("denoising_disagreement", {}),
    "distilled, features": ("distilled", FEATURES),
}
"""By name: a detector and its configuration; `fast` refuses what it flags, all others purify it."""


@dataclass(frozen=True)
class Setting:
    """What is measured; the folder of a run holds one setting only."""

    data: str
    size: int
    classifier: str
    classifier_steps: int
    denoiser_steps: int
    seed: int

    @property
    def name(self) -> str:
        """The folder of its results."""
        return f"{self.data}_{self.size}_{self.classifier}"


@dataclass(frozen=True)
class Bench:
    """The parts of the data, where what was trained on them is kept, and where it computes."""

    setting: Setting
    parts: dict[str, ImageDataset]
    out: Path
    device: torch.device
    say: Callable[[str], None]

    def classifier(self) -> ClassifierModel:
        """Trained once; below 96 px a ResNet-18 has its medium stem."""
        folder, data, s = self.out / "classifier", self.parts["train"], self.setting
        if not folder.exists():
            options = {"stem": "medium"} if s.classifier == "resnet18" and s.size < 96 else {}
            model: Any = medfedpure.create("classifier", s.classifier, options).create_model(
                in_channels=1,
                num_classes=data.num_classes,
                image_size=s.size,
                class_names=data.class_names,
                seed=s.seed,
            )
            model.to(self.device, memory_format=torch.channels_last)
            budget = TrainingConfig(steps=s.classifier_steps, **CLASSIFIER)
            seed, task = derive_seed(s.seed, "classifier"), ClassificationTask(AUGMENTATIONS["light"])
            train(model, task, data, budget, seed=seed, checkpoint=self.out / "classifier_checkpoint")
            model.eval().save(folder)
        loaded: Any = ClassifierModel.load(folder)
        kept: ClassifierModel = loaded.to(self.device, memory_format=torch.channels_last).requires_grad_(False)
        return kept

    def purifier(self) -> Purifier:
        """Trained once."""
        folder, s = self.out / "denoiser", self.setting
        if not folder.exists():
            training = {"steps": s.denoiser_steps, **DENOISER}
            made: Any = medfedpure.create("purifier", "ddpm", t_max=150, training=training)
            context = ScoreContext(self.classifier(), checkpoint=self.out / "denoiser_checkpoint")
            made.fit(self.parts["train"], context=context, seed=derive_seed(s.seed, "denoiser")).save(folder)
        return Purifier.load(folder).to(self.device)

    def chain(self, name: str) -> DefendedClassifier:
        """The gated chain of an arm, fitted and calibrated."""
        classifier, purifier, s = self.classifier(), self.purifier(), self.setting
        plugin, config = ARMS[name]
        policy: Any = "abstain" if name == "fast" else "purify_flagged"
        detector = medfedpure.create("detector", plugin, config).to(self.device)
        context = ScoreContext(classifier, classifier.features, purifier)
        detector.fit(self.parts["train"], context=context, seed=derive_seed(s.seed, "detector"))
        chain = DefendedClassifier(classifier, detector=detector.to(self.device), purifier=purifier, policy=policy)
        return chain.calibrate(self.parts["calibrate"], 0.05, seed=s.seed)

    def tested(self) -> ImageDataset:
        """One test image of each group, in an order whose every beginning has both classes."""
        test = self.parts["test"].one_per_group(self.setting.seed)
        return test.select(mixed_order(test, self.setting.seed))

    def few(self, kind: str) -> ImageDataset:
        """The first test images, as many as an attack of this kind is aimed at."""
        test = self.tested()
        return test.select(torch.arange(min(ATTACKED[kind], len(test))))

    def static(self, chain: DefendedClassifier, eps: str) -> tuple[Tensor, Tensor, str]:
        """Images by PGD on the bare classifier, which of them fool it, and the attack in words; made once."""
        folder, few = self.out / f"static_{eps.replace('/', '_')}", self.few("static")
        if not folder.exists():
            config = {"eps": EPS[eps], "step": EPS[eps] / 5, "steps": STEPS["static"], "early_stop": False}
            images, fooled, text = self._attacked("pgd_eot", config, static_view(chain), few)
            document = {"kind": "attacked", "text": text, "images": few.fingerprint()}
            with atomic_folder(folder) as work:
                write_document(work, document, {"images": images.cpu(), "fooled": fooled})
        document, tensors = read_document(folder, kind="attacked", keys=("text", "images"))
        if document["images"] != few.fingerprint():
            raise SystemExit(f"{folder} was made of other images: choose another --out")
        return tensors["images"].to(self.device), tensors["fooled"], document["text"]

    def aware(self, chain: DefendedClassifier, eps: str, kind: str) -> tuple[Tensor, Tensor, str]:
        """The same by `orthogonal_pgd` against the chain's own detector, in few steps or many.

        Raises:
            MissingRequirementError: the detector has no gradient.
        """
        config = {"eps": EPS[eps], "step": 2.5 * EPS[eps] / STEPS[kind], "steps": STEPS[kind]}
        with chain.noise_sequence(self.setting.seed):
            return self._attacked("orthogonal_pgd", config, detector_view(chain), self.few(kind))

    def _attacked(
        self, name: str, config: dict[str, Any], view: ThreatView, data: ImageDataset
    ) -> tuple[Tensor, Tensor, str]:
        """Images, which of them the classifier read rightly and reads so no more, and the attack in words."""
        attack, seed = medfedpure.create("attack", name, {**config, "batch_size": 16}), self.setting.seed
        images, labels = data.images.to(self.device), data.labels.to(self.device)
        with torch.no_grad():
            right = view(images).argmax(1) == labels
        found: AttackResult = attack(view, images, labels, streams=Streams(derive_seed(seed, name), data.ids))
        return found.images, (right & found.success).cpu(), f"{found.description}; {found.view}"

    def measured(self, name: str, kinds: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
        """All figures of one arm; what is known is not measured again."""
        chain, test = self.chain(name), self.tested()
        self.say(f"{name}: fitted")
        benign = chain.predict(test, seed=self.setting.seed)
        assert benign.scores is not None
        assert benign.flagged is not None
        found: dict[str, Any] = {
            "images": len(test),
            "calibration": self.parts["calibrate"].num_groups,
            "flagged": float(benign.flagged.double().mean()),
            **known,
        }
        if found.get("throughput", {}).get("images") != len(test):
            found["throughput"] = self._kept(chain, test)
        self.say(f"{name}: keeps {found['throughput']['kept']['median']:.2f}")
        for kind in kinds:
            for eps in EPS if kind not in known else ():
                try:
                    images, fooled, text = self.static(chain, eps) if kind == "static" else self.aware(chain, eps, kind)
                except MissingRequirementError as error:
                    seen: dict[str, Any] = {"skipped": str(error)}
                else:
                    seen = {"attack": text, **self._read(chain, test, benign.scores, images, fooled)}
                found.setdefault(kind, {})[eps] = seen
                self.say(f"{name}: {kind} {eps}: {seen}")
        return found

    def _read(
        self, chain: DefendedClassifier, test: ImageDataset, benign: Tensor, images: Tensor, fooled: Tensor
    ) -> dict[str, Any]:
        """How the attacked images that fool the bare classifier are told from benign ones."""
        rows = torch.nonzero(fooled).squeeze(1)
        seen: dict[str, Any] = {"attacked": len(images), "fooled": len(rows)}
        if len(rows) < 2:
            return seen
        answer = chain.predict(images[rows], ids=test.ids[rows], seed=self.setting.seed)
        assert answer.scores is not None
        assert answer.flagged is not None
        usual, odd = benign.double().cpu(), answer.scores.double().cpu()
        both, groups = torch.cat((usual, odd)), torch.cat((torch.arange(len(usual)), rows))

        def figure(drawn: Tensor) -> float:
            own, other = both[drawn[drawn < len(usual)]], both[drawn[drawn >= len(usual)]]
            return auroc(own, other) if len(own) and len(other) else float("nan")

        low, high = cluster_bootstrap(figure, groups, draws=500)
        return {
            **seen,
            "auroc": auroc(usual, odd),
            "low": low,
            "high": high,
            "tpr": true_positive_rate(usual, odd, 0.05),
            "flagged": float(answer.flagged.double().mean()),
        }

    @torch.no_grad()
    def _kept(self, chain: DefendedClassifier, test: ImageDataset) -> dict[str, Any]:
        """Share of the bare classifier's images per second that the chain keeps on benign images."""
        images, kind, taken = test.images.to(self.device), self.device.type, []
        works = (lambda: chain.classifier(images), lambda: chain.predict(images, seed=self.setting.seed))
        for pair in range(PAIRS + 1):
            times = [seconds(work, kind) for work in works]
            taken += [times] if pair else []  # the first warms up
        return {
            "kept": spread([bare / guarded for bare, guarded in taken]),
            "bare": spread([len(images) / bare for bare, _ in taken]),
            "images": len(images),
            "flagged": int(chain.predict(images, seed=self.setting.seed).flagged.sum()),  # type: ignore[union-attr]
        }


def opened(path: Path | None, size: int, seed: int) -> ImageDataset:
    """A folder of images, or phantoms."""
    if path is None:
        options = {"images": 720, "image_size": size, "lesion_contrast": 2.0, "seed": seed}
        drawn: ImageDataset = medfedpure.create("dataset", "phantom", options).read()
        return drawn
    return read_data(path, size, PER_GROUP, seed)


def main() -> None:
    """Measure the arms that are named, by default all, and are not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--data", type=Path, help="one sub-folder per class; without it phantoms are drawn")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--classifier", default="resnet18", help="at 224 px efficientnet_lite0 is usual")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--steps", type=int, nargs=2, default=[300, 400], metavar=("CLASSIFIER", "DENOISER"))
    parser.add_argument("--long", action="store_true", help="also `orthogonal_pgd` in many steps, for the arms named")
    parser.add_argument("--out", type=Path, default=Path("runs", "benign_front"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if unknown := sorted(set(given.arms) - set(ARMS)):
        raise SystemExit(f"no arm is named {', '.join(unknown)}; the arms are {', '.join(ARMS)}")
    torch.set_num_threads(1)
    medfedpure.keep_freed_memory()
    say = progress()
    name = given.data.name if given.data else "phantom"
    setting = Setting(name, given.size, given.classifier, *given.steps, given.seed)
    parts = opened(given.data, given.size, given.seed).split(SHARES, seed=given.seed)
    dealt = {what: [len(part), part.num_groups] for what, part in parts.items()}
    say(f"images and groups: {dealt}")
    open_folder(given.out / setting.name, setting)
    bench = Bench(setting, parts, given.out / setting.name, given.device, say)
    device = torch.cuda.get_device_name(given.device) if given.device.type == "cuda" else given.device.type
    kinds = ["static", "aware", *(["long"] if given.long else [])]
    for arm in given.arms or ARMS:
        path = (
            given.results / f"{setting.name}_{given.device.type}" / f"{arm.replace(', ', '_').replace(' ', '_')}.json"
        )
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        tested = parts["test"].num_groups
        if set(kinds) <= known.keys() and known["throughput"]["images"] == tested:
            say(f"{arm}: done")
            continue
        document = {
            "arm": arm,
            "setting": asdict(setting),
            "parts": dealt,
            "device": device,
            **bench.measured(arm, kinds, known),
            "versions": versions(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, document)


if __name__ == "__main__":
    main()
