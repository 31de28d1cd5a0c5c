"""What the public methods return: frozen records of tensors and plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar, overload

import torch
from torch import Tensor, nn

from medfedpure.core.rows.index import Index, places_of
from medfedpure.core.rows.table import Tabular

Result = TypeVar("Result", "Purification", "AttackResult", "Trace", "Prediction")


@dataclass(frozen=True)
class Purification:
    """What a purifier made of a batch.

    Attributes:
        images: `(N, C, H, W)` in [0, 1], device and dtype of the input.
        nfe: `(N,)` int64, network evaluations spent on each image.
        timestep: `(N,)` float, the diffusion depth used for each image; None where there is none.
    """

    images: Tensor
    nfe: Tensor
    timestep: Tensor | None = None


class _OfImages(Tabular):
    """A result with a row for each image: at one place its row, at several the same of those images."""

    ids: Tensor | None

    def images_named(self) -> list[int]:
        """The id of every image; its place where the result knows no ids."""
        return list(range(len(self))) if self.ids is None else self.ids.tolist()

    def __len__(self) -> int:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: Index) -> Self: ...

    def __getitem__(self, index: int | Index) -> dict[str, Any] | Self:
        places = places_of(index, len(self))
        if isinstance(places, Tensor):
            several: Self = _picked(self, places, len(self))
            return several if self.ids is not None else replace(several, ids=places)  # type: ignore[type-var]
        found: dict[str, Any] = self[[places]].rows()[0]
        return found


@dataclass(frozen=True, repr=False, eq=False)
class AttackResult(_OfImages):
    """Adversarial images that passed the audit of their own budget.

    Attributes:
        images: `(N, C, H, W)` in [0, 1].
        success: `(N,)` bool, the view's prediction differs from the label (or is the target).
        distance: `(N,)` float, size of each perturbation in the attack's norm.
        description: norm, eps, steps and further settings, as they must stand beside any number.
        ids: `(N,)` int64, which images these are, as the data set names them; None where nobody said.
        view: what the attacker saw, the gradient mode first: "static: attacker ignores the defence".
    """

    images: Tensor
    success: Tensor
    distance: Tensor
    description: str
    ids: Tensor | None = None
    view: str = ""

    def __len__(self) -> int:
        return len(self.success)

    def __repr__(self) -> str:
        told = "; ".join(text for text in (self.description, self.view) if text)
        return f"AttackResult: {int(self.success.sum())} of {len(self)} images fool, {told}"

    def columns(self) -> dict[str, Sequence[Any]]:
        """The image's id, success, distance, and beside each the attack that they stand for."""
        columns: dict[str, Sequence[Any]] = {"image": self.images_named(), "success": self.success.tolist()}
        columns |= {"distance": self.distance.tolist(), "attack": [self.description] * len(self)}
        return {**columns, "view": [self.view] * len(self)}


@dataclass(frozen=True)
class Trace:
    """How a prediction came about.

    Attributes:
        policy: the policy that was applied.
        seed: the seed of the noise; None when it was drawn from the operating system.
        nfe: `(N,)` int64, evaluations of the purifier's network for each image, over all draws (0 = not purified).
        timestep: `(N,)` float, diffusion depth of each image, NaN where there was none.
        seconds: wall-clock seconds of each stage over the whole call.
        noise: which backend of the streams drew: "reference" or "device".
    """

    policy: str
    seed: int | None
    nfe: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    timestep: Tensor = field(default_factory=lambda: torch.empty(0))
    seconds: Mapping[str, float] = field(default_factory=dict)
    noise: str = "reference"


