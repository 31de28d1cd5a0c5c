"""Scans of the study, attacked and purified, for who has them: `python -m benchmarks.study.gallery --data FOLDER`

One PNG of attacked test images of a fold, misread undefended, chosen by rule: in the order of the margin that the
paper's chain leaves them, the first, the last, the median and the quartiles. It shows scans: mind their licence.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import medfedpure
from benchmarks.folds import progress
from benchmarks.study.bench import ARMS, Bench
from benchmarks.study.charts import NAMES
from benchmarks.study.how import PAPER, SIZES, How
from benchmarks.study.measure import MOST
from benchmarks.study.places import PLACES
from benchmarks.study.units import device
from medfedpure.core.dataset import ImageDataset
from medfedpure.core.results import AttackResult, Prediction
from medfedpure.core.streams import Streams, derive_seed
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import choose

CHAIN = "paper"
"""Its purifier and detector are shown, and its margins choose."""
RANKS: Mapping[str, float] = {"best": 0.0, "upper quartile": 0.25, "median": 0.5, "lower quartile": 0.75, "worst": 1.0}
RIGHT, WRONG, REFUSED, INK = "#1a7f4b", "#c0392b", "#8a6d3b", "#222222"
GIVEN_BACK = "refused"


@dataclass(frozen=True)
class Shown:
    """What stands in the picture, of N images.

    Attributes:
        ranks: of each image.
        data: the images, not attacked.
        attacked: what the paper's attack made of them, on the undefended classifier.
        seen: what the chain says of the attacked images, with suspicion maps.
        margins: `(N,)`, logit of the true class less the largest other one.
        verdicts: of each arm, what it says of each image before and after the attack on its own classifier.
        misread: how many attacked images are misread undefended, and of how many.
    """

    ranks: tuple[str, ...]
    data: ImageDataset
    attacked: AttackResult
    seen: Prediction
    margins: Tensor
    verdicts: Mapping[str, list[tuple[str, str]]]
    misread: tuple[int, int]


def shown(bench: Bench) -> Shown:
    """Choose, attack and ask, of what is trained.

    Raises:
        SystemExit: no image is misread.
    """
    chain, test = bench.arm(CHAIN), choose(bench.parts["test"], MOST, bench.seed)
    found = attacked(bench, chain, test)
    fallen = found.success.cpu().nonzero().squeeze(1)
    if not len(fallen):
        raise SystemExit(f"none of {len(test)} attacked images is misread undefended: train the classifier longer")
    said = asked(bench, chain, test.select(fallen), found.images[fallen])
    margins = margin(said.logits.cpu(), test.labels[fallen])
    picked = ranked(margins)
    rows = fallen[list(picked.values())]
    data, chosen = test.select(rows), found[rows]
    seen = asked(bench, chain, data, chosen.images, explain=True)
    verdicts = {name: _verdicts(bench, name, data) for name in NAMES if not untrained(bench, name)}
    left = margins[list(picked.values())]
    return Shown(tuple(picked), data, chosen, seen, left, verdicts, (len(fallen), len(test)))


def ranked(margins: Tensor) -> dict[str, int]:
    """Where the images of each rank stand in `(N,)` margins; of few images some ranks are empty."""
    order = margins.argsort(descending=True, stable=True).tolist()
    found: dict[str, int] = {}
    for name in ("best", "worst", "median", *RANKS):
        place = order[round(RANKS[name] * (len(order) - 1))]
        if place not in found.values():
            found[name] = place
    return {name: found[name] for name in RANKS if name in found}


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """`(N,)` of logits `(N, K)`: that of the label less the largest other one."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return own - logits.scatter(1, labels[:, None], float("-inf")).amax(1)


def untrained(bench: Bench, name: str) -> list[str]:
    """The trainings that an arm waits for."""
    reader, around = ARMS[name]
    wanted = [reader] if around in ("none", "median") else [reader, "denoiser"]
    return [what for what in wanted if not (bench.out / what / "medfedpure.json").exists()]


def attacked(bench: Bench, chain: DefendedClassifier, data: ImageDataset) -> AttackResult:
    """The paper's attack on the bare classifier of a chain."""
    attack: Any = medfedpure.create("attack", "pgd", **PAPER)
    images, labels = data.images.to(bench.device), data.labels.to(bench.device)
    found: AttackResult = attack(chain.classifier, images, labels, streams=Streams(bench.seed, data.ids))
    return found


def asked(
    bench: Bench, chain: DefendedClassifier, data: ImageDataset, images: Tensor, *, explain: bool = False
) -> Prediction:
    """The first draw of the study."""
    seed = derive_seed(bench.seed, "draw", 0)
    return chain.predict(images.to(bench.device), ids=data.ids, seed=seed, explain=explain)


