"""Purifiers side by side: `python -m benchmarks.purification --data FOLDER --out DIR`.

The folds and diffusion models are those of `benchmarks.detection`; by default the classifier has another
stem and has seen purified images, so DIR must be another. Every purifier cleans the benign and the attacked
test images of each fold; those that diffuse use one and the same network. Attacks are static, on the bare
classifier, of every image: an attacker need not know which ones it misreads. The difference where those are
left alone stands beside. `--part tune` measures candidates where defaults are chosen.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import medfedpure
from benchmarks.folds import ADAPTED, Fold, InBfloat16, add_arguments, open_data, prepare, progress
from benchmarks.purification_table import markdown
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.purifier import Purifier
from medfedpure.core.storage import write_json
from medfedpure.core.streams import Streams
from medfedpure.core.task import Trainable
from medfedpure.defence.calibration import Calibration
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.defence.voting import Vote
from medfedpure.models.diffusion import low_frequencies
from medfedpure.models.mae import MaskedAutoencoder
from medfedpure.models.unet import NoiseUNet

ATTACKS = ("pgd", "pgd 8/255")
FLAGGED = {"detector": ("compose", {}), "policy": "purify_flagged"}
BY_ONE = {"detector": ("denoising_disagreement", {}), "policy": "purify_flagged"}
SHALLOW = {"t_min": 60, "t_max": 100, "sampling": {"num_inference_steps": 9}}
ARMS: dict[str, dict[str, Any]] = {
    "bare": {},
    "ddpm, flagged only": {"purifier": ("ddpm", {}), **FLAGGED},
    "ddpm, flagged only, 4 draws": {"purifier": ("ddpm", {}), **FLAGGED, "vote": Vote(4)},
    "ddpm from t* = 60, flagged only": {"purifier": ("ddpm", {"t_min": 60}), **FLAGGED},
    "ddpm, t* = 60 to 100, flagged only": {"purifier": ("ddpm", {"t_min": 60, "t_max": 100}), **FLAGGED},
    "ddpm, t* = 60 to 100, flagged by disagreement": {"purifier": ("ddpm", SHALLOW), **BY_ONE},
    "ddpm, all": {"purifier": ("ddpm", {})},
    "ddpm, t* = 100, all": {"purifier": ("ddpm", SHALLOW)},
    "ddpm, all, low frequencies kept": {"purifier": ("ddpm", {"sampling": {"keep_low": 4.0}})},
    "ddpm one step, all": {"purifier": ("ddpm", {"sampling": {"sampler": "one_step"}})},
    "diffpure t* = 100": {"purifier": ("diffpure", {"timestep": 100}), "bfloat16": True},
    "diffpure t* = 150": {"purifier": ("diffpure", {"timestep": 150}), "bfloat16": True},
    "diffpure t* = 100, float32": {"purifier": ("diffpure", {"timestep": 100})},
    "mae_inpaint": {"purifier": ("mae_inpaint", {})},
    "median": {"purifier": ("median", {})},
    "art JPEG": {"purifier": ("art", {"preprocessor": "JpegCompression"})},
    "art total variation": {"purifier": ("art", {"preprocessor": "TotalVarMin"})},
    "smoothing, 8 draws": {"purifier": ("smoothing", {}), "vote": Vote(8)},
}
PER_GROUP = 2
"""Images of a near-duplicate group that are purified: more would take hours and tell little."""
TIMED = 32
"""Images that the bare classifier reads just before, for comparison."""
CONTROLS = ("diffpure t* = 100, float32",)
"""Asked for by name only: what bfloat16 changes in the anchor, which would take hours in float32 on a CPU."""
CANDIDATES: dict[str, dict[str, Any]] = {
    f"t* = {depth}, {steps} steps": {
        "purifier": (
            "ddpm",
            {"t_min": depth, "t_max": depth, "sampling": {"sampler": "ddim", "num_inference_steps": steps}},
        )
    }
    for depth, steps in ((60, 2), (60, 3), (100, 2), (100, 3), (100, 5), (150, 3), (150, 5))
}
CANDIDATES |= {
    f"t* = {depth}, {steps} ancestral steps": {
        "purifier": (
            "ddpm",
            {"t_min": depth, "t_max": depth, "sampling": {"sampler": "ancestral", "num_inference_steps": steps}},
        )
    }
    for depth, steps in ((60, 9), (100, 5), (100, 9), (150, 8), (150, 9))
}
CANDIDATES |= {
    f"low frequencies kept ({kept} px)": {"purifier": ("ddpm", {"sampling": {"keep_low": float(kept)}})}
    for kept in (1, 2)
}


def measure(fold: Fold, part: str, names: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """What every arm makes of benign and attacked images, as plain values; kept in the fold's folder."""
    path = fold.folder / f"purifiers_{part}.json"
    stored = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.exists() else {}
    whole = fold.parts[part]
    kept = torch.isin(whole.ids, whole.cap_groups(PER_GROUP, fold.seed).ids).nonzero().squeeze(1)
    data = whole.select(kept)
    inputs, texts = {"benign": data.images}, {}
    for name in ATTACKS:
        say(f"attack {name}")
        found = fold.attacked(part, name)
        inputs[name] = whole.images.index_copy(0, found.place, found.images)[kept]
        texts[name] = found.text
    record: dict[str, Any] = {"fold": fold.number, "attacks": texts, "arms": stored}
    record["labels"], record["groups"] = data.labels.tolist(), data.groups.tolist()
    for name in dict.fromkeys(("bare", *names)):
        chain = _chain({**ARMS, **CANDIDATES}[name], fold)
        parts = (chain.detector, chain.purifier)
        config = {part.kind: part.config.model_dump(mode="json") for part in parts if part is not None}
        config |= {"policy": chain.policy, "vote": asdict(chain.vote), "part": data.fingerprint()}
        if stored.get(name, {}).get("config") != config:
            say(f"arm {name}")
            record["arms"][name] = {"config": config, "inputs": _read(chain, fold, data, inputs)}
            write_json(path, record)
    return record


