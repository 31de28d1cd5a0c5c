"""Images of an evaluation for its page: benign, attacked, what changed, and what the defence made of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from medfedpure.core.dataset import ImageDataset
from medfedpure.core.results import Prediction, device_of, on_cpu
from medfedpure.core.streams import derive_seed
from medfedpure.core.verdict import ABSTAINED
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.ladder import label
from medfedpure.evaluation.readings import Reading
from medfedpure.evaluation.records import ArmResult, Evaluation, RungResult
from medfedpure.evaluation.store import Store
from medfedpure.reporting.evaluation.summary import Summary, counted
from medfedpure.reporting.evaluation.threat import threat

_FACTORS = (1, 2, 5, 10, 20, 30, 50, 100)
_COLD, _WARM, _HOT = (13, 15, 40), (196, 62, 84), (252, 232, 150)


@dataclass(frozen=True)
class Picture:
    """One image as text for a page."""

    caption: str
    source: str


@dataclass(frozen=True)
class Remark:
    """One line beside the pictures; `right` is None where there is no right or wrong."""

    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Row:
    """One image: its pictures and what was said of it."""

    pictures: list[Picture]
    remarks: list[Remark]


@dataclass(frozen=True)
class Gallery:
    """A few images under one attack."""

    arm: str
    threat: str
    rows: list[Row]


def make_gallery(
    evaluation: Evaluation,
    summary: Summary,
    benign: ImageDataset,
    folder: Path,
    *,
    chain: DefendedClassifier | None = None,
    rows: int = 6,
) -> Gallery | None:
    """Images under the weakest point of the headline defence, at the first eps that has one.

    Args:
        evaluation, summary: of one run.
        benign: the images that were evaluated, in their order (`medfedpure.evaluation.evaluate.choose`).
        folder: where the run kept its finished rungs.
        chain: the headline defence, to show also what it made of the attacked images.
        rows: how many images.
    """
    arm = next(arm for arm in evaluation.arms if arm.name == summary.headline)
    store = Store(folder, evaluation.setting)
    for eps in evaluation.eps:
        weakest = summary.line(arm.name, eps).weakest
        rung = next((rung for rung in counted(arm, eps) if rung.rung == weakest), None)
        kept = None if rung is None else store.load(arm.name, label(rung.rung, rung.norm, rung.eps))
        if rung is None or rung.reading is None or kept is None or "images" not in kept[1]:
            continue
        met = rung.reading.own(torch.arange(len(benign)))
        picked = _choose(arm.clean.right(benign.labels)[met], rung.reading, benign.labels[met], rows)
        attacked, chosen = kept[1]["images"][picked], met[picked]
        seen = None
        if chain is not None:
            seed = derive_seed(derive_seed(evaluation.setting["seed"], arm.name, "read"), "draw", 0)
            moved = attacked.to(device_of(chain))
            seen = on_cpu(chain.predict(moved, ids=benign.ids[chosen], seed=seed, explain=True))
        places = zip(chosen.tolist(), picked.tolist(), strict=True)
        made = [_row(place, number, benign, attacked[number], arm, rung, seen) for number, place in enumerate(places)]
        return Gallery(arm.name, threat([rung]), made)
    return None


def _choose(before: Tensor, attacked: Reading, labels: Tensor, rows: int) -> Tensor:
    """Failures beside successes: by turns read correctly, fooled, refused; first those that were right before.

    Args:
        before: `(M,)` bool, of the images that were attacked.
        attacked: what was said of them.
        labels: `(M,)` int64.
        rows: how many are chosen.
    """
    right, fooled = attacked.right(labels), attacked.fooled(labels)
    flagged = torch.tensor(attacked.flagged)
    kinds = (before & right & flagged, before & fooled, before & right & ~flagged, before & ~right & ~fooled, ~before)
    queues = [kind.nonzero().squeeze(1).tolist() for kind in kinds]
    picked: list[int] = []
    while len(picked) < min(rows, len(labels)):
        for queue in queues:
            if queue and len(picked) < rows:
                picked.append(queue.pop(0))
    return torch.tensor(picked)


def _row(
    places: tuple[int, int],
    number: int,
    benign: ImageDataset,
    attacked: Tensor,
    arm: ArmResult,
    rung: RungResult,
    seen: Prediction | None,
) -> Row:
    """One image, by its place among all and among those attacked."""
    assert rung.reading is not None
    place, met = places
    image = benign.pixels[place].float() / benign.top
    change = attacked - image
    factor = max((f for f in _FACTORS if f * float(change.abs().max()) <= 0.5), default=1)
    pictures = [
        Picture("benign", png(image)),
        Picture("attacked", png(attacked)),
        Picture(f"change, {factor}x; mid-grey is none", png(0.5 + factor * change)),
    ]
    if seen is not None and seen.suspicion_map is not None:
        pictures.append(Picture("where it looks suspicious", png(heat(seen.suspicion_map[number]))))
    if seen is not None:
        name = "purified" if bool(seen.purified[number]) else "read as it was"
        pictures.append(Picture(name, png(seen.images[number])))
    names, truth = benign.class_names, int(benign.labels[place])
    remarks = [Remark(f"truth: {names[truth]}")]
    if seen is not None:
        bare = int(seen.bare_logits[number].argmax())
        remarks.append(Remark(f"attacked, bare classifier: {names[bare]}", bare == truth))
    for what, reading, at in (("benign", arm.clean, place), ("attacked", rung.reading, met)):
        said = reading.verdicts[0][at]
        word = "refused" if said == ABSTAINED else names[said]
        mark = ", flagged" if reading.flagged[at] else ""
        remarks.append(Remark(f"{what}, defended: {word}{mark}", None if said == ABSTAINED else said == truth))
    if rung.distance:
        remarks.append(Remark(f"{rung.norm} distance {rung.distance[met]:.3g}"))
    return Row(pictures, remarks)


def heat(values: Tensor) -> Tensor:
    """A map `(1, H, W)` as colours `(3, H, W)`, dark to bright over its own range."""
    low, high = values.min(), values.max()
    share = ((values - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    cold, warm, hot = (torch.tensor(colour)[:, None, None] / 255 for colour in (_COLD, _WARM, _HOT))
    return torch.where(share < 0.5, cold + 2 * share * (warm - cold), warm + (2 * share - 1) * (hot - warm))


def png(image: Tensor) -> str:
    """`(C, H, W)` in [0, 1] as a data URI."""
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    if pixels.shape[0] not in (1, 3):
        pixels = pixels[:1]
    mode: str = "L" if pixels.shape[0] == 1 else "RGB"
    height, width = pixels.shape[1:]
    stream = io.BytesIO()
    content: Sequence[int] = pixels.permute(1, 2, 0).flatten().tolist()
    Image.frombytes(mode, (width, height), bytes(content)).save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
