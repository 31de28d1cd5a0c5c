"""What three recipes of `medfedpure.defend` are worth on phantoms: `python -m benchmarks.recipes`.

A plain classifier, and one that was trained on adversarial examples as well, each defended by every recipe and read on
images that no fit, threshold, choice or check has seen. "paper" is what "robust" fitted, under its own policy. Both
attacks raise the margin of logits and go on after success: `static` fools the bare classifier, `knowing` goes through
the defence (exact where every part has a gradient, else BPDA). The worst case is what is read rightly unattacked, under
static and under every knowing attack on the same classifier. A refusal counts as an error. Below stand the detectors
that the recipe "fast" might have taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import medfedpure
from medfedpure.core.attack import ThreatView
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.detector import ScoreContext
from medfedpure.core.errors import MissingRequirementError
from medfedpure.core.settings import AdversarialTraining, TrainingConfig
from medfedpure.core.streams import Streams
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.views import bpda_view, exact_view, is_stochastic
from medfedpure.figures.balanced import balanced, balanced_interval
from medfedpure.figures.metrics import auroc, true_positive_rate
from medfedpure.training.adversarial import AdversarialTask
from medfedpure.training.classification import ClassificationTask
from medfedpure.training.loop import train

IMAGES, SIZE, STEPS, LOOKS, TESTED = 480, 32, 10, 4, 48
TRAINED = 400
DETECTORS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "mahalanobis": ("mahalanobis", {}),
    "feature_squeezing": ("feature_squeezing", {}),
    "feature_squeezing, median alone": ("feature_squeezing", {"bits": ()}),
    "feature_squeezing, 5 bits alone": ("feature_squeezing", {"windows": ()}),
}


def classifier(data: ImageDataset, eps: float, seed: int, *, hardened: bool) -> ClassifierModel:
    """A small_cnn trained on them, half of every batch attacked where it is to be hardened."""
    model: ClassifierModel = medfedpure.create("classifier", "small_cnn").create_model(
        in_channels=1, num_classes=data.num_classes, image_size=SIZE, class_names=data.class_names, seed=seed
    )
    plain = ClassificationTask()
    settings = AdversarialTraining(share=0.5, eps=eps, step=eps / 3, steps=5)
    task = AdversarialTask(plain, settings, plain) if hardened else plain
    train(model, task, data, TrainingConfig(steps=TRAINED, batch_size=32, learning_rate=3e-3), seed=seed)
    return model.eval()


def attacked(view: nn.Module, data: ImageDataset, eps: float, looks: int, seed: int) -> Tensor:
    """Images `(N, C, H, W)` by PGD on the margin of logits."""
    config = {"eps": eps, "step": 2.5 * eps / STEPS, "steps": STEPS, "loss": "cw", "eot": looks, "early_stop": False}
    attack = medfedpure.create("attack", "pgd_eot", config)
    made: Tensor = attack(view, data.images, data.labels, streams=Streams(seed, data.ids)).images
    return made


def knowing(chain: DefendedClassifier) -> tuple[ThreatView, int]:
    """What who knows a defence sees of it, and how often he looks."""
    try:
        view = exact_view(chain)
    except MissingRequirementError:
        view = bpda_view(chain)
    return view, LOOKS if is_stochastic(chain) else 1


def row(name: str, chain: DefendedClassifier, sets: Mapping[str, Tensor], own: Tensor, test: ImageDataset) -> str:
    """One line of the table."""

    def right(images: Tensor) -> tuple[Tensor, Tensor]:
        found = chain.predict(images, test.ids, seed=1)
        return found.labels == test.labels, found.abstained

    start = time.perf_counter()
    clean, refused = right(test.images)
    each = 1000 * (time.perf_counter() - start) / len(test)
    read = {what: right(images) for what, images in sets.items()}
    worst = torch.stack([clean, *[one for one, _ in read.values()]]).all(0)
    low, high = balanced_interval(worst, test.labels, test.groups) or (float("nan"), float("nan"))
    static, alarm = read["static"]
    silent = float((~static & ~alarm).double().mean())
    cells = [
        name,
        chain.policy,
        *(f"{100 * balanced(one, test.labels):.1f}" for one in (clean, static, right(own)[0])),
        f"{100 * balanced(worst, test.labels):.1f} ({100 * low:.0f} to {100 * high:.0f})",
        f"{100 * float(refused.double().mean()):.1f}",
        f"{100 * silent:.1f}",
        f"{each:.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def detectors(model: ClassifierModel, fit: ImageDataset, test: ImageDataset, eps: float, seed: int) -> None:
    """AUROC and cost of what a cheap alarm might be."""
    made = attacked(model, test, eps, 1, seed)
    with torch.no_grad():
        logits = model(test.images)
        fooled = (logits.argmax(1) == test.labels) & (model(made).argmax(1) != test.labels)
    bare = fastest(lambda: model(test.images))
    print(f"\ndetectors, static attack, {int(fooled.sum())} images fooled\n")
    print("| detector | AUROC | TPR at 5 % FPR | cost, in passes |\n|---|---|---|---|")
    for name, (plugin, config) in DETECTORS.items():
        detector = medfedpure.create("detector", plugin, config)
        detector.fit(fit, context=ScoreContext(model, model.features))
        with torch.no_grad():
            own = ScoreContext(model, model.features, None, logits)
            benign = detector(test.images, context=own, streams=Streams(0, test.ids))
            seen = ScoreContext(model, model.features)
            found = detector(made[fooled], context=seen, streams=Streams(0, test.ids[fooled]))
            cost = fastest(lambda part=detector, own=own: part(test.images, context=own, streams=Streams(0, test.ids)))  # type: ignore[misc]
        figures = f"{auroc(benign, found):.3f} | {true_positive_rate(benign, found, 0.05):.3f}"
        print(f"| {name} | {figures} | {cost / bare:.1f} |")


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of five calls, without gradients."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.no_grad():
            work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eps", type=float, default=0.015, help="of all attacks, in linf")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    data = medfedpure.create("dataset", "phantom", images=IMAGES, image_size=SIZE, seed=options.seed).read()
    parts = data.split({"train": 0.35, "benign": 0.5, "test": 0.15}, seed=options.seed)
    test = parts["test"].one_per_group(options.seed)
    test = test.select(torch.arange(min(TESTED, len(test))))
    print(
        f"{IMAGES} phantoms of {SIZE} px, seed {options.seed}; {len(test)} test images; linf, eps {options.eps}, "
        f"{STEPS} steps, margin of logits, EoT {LOOKS} where a defence draws noise; classifiers of {TRAINED} steps, "
        'budget="quick"\n'
    )
    rows: list[str] = []
    columns = ["defence", "policy", "clean", "static", "knowing", "worst case (95 %)", "refused, clean"]
    rows.append(f"| {' | '.join([*columns, 'static: wrong and not refused', 'ms an image'])} |\n{'|---' * 9}|")
    for kind, hardened in (("plain", False), ("hardened", True)):
        model = classifier(parts["train"], options.eps, options.seed, hardened=hardened)
        chains = {f"{kind}, bare": DefendedClassifier(model, policy="none")}
        chains[f"{kind}, fast"] = medfedpure.defend(model, parts["benign"], recipe="fast")
        robust = medfedpure.defend(model, parts["benign"], recipe="robust", eps=options.eps, budget="quick")
        chains[f"{kind}, paper"] = DefendedClassifier(
            model,
            detector=robust.detector,
            purifier=robust.purifier,
            policy="purify_flagged",
            calibration=robust.calibration,
        )
        chains[f"{kind}, robust"] = robust
        print(f"\n{kind}: {robust.choice}\n", flush=True)
        sets = {"static": attacked(model, test, options.eps, 1, options.seed)}
        for name, chain in chains.items():
            view, looks = knowing(chain)
            with chain.noise_sequence(options.seed):
                sets[name] = attacked(view, test, options.eps, looks, options.seed)
        for name, chain in chains.items():
            rows.append(row(name, chain, sets, sets[name], test))
            print(rows[-1], flush=True)
        if not hardened:
            plain = model
    print("\n" + "\n".join(rows))
    detectors(plain, parts["benign"], test, options.eps, options.seed)


if __name__ == "__main__":
    main()
