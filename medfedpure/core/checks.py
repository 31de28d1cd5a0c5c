"""Input checks shared by all public methods; each error says what came and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from medfedpure.core.errors import InputError, ProbabilitiesWarning

TOLERANCE = 1e-6


def check_images(images: Tensor) -> None:
    """Raise InputError unless `images` is `(N, C, H, W)`, floating, finite and in [0, 1].

    Costs one device synchronization.
    """
    check_image_layout(images)
    if images.numel() == 0:
        return
    low, high = torch.aminmax(images.detach())
    check_range(*torch.stack((low, high)).tolist())


def check_range(low: float, high: float) -> None:
    """Raise InputError unless the smallest and largest pixel lie in [0, 1], rounding error aside."""
    if low != low or high != high:
        raise InputError("images contain NaN: check how they were read")
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):
        raise InputError(
            f"images must lie in [0, 1]; got [{low:.4g}, {high:.4g}]: "
            "pass them before normalization (normalization lives inside the classifier)"
        )


def check_image_layout(images: Tensor) -> None:
    """Raise InputError unless `images` is a floating tensor of shape `(N, C, H, W)`."""
    if not isinstance(images, Tensor):
        raise InputError(
            f"images must be a torch tensor of shape (N, C, H, W), or, where a data set is read, an ImageDataset such "
            f"as medfedpure.create('dataset', 'image_folder', root='FOLDER').read(); got {type(images).__name__}"
        )
    if images.ndim != 4:
        hint = "add a batch dimension: images.unsqueeze(0)" if images.ndim == 3 else "a volume is read slice by slice"
        raise InputError(f"images must have shape (N, C, H, W); got {tuple(images.shape)}: {hint}")
    if not images.is_floating_point():
        raise InputError(f"images must be floating in [0, 1]; got {images.dtype}: divide by the largest value first")


def check_labels(labels: Tensor, size: int, classes: int | None = None) -> None:
    """Raise InputError unless `labels` is int64 `(N,)` and, where `classes` says how many there are, in 0..K-1.

    To look at the values costs one device synchronization.
    """
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != (size,):
        raise InputError(f"labels must be int64 of shape ({size},), one class per image; got {_kind_of(labels)}")
    if classes is not None and size:
        low, high = torch.stack(torch.aminmax(labels)).tolist()
        check_classes(low, high, classes)


def check_classes(low: int, high: int, classes: int | None) -> None:
    """Raise InputError unless the smallest and largest class are in 0..K-1; with None, where K is not known, 0 or more.

    For whoever knows them already.
    """
    if low < 0:
        raise InputError(f"classes count from 0; got {low}: leave out the images that have no label")
    if classes is not None and high >= classes:
        raise InputError(
            f"labels and targets must lie in 0..{classes - 1}, as the classifier answers {classes} classes; got "
            f"{high}: take images of these classes alone, or a classifier that was trained on all of them"
        )


def highest_class(labels: Tensor, targets: Tensor | None) -> int:
    """The highest class of labels and targets `(N,)`; raises InputError where the lowest is below 0."""
    if not len(labels):
        return 0
    low, high = torch.stack(torch.aminmax(labels if targets is None else torch.cat((labels, targets)))).tolist()
    check_classes(low, high, None)
    return int(high)


def check_mask(mask: Tensor | None, images: Tensor) -> None:
    """Raise InputError unless a mask is bool `(N, 1, H, W)`, or None."""
    wanted = (len(images), 1, *images.shape[2:])
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == wanted):
        raise InputError(f"mask must be bool of shape {wanted}; got {_kind_of(mask)}")


def check_scores(scores: Tensor, size: int, who: str) -> None:
    """Raise InputError unless `scores` is floating and of shape `(N,)`."""
    if not isinstance(scores, Tensor) or scores.shape != (size,) or not scores.is_floating_point():
        raise InputError(f"{who} must return floating scores of shape ({size},); got {_kind_of(scores)}")


def check_logits(logits: Tensor, size: int, *, values: bool = False, told: bool = True) -> None:
    """Raise InputError unless a classifier's output is floating logits `(N, K)` with K >= 2.

    With `values` they must be finite as well, which costs one device synchronization, and where `told`, probabilities
    are warned of. To save it, take `facts_about` along with whatever waits for the device, and `check_facts` after it.
    """
    fits = isinstance(logits, Tensor) and logits.ndim == 2 and logits.shape[0] == size and logits.shape[1] > 1
    if not fits or not logits.is_floating_point():
        raise InputError(
            f"the classifier must map images to logits of shape ({size}, K) with K >= 2; got {_kind_of(logits)}: "
            f"{_remedy(logits, size)}"
        )
    if values and size:
        bad, probable = facts_about(logits).tolist()
        check_facts(bad, probable if told else 0, size)


def facts_about(logits: Tensor) -> Tensor:
    """`(2,)` float on the device of logits `(N, K)`: how many rows are not finite, and how many are probabilities.

    Probabilities lie in [0, 1] and sum to 1.
    """
    half = logits.dtype in (torch.float16, torch.bfloat16)
    seen, slack = (logits.detach().float(), 1e-2) if half else (logits.detach(), 1e-4)
    probable = ((seen >= 0) & (seen <= 1)).all(1) & ((seen.sum(1) - 1).abs() <= slack)
    return torch.stack(((~seen.isfinite()).any(1).sum(), probable.sum())).float()


def check_facts(bad: float, probable: float, size: int) -> None:
    """Judge what `facts_about` found in N rows.

    Raises:
        InputError: a row is not finite.

    Warns:
        ProbabilitiesWarning: all rows are probabilities.
    """
    if bad:
        raise InputError(
            f"the classifier answered NaN or infinity for {int(bad)} of {size} images: no verdict follows from that. "
            "Look at its weights, its normalization and, in half precision, at overflows"
        )
    if size and probable == size:
        warnings.warn(
            "the classifier's rows lie in [0, 1] and sum to 1, so they are probabilities, and logits are wanted: "
            "cross-entropy, margins and their gradients (attacks), divergences (detectors), means of a vote and "
            "calibration errors are of another quantity. Leave the softmax out of the model, or take the logarithm",
            ProbabilitiesWarning,
            stacklevel=3,
        )


def mismatch(module: nn.Module, images: Tensor, error: Exception) -> InputError | None:
    """Why a module may have failed on images `(N, C, H, W)`: weights of another dtype, device or number of channels.

    None where it is none of these, as far as the error says.
    """
    own = next((part for part in module.parameters() if part.is_floating_point()), None)
    if own is not None and (own.dtype, own.device) != (images.dtype, images.device):
        there, here = f"{own.dtype} on {own.device}", f"{images.dtype} on {images.device}"
        remedy = f"images.to({str(own.device)!r}, {own.dtype}) or the model"
        if own.dtype != images.dtype:
            remedy += f"; or wrap it in a module whose forward calls model(images.to({own.dtype})).to(images.dtype)"
        return InputError(f"the classifier's weights are {there} and the images {here}: convert one of them, {remedy}")
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels != images.shape[1] and "channels" in str(error):
        return InputError(
            f"the classifier's first layer takes images of {first.in_channels} channels, and {tuple(images.shape)} "
            f"came: read them with channels={first.in_channels}, build the model for {images.shape[1]} (timm: in_chans="
            f"{images.shape[1]}), or wrap it in a module whose forward repeats the channels"
        )
    return None


def _remedy(logits: object, size: int) -> str:
    """What to do with an output that is no logits."""
    if isinstance(logits, Tensor):
        if not logits.is_floating_point() and logits.shape[:1] == (size,):
            return "these are classes and no logits: leave out the argmax"
        if logits.is_floating_point() and logits.shape in ((size,), (size, 1)):
            return (
                "one logit z of two classes becomes two by torch.stack((torch.zeros_like(z), z), 1), z of shape (N,): "
                "wrap the model; multi-label models are out of scope"
            )
        return "multi-label, segmentation and 3-D models are out of scope"
    if isinstance(getattr(logits, "logits", None), Tensor):
        return "wrap the model in one that returns its output.logits"
    if isinstance(logits, Mapping):
        named = ", ".join(repr(key) for key in list(logits)[:5])
        return f"wrap the model in one that returns the logits alone, of {named}"
    if isinstance(logits, Sequence) and not isinstance(logits, str):
        return f"wrap the model in one that returns the logits alone, one of these {len(logits)}, such as output[0]"
    if type(logits).__module__.partition(".")[0] == "numpy":
        return "wrap the model in one that returns a torch tensor, torch.from_numpy(output); it has no gradient"
    return "it must return a torch tensor; other models are out of scope"


def _kind_of(value: object) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