def draw(found: Shown) -> Figure:
    """One row an image."""
    stretch = 1 / (2 * PAPER["eps"])
    titles = ("benign", "attacked", f"difference x{stretch:.0f}", "suspicion", "classifier read", "verdicts")
    rows = len(found.ranks)
    figure = Figure(figsize=(2.1 * len(titles) + 1.6, 2.3 * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, len(titles), squeeze=False, width_ratios=[1, 1, 1, 1, 1, 1.2])
    for place, row in enumerate(axes):
        _row(list(row), found, place, stretch)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK, loc="left")
    misread, all_ = found.misread
    figure.suptitle(
        f"{found.attacked.description}; of the bare classifier (static), EoT 1; one draw of the noise.\n"
        f"Of {all_} attacked test images, one a group, {misread} are misread undefended: shown in the order of the "
        "margin that the paper's chain leaves them.\n"
        f"Difference: grey is none, black and white are {PAPER['eps']:g}. Suspicion: each from its least to its most. "
        "Verdicts: benign > attacked, each on its own classifier.",
        fontsize=8,
        color=INK,
    )
    return figure


def _verdicts(bench: Bench, name: str, data: ImageDataset) -> list[tuple[str, str]]:
    chain = bench.arm(name)
    pairs = []
    for images in (data.images, attacked(bench, chain, data).images):
        said = asked(bench, chain, data, images)
        names = [data.class_names[label] for label in said.labels.tolist()]
        pairs.append([GIVEN_BACK if no else word for word, no in zip(names, said.abstained.tolist(), strict=True)])
    return list(zip(*pairs, strict=True))


def _row(axes: list[Axes], found: Shown, place: int, stretch: float) -> None:
    scan, changed, seen = found.data.images[place], found.attacked.images[place].cpu(), found.seen
    _show(axes[0], scan)
    _show(axes[1], changed)
    _show(axes[2], (0.5 + stretch * (changed - scan)).clamp(0, 1))
    if seen.suspicion_map is None:
        axes[3].set_axis_off()
    else:
        _show(axes[3], seen.suspicion_map[place].cpu(), grey=False)
    _show(axes[4], seen.images[place].cpu())
    purified = f"purified, strength {float(seen.strength[place]):.2f}" if seen.purified[place] else "left as it came"
    axes[4].set_xlabel(purified, fontsize=8, color=INK)
    truth = found.data.class_names[int(found.data.labels[place])]
    label = (
        f"{found.ranks[place]}\nmargin {float(found.margins[place]):+.1f}\ngroup {int(found.data.groups[place])}\n"
        f"linf, eps {PAPER['eps']:g}\nPGD, {PAPER['steps']} steps"
    )
    axes[0].set_ylabel(label, fontsize=8, color=INK, rotation=0, ha="right", va="center")
    lines = [(f"truth: {truth}", INK)]
    for name, verdicts in found.verdicts.items():
        before, after = verdicts[place]
        colour = RIGHT if after == truth else REFUSED if after == GIVEN_BACK else WRONG
        lines.append((f"{NAMES[name]}: {before} > {after}", colour))
    for number, (text, colour) in enumerate(lines):
        axes[5].text(0, 1 - number / (len(NAMES) + 1), text, fontsize=8, color=colour, va="top")
    axes[5].set_axis_off()


def _show(axis: Axes, image: Tensor, *, grey: bool = True) -> None:
    limits: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1} if grey else {"cmap": "magma"}
    axis.imshow(image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy(), **limits)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def bench_of(data: Path, models: Path, how: How, fold: int, seed: int) -> Bench:
    """A fold of Br35H, with what is trained of it.

    Raises:
        SystemExit: the chain is not trained.
    """
    name = f"br35h_fold_{fold}"
    place = PLACES[name]
    out = models / how.name / name
    bench = Bench({}, out, seed, progress(), how, place.turns, device())
    if missing := untrained(bench, CHAIN):
        units = " ".join(f"{name}/train_{what}" for what in missing)
        raise SystemExit(f"{out} has no {', '.join(missing)}: python -m benchmarks.study --data {data} {units}")
    return Bench(place.parts(data, how, seed), out, seed, progress(), how, place.turns, device())


def main() -> None:
    """Draw one fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of data sets")
    parser.add_argument("--models", type=Path, default=Path("runs", "study"), help="--out of benchmarks.study")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder of the picture")
    parser.add_argument("--fold", type=int, choices=range(5), default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    medfedpure.keep_freed_memory()
    bench = bench_of(given.data, given.models, SIZES[given.size], given.fold, given.seed)
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"br35h_fold_{given.fold}.png"
    draw(shown(bench)).savefig(path, dpi=110, facecolor="white")
    print(path)


if __name__ == "__main__":
    main()