def _chain(arm: dict[str, Any], fold: Fold) -> DefendedClassifier:
    if not arm:
        return DefendedClassifier(fold.classifier, policy="none")
    plugin, options = arm["purifier"]
    purifier: Purifier = medfedpure.create("purifier", plugin, **options)
    if isinstance(purifier, Trainable):
        trained = fold.autoencoder() if plugin == "mae_inpaint" else fold.denoiser
        network = InBfloat16(trained.network) if arm.get("bfloat16") else trained.network
        purifier.adopt(network, fold.parts["train"].image_shape)
    vote = arm.get("vote", Vote())
    if "detector" not in arm:
        return DefendedClassifier(fold.classifier, purifier=purifier, policy="purify_all", vote=vote)
    plugin, options = arm["detector"]
    detector = medfedpure.create("detector", plugin, **options)
    detector.fit(fold.parts["train"], context=fold.context(), seed=fold.seed)
    chain = DefendedClassifier(fold.classifier, detector=detector, purifier=purifier, policy=arm["policy"], vote=vote)
    scores = chain.score_benign(fold.parts["calibrate"], seed=fold.seed)
    chain.calibration = Calibration.fit(scores, 0.05)
    return chain


def _read(chain: DefendedClassifier, fold: Fold, data: ImageDataset, inputs: dict[str, Tensor]) -> dict[str, Any]:
    found = {}
    bare = DefendedClassifier(fold.classifier, policy="none")
    detection = detector_evaluations(chain, data.images[:1])
    for name, images in inputs.items():
        start = time.perf_counter()
        bare.predict(images[:TIMED], data.ids[:TIMED], seed=fold.seed)
        middle = time.perf_counter()
        alone = (middle - start) / len(images[:TIMED])
        with metered(chain, images[:1]) as meter:
            said = chain.predict(images, data.ids, seed=fold.seed)
        end = time.perf_counter()
        found[name] = {
            "labels": said.labels.tolist(),
            "purified": said.purified.tolist(),
            "nfe": (said.trace.nfe + detection).tolist(),
            "psnr": psnr(said.images, data.images).tolist(),
            "ssim": ssim(said.images, data.images).tolist(),
            "gmacs": meter["gmacs"] / len(images),
            "ms": 1000 * (end - middle) / len(images),
            "times": (end - middle) / len(images) / alone,
        }
    return found


def detector_evaluations(chain: DefendedClassifier, image: Tensor) -> int:
    """How often the detector evaluates the purifier's network for an image."""
    network = getattr(chain.purifier, "network", None)
    if chain.detector is None or network is None:
        return 0
    seen: list[int] = []
    hook = network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    try:
        with torch.no_grad():
            chain.detector(image, context=chain.context(), streams=Streams.for_batch(0, 1))
    finally:
        hook.remove()
    return sum(seen)


@contextmanager
def metered(chain: DefendedClassifier, image: Tensor) -> Iterator[dict[str, float]]:
    """Counts, under "gmacs", the multiply-accumulates of every network of the chain inside the block, in 1e9.

    What one image costs is measured once; inside the block only rows are counted, so that time can be taken.
    """
    total = {"gmacs": 0.0}
    depth = torch.ones(1)
    purifier = getattr(chain.purifier, "network", None)
    purifier = purifier.network if isinstance(purifier, InBfloat16) else purifier
    networks: list[tuple[nn.Module, tuple[Tensor, ...]]] = [(chain.classifier, (image,))]
    if isinstance(purifier, NoiseUNet):
        networks.append((purifier, (image, depth)))
    elif isinstance(purifier, MaskedAutoencoder):
        networks.append((purifier, (image, torch.arange(purifier.patches)[None] * 4 < purifier.patches)))
    hooks = []
    for network, given in networks:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*given)
        each = counter.get_total_flops() / 2e9

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, each: float = each) -> None:
            del module, output
            total["gmacs"] += each * len(inputs[0])

        hooks.append(network.register_forward_hook(add))
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio `(N,)` in dB for images in [0, 1]; 99 where they are equal."""
    error = (images - reference).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-12).log10()).clamp(max=99)


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity `(N,)` (Wang et al. 2004), Gaussian window of 1.5 pixels, images in [0, 1]."""

    def blurred(values: Tensor) -> Tensor:
        return low_frequencies(values, 1.5)

    one, two = blurred(images), blurred(reference)
    spread_one = blurred(images.square()) - one.square()
    spread_two = blurred(reference.square()) - two.square()
    together = blurred(images * reference) - one * two
    likeness = (2 * one * two + 1e-4) / (one.square() + two.square() + 1e-4)
    structure = (2 * together + 9e-4) / (spread_one + spread_two + 9e-4)
    return (likeness * structure).flatten(1).mean(1)


def main() -> None:
    """Compute what is missing, print the table of all folds that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(**ADAPTED)
    parser.add_argument("--arms", nargs="*", choices=(*ARMS, *CANDIDATES), help="by default those of the part")
    given = parser.parse_args()
    usual = [name for name in (ARMS if given.part == "test" else CANDIDATES) if name not in CONTROLS]
    say = progress()
    data, setting = open_data(given)
    found = []
    for number in given.only if given.only is not None else range(given.folds):
        fold = prepare(setting, data, number, given.out, say)
        found.append(measure(fold, given.part, usual if given.arms is None else given.arms, say))
    print(markdown(setting, given.part, found))


if __name__ == "__main__":
    main()