@dataclass(frozen=True, repr=False, eq=False)
class Prediction(_OfImages):
    """What a defended classifier says of `N` images.

    Attributes:
        labels: `(N,)` int64, the verdict (also where abstained: see `abstained`).
        probabilities: `(N, K)`, softmax of `logits`.
        logits: `(N, K)`.
        bare_logits: `(N, K)`, what the classifier says of the unpurified input.
        scores: `(N,)` detector scores, higher = more suspicious; None without a detector.
        p_values: `(N,)` conformal p-values of the scores; None without a detector.
        flagged: `(N,)` bool, score above the calibrated threshold (all False without a detector).
        strength: `(N,)` in [0, 1], how strongly each image was (or would be) purified.
        purified: `(N,)` bool, which images went through the purifier.
        images: `(N, C, H, W)`, what the classifier read: purified where purified, else the input.
        abstained: `(N,)` bool: flagged under "abstain", or too little agreement of a vote.
        agreement: `(N,)` in [0, 1], share of a vote's draws that give the verdict; 1 where nothing was drawn.
        trace: how it came about.
        suspicion_map: `(N, 1, H, W)`, where the images look suspicious, higher = more; None unless asked
            for, or where the detector has no map.
        ids: `(N,)` int64, which images these are, as the data set names them; running numbers of a tensor.
        class_names: K names where the defence knows them, else ().
    """

    labels: Tensor
    probabilities: Tensor
    logits: Tensor
    bare_logits: Tensor
    scores: Tensor | None
    p_values: Tensor | None
    flagged: Tensor
    strength: Tensor
    purified: Tensor
    images: Tensor
    abstained: Tensor
    agreement: Tensor
    trace: Trace
    suspicion_map: Tensor | None = None
    ids: Tensor | None = None
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.labels.shape[0]

    def __repr__(self) -> str:
        names = self.class_names or tuple(f"of class {label}" for label in range(self.logits.shape[1]))
        counts_of = self.labels.bincount(minlength=len(names)).tolist()
        classes = ", ".join(f"{count} {name}" for count, name in zip(counts_of, names, strict=False) if count)
        counts = {name: int(getattr(self, name).sum()) for name in ("flagged", "purified", "abstained")}
        done = ", ".join(f"{count} {name}" for name, count in counts.items())
        return f"Prediction of {len(self)} images: {classes or 'none'}; {done}"

    def columns(self) -> dict[str, Sequence[Any]]:
        """The image's id, verdict, probabilities of the classes, what the defence found and did; no images, no maps."""
        columns: dict[str, Sequence[Any]] = {"image": self.images_named(), "label": self.labels.tolist()}
        if self.class_names:
            columns["class"] = [self.class_names[label] for label in columns["label"]]
        columns |= {f"probability_{k}": column.tolist() for k, column in enumerate(self.probabilities.unbind(1))}
        for name in ("scores", "p_values"):
            if (values := getattr(self, name)) is not None:
                columns[name.removesuffix("s")] = values.tolist()
        for name in ("flagged", "strength", "purified", "abstained", "agreement"):
            columns[name] = getattr(self, name).tolist()
        columns["nfe"] = self.trace.nfe.tolist()
        return columns


def device_of(module: nn.Module) -> torch.device:
    """Where a module's parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def on_cpu(record: Result) -> Result:
    """The same frozen record with every tensor on the CPU, those of inner records too."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.cpu()
        return on_cpu(value) if isinstance(value, Trace) else value

    return replace(record, **{item.name: moved(getattr(record, item.name)) for item in fields(record)})


def _picked(record: Any, places: Tensor, size: int) -> Any:
    """The same frozen record of fewer of its `size` images, in its inner records too; a trace may have no rows."""

    def picked(value: Any) -> Any:
        if isinstance(value, Tensor) and len(value) == size:
            return value[places.to(value.device)]
        return _picked(value, places, size) if isinstance(value, Trace) else value

    return replace(record, **{item.name: picked(getattr(record, item.name)) for item in fields(record)})


@dataclass(frozen=True)
class State:
    """A component's fitted state: JSON values and named tensors."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: torch.nn.Module, **values: Any) -> Self:
        """The state of a module's parameters and buffers, and further JSON values."""
        return cls(values, {key: tensor.detach() for key, tensor in module.state_dict().items()})
