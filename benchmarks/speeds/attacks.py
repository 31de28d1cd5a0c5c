"""What our PGD costs beside a bare loop of the same evaluations, and beside other libraries on the same images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import medfedpure
from benchmarks.speeds.made import classifier, phantoms, purifier, trained, ways
from benchmarks.speeds.timing import Setting, in_turns, paired, ratio
from medfedpure.core.classifier import ClassifierModel
from medfedpure.core.storage import write_document
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.views import exact_view
from medfedpure.models.diffusion import Diffusion

EPS, STEP, STEPS, BATCH = 0.03, 0.0075, 10, 16
EARLY = {"eps": 0.1, "step": 0.025, "steps": 20}
EXACT = {"eps": 0.015, "step": 0.0075, "steps": 3, "eot": 4}
CLASSIFIERS: dict[str, dict[str, Any]] = {"small_cnn": {}, "resnet18": {"stem": "large"}}
TRAINED = {"small_cnn": 200, "resnet18": 40}
UNKNOWN = "not measured"
ROOT = Path(__file__).parents[2]


def exact(setting: Setting) -> dict[str, Any]:
    """The exact attack through `purify_all`, beside a loop of the same precision that does nothing else."""
    size = setting.sizes[0]
    count = setting.of(2, 32, 1)
    data = phantoms(max(count, 2), size, seed=1).select(torch.arange(count))
    images, labels = data.images.to(setting.device), data.labels.to(setting.device)
    rows = []
    for way in ways(setting.device):
        model, cleaner = classifier("ResNet-18", size, setting.device), purifier(size, setting.device)
        chain = DefendedClassifier(model, purifier=cleaner, policy="purify_all").accelerate(way)
        loop = _purifying_loop(cleaner.diffusion, cleaner.network, model, images, labels, cleaner.config)
        alone = partial(_in_precision, loop, images.device, halves=chain.acceleration.autocast)
        attack = medfedpure.create("attack", "pgd_eot", **EXACT, early_stop=False)
        view = exact_view(chain)
        took = paired(lambda: attack(view, images, labels), alone, setting, 2)  # noqa: B023
        rows.append({"way": way, "to_bare": took})
    return {"size": size, "images": count, "classifier": "ResNet-18", "attack": EXACT, "rows": rows}


def _in_precision(work: Callable[[], Tensor], device: torch.device, *, halves: bool) -> Tensor:
    with torch.autocast(device.type, torch.bfloat16, enabled=halves):
        return work()


def _purifying_loop(
    diffusion: Diffusion, network: nn.Module, model: nn.Module, images: Tensor, labels: Tensor, config: Any
) -> Callable[[], Tensor]:
    """PGD through the default purifier at full strength, by nothing but torch; noise is drawn where the images are."""
    count = config.sampling.num_inference_steps
    times = [config.t_max * (count - place) / count for place in range(count + 1)]
    levels = [(float(a), float(b)) for a, b in zip(*diffusion.coefficients(torch.tensor(times)), strict=True)]
    device = images.device

    def step(current: Tensor, place: int, drawn: Tensor) -> Tensor:
        (signal, sigma), (signal_after, sigma_after) = levels[place], levels[place + 1]
        predicted = network(current, torch.full((len(current),), times[place], device=device))
        clean = ((current - sigma * predicted) / signal).clamp(-1, 1)
        lost = (sigma**2 - sigma_after**2) / signal_after**2
        mean = signal_after * lost / sigma**2 * clean + signal / signal_after * sigma_after**2 / sigma**2 * current
        return mean + (sigma_after**2 / sigma**2 * lost) ** 0.5 * drawn

    def read(given: Tensor, *, keep: bool) -> Tensor:
        current = levels[0][0] * (given * 2 - 1) + levels[0][1] * torch.randn_like(given)
        for place in range(count):
            drawn = torch.randn_like(given)
            # As the purifier does by default, so that the same is evaluated.
            current = (
                checkpoint(step, current, place, drawn, use_reentrant=False) if keep else step(current, place, drawn)
            )
        logits: Tensor = model(((current + 1) / 2).clamp(0, 1))
        return logits

    def work() -> Tensor:
        looks, eps = int(EXACT["eot"]), float(EXACT["eps"])
        current, low, high = images, images - eps, images + eps
        for _ in range(int(EXACT["steps"])):
            leaf = current.detach().requires_grad_(True)
            loss = functional.cross_entropy(read(leaf.repeat(looks, 1, 1, 1), keep=True), labels.repeat(looks))
            (gradient,) = torch.autograd.grad(loss, leaf)
            current = torch.minimum(torch.maximum(current + EXACT["step"] * gradient.sign(), low), high).clamp(0, 1)
        with torch.no_grad():
            return read(current, keep=False)

    return work


def libraries(setting: Setting) -> dict[str, Any]:
    """PGD of equal steps by us, by a bare loop and by others, on classifiers that are trained here for a few steps."""
    size, tested = setting.sizes[0], 8 if setting.quick else 100
    data = phantoms(32 + tested if setting.quick else 800, size, seed=0)
    asked, rest = data.select(torch.arange(tested)), data.select(torch.arange(tested, len(data)))
    rows = []
    for name, options in CLASSIFIERS.items():
        model = trained(name, rest, 2 if setting.quick else TRAINED[name], setting.device, **options)
        rows.append({"classifier": name, **_of_one(model, asked.images, asked.labels, setting)})
    budget = {"norm": "linf", "eps": EPS, "step": STEP, "steps": STEPS}
    return {"size": size, "batch": BATCH, "tested": tested, "attack": budget, "early": EARLY, "rows": rows}


def _of_one(model: ClassifierModel, images: Tensor, labels: Tensor, setting: Setting) -> dict[str, Any]:
    images, labels = images.to(setting.device), labels.to(setting.device)
    few, own = images[:BATCH], labels[:BATCH]
    budget = {"eps": EPS, "step": STEP, "steps": STEPS}
    ours = medfedpure.create("attack", "pgd_eot", **budget, early_stop=False)
    adapted = medfedpure.create("attack", "pgd", **budget)
    by_foolbox = _foolbox(model, setting.device)
    works: dict[str, Callable[[], object]] = {
        "bare": lambda: _bare_loop(model, few, own),
        "pgd_eot": lambda: ours(model, few, own),
        "art": _art(model, few, own, setting.device),
        "pgd": lambda: adapted(model, few, own),
    }
    fallen = {"pgd_eot": _share(ours(model, images, labels).success)}
    fallen["pgd"] = _share(adapted(model, images, labels).success)
    if by_foolbox is not None:
        works["foolbox"] = lambda: by_foolbox(few, own)
        fallen["foolbox"] = _share(by_foolbox(images, labels))
    with _torchattacks(model, images, labels, setting) as (there, why):
        if there is not None:
            fallen["torchattacks"] = there("all")["fooled"]
            works["torchattacks"] = lambda: float(there("some")["seconds"])
        found = in_turns(works, setting, 3)
    row: dict[str, Any] = {"pgd_eot_to_bare": ratio(found["pgd_eot"], found["bare"])}
    row["to_pgd_eot"] = {
        name: ratio(found[name], found["pgd_eot"]) for name in found if name not in ("bare", "pgd_eot")
    }
    if by_foolbox is None:
        row["to_pgd_eot"]["foolbox"] = f"{UNKNOWN}: it is not installed"
    if there is None:
        row["to_pgd_eot"]["torchattacks"] = f"{UNKNOWN}: {why}"
    stopping, whole = (medfedpure.create("attack", plugin, **EARLY) for plugin in ("pgd_eot", "pgd"))
    row["early_pgd_to_pgd_eot"] = paired(lambda: whole(model, few, own), lambda: stopping(model, few, own), setting, 3)
    row["early_fallen"] = _share(stopping(model, few, own).success)
    return {**row, "fooled": fallen}


def _share(values: Tensor) -> float:
    return round(float(values.double().mean()), 4)


def _bare_loop(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """What nobody can do with less: gradient, sign, clamp; and the verdict of the result."""
    low, high = images - EPS, images + EPS
    current = images
    for _ in range(STEPS):
        leaf = current.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(functional.cross_entropy(model(leaf), labels, reduction="sum"), leaf)
        current = torch.minimum(torch.maximum(current + STEP * gradient.sign(), low), high).clamp(0, 1)
    with torch.no_grad():
        model(current)
    return current


def _art(model: nn.Module, images: Tensor, labels: Tensor, device: str) -> Callable[[], object]:
    """ART's attack on ART's estimator."""
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        tuple(images.shape[1:]),
        nb_classes=2,
        clip_values=(0, 1),
        device_type="gpu" if device == "cuda" else "cpu",
    )
    attack = ProjectedGradientDescent(
        estimator, eps=EPS, eps_step=STEP, max_iter=STEPS, batch_size=BATCH, verbose=False
    )
    pixels, truth = images.cpu().numpy(), labels.cpu().numpy()
    return lambda: attack.generate(pixels, truth)


def _foolbox(model: nn.Module, device: str) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Which images fell to its attack; None where it is not installed."""
    try:
        import foolbox
    except ImportError:
        return None
    shown = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    attack: Any = foolbox.attacks.LinfPGD(abs_stepsize=STEP, steps=STEPS, random_start=False)
    return lambda images, labels: attack(shown, images, labels, epsilons=EPS)[2]


@contextmanager
def _torchattacks(
    model: ClassifierModel, images: Tensor, labels: Tensor, setting: Setting
) -> Iterator[tuple[Callable[[str], dict[str, Any]] | None, str]]:
    """Asks a process of another environment, which holds the same model and images; or None, and why there is none."""
    if setting.torchattacks is None:
        yield None, "no --torchattacks was given"
        return
    folder = setting.folder / model.architecture.plugin_name
    model.save(folder / "model")
    (folder / "images").mkdir()
    tensors = {"images": images, "labels": labels}
    write_document(folder / "images", {"kind": "images"}, tensors)
    words = [setting.torchattacks, "-m", "benchmarks.speeds.torchattacks_worker", str(folder), setting.device]
    budget = [str(value) for value in (EPS, STEP, STEPS, BATCH, torch.get_num_threads())]
    with subprocess.Popen(
        [*words, *budget], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        incoming, outgoing = process.stdout, process.stdin

        def ask(what: str) -> dict[str, Any]:
            outgoing.write(f"{what}\n")
            outgoing.flush()
            answer: dict[str, Any] = json.loads(incoming.readline())
            return answer

        if not incoming.readline():
            yield None, f"{setting.torchattacks} cannot run it"
        else:
            yield ask, ""
