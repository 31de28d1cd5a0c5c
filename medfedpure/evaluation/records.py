"""What an evaluation found, as records that become results.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medfedpure.core.config import Record
from medfedpure.core.rows.table import Tabular, columns_of
from medfedpure.evaluation.readings import Reading
from medfedpure.evaluation.tally import Figure, Tally, detection, flat, share


class RungResult(Record):
    """One attacker against one chain.

    Attributes:
        rung, kind, norm, eps: who, and how far he may go.
        view, attack: what he sees and what he does, in words.
        eot: looks at each step.
        seconds: that crafting took.
        reading: what the chain says of the attacked images; None where there are none.
        success: where the attacker, on his own view, thought that he had won, of the reading's images.
        distance: size of every perturbation, of the same.
        skipped: why there is no such attack, or "".
        problem: why it must not count, or "".
    """

    rung: str
    kind: str
    norm: str
    eps: float
    view: str
    attack: str
    eot: int
    seconds: float
    reading: Reading | None = None
    success: list[bool] = []
    distance: list[float] = []
    skipped: str = ""
    problem: str = ""

    def __repr__(self) -> str:
        why = f": {self.problem or self.skipped}" if self.problem or self.skipped else ""
        return f"RungResult {self.rung!r}, {role(self)}{why}; {self.norm}, eps {self.eps:.4g}; {self.attack}"

    __str__ = __repr__


class ArmResult(Record):
    """One defence: what it says of benign images, of every attack, and why not to believe that.

    Attributes:
        precision: that it computes in, and the attackers' gradients through it.
        noise: which backend of the streams drew, for the defence and its attackers; version 0.1 did not say.
    """

    name: str
    policy: str
    parts: str
    precision: str = "float32"
    noise: str = "format_1"
    stochastic: bool
    bare_wrong: list[bool]
    clean: Reading
    rungs: list[RungResult]
    checks: list[RungResult]
    unreliable: list[str]

    def __repr__(self) -> str:
        doubt = f"; not to be relied on: {'; '.join(self.unreliable)}" if self.unreliable else ""
        counted = sum(role(rung) == "counted" for rung in self.rungs)
        return f"ArmResult {self.name!r}: {self.policy}, {counted} attacks that count, {len(self.checks)} checks{doubt}"

    __str__ = __repr__


class TransferResult(Record):
    """An attack crafted on one client's bare classifier and replayed on another client's defence.

    Attributes:
        crafted_on: the client; None where the victim's images are not attacked.
        victim: whose images, classifier and defence.
        images: how many.
        bare_fooled: misread by the victim's bare classifier.
        fooled: accepted and misread by the victim's defence, in one draw of its noise.
        refused: by the victim's defence.
    """

    crafted_on: str | None
    victim: str
    norm: str
    eps: float
    attack: str
    images: int
    bare_fooled: int
    fooled: int
    refused: int


class RungRow(Record):
    """One attack on one defence.

    Attributes:
        role: "counted", "control", "check" (on the first few images), "skipped" or "problem"; `note` says why.
        images: that met it; all figures of the row are of these.
        scored: attacked images behind the detector's figures: those that the attacker changed and thought won.
    """

    arm: str
    rung: str
    role: str
    note: str
    kind: str
    norm: str
    eps: float
    view: str
    attack: str
    eot: int
    draws: int
    images: int
    right: int | None = None
    fooled: int | None = None
    balanced: Figure | None = None
    sensitivity: float | None = None
    coverage: float | None = None
    flagged: float | None = None
    purified: float | None = None
    scored: int | None = None
    auroc: float | None = None
    tpr_at_1_fpr: float | None = None
    tpr_at_5_fpr: float | None = None
    nfe: float | None = None
    ms: float | None = None
    seconds: float = 0.0


class Evaluation(Tabular, Record):
    """Every number of the report can be made from this; a published schema describes it.

    Attributes:
        positive: the classes that are a finding, by number; None in results of version 0.1, where the last was.
        gradients: planned evaluations of a whole defence's gradient, for one image and look each; early stops take
            fewer.
        seconds: wall clock of all calls; of one that was killed, until its last finished rung.
        peak_memory_mb: the most that one call held: tensors on the GPU, or the whole process on the CPU.
        met_by_all: of a cascade: the first so many images met every attack; None where all images did.
    """

    setting: dict[str, Any]
    data: str
    class_names: list[str]
    positive: list[int] | None = None
    labels: list[int]
    groups: list[int]
    norm: str
    eps: list[float]
    note: str
    arms: list[ArmResult]
    transfers: list[TransferResult] = []
    gradients: int
    seconds: float
    peak_memory_mb: float | None = None
    met_by_all: int | None = None
    versions: dict[str, str]

    def __repr__(self) -> str:
        counts = f"{len(self.arms)} defences on {len(self.labels)} images of {self.data!r}"
        attacks = sum(role(rung) == "counted" for arm in self.arms for rung in arm.rungs)
        budgets = f"{self.norm}, eps {' and '.join(f'{eps:.4g}' for eps in self.eps)}"
        doubted = ", ".join(repr(arm.name) for arm in self.arms if arm.unreliable)
        doubt = f"not to be relied on: {doubted}; " if doubted else ""
        return f"Evaluation of {counts}: {attacks} attacks that count, {budgets}; {doubt}{self.note}"

    __str__ = __repr__

    def __len__(self) -> int:
        """How many rows its table has: attacks and checks of all defences."""
        return sum(len(arm.rungs) + len(arm.checks) for arm in self.arms)

    def __getitem__(self, index: int | slice | str) -> Any:
        """A defence by its name; a row of the table by its place; rows by a slice.

        Raises:
            KeyError: no defence has that name.
            IndexError: there is no such row.
        """
        if isinstance(index, str):
            found = next((arm for arm in self.arms if arm.name == index), None)
            if found is None:
                raise KeyError(f"the defences are {', '.join(repr(arm.name) for arm in self.arms)}; got {index!r}")
            return found
        return self.rows()[index]

    def tally(self) -> Tally:
        """What counts right and wrong on these images."""
        last = [len(self.class_names) - 1]
        return Tally(self.labels, self.groups, last if self.positive is None else self.positive)

    def attacks(self, tally: Tally | None = None) -> list[RungRow]:
        """One row for each defence and attack, checks and controls included."""
        counter = tally or self.tally()
        return [
            row_of(arm, result, counter, check=place >= len(arm.rungs))
            for arm in self.arms
            for place, result in enumerate((*arm.rungs, *arm.checks))
        ]

    def columns(self) -> dict[str, list[Any]]:
        """What results.csv holds: a row for each defence and attack, with norm, eps, view, attack and steps, EoT."""
        unreliable = {arm.name: arm.unreliable for arm in self.arms}
        return columns_of(noted(self.attacks(), unreliable, self.note), list(RungRow.model_fields))


def role(rung: RungResult) -> str:
    """Whether an attack counts, and as what."""
    if rung.problem:
        return "problem"
    if rung.skipped or rung.reading is None:
        return "skipped"
    return "control" if rung.kind == "control" else "counted"


def beaten(rung: RungResult) -> Tensor:
    """`(N,)` bool: images that the attacker changed and thought won; of the control, all."""
    assert rung.reading is not None
    if not rung.success:
        return torch.ones(len(rung.reading.flagged), dtype=torch.bool)
    return torch.tensor(rung.success) & (torch.tensor(rung.distance) > 0)


def row_of(arm: ArmResult, result: RungResult, tally: Tally, *, check: bool) -> RungRow:
    """One attack by itself."""
    what = "check" if check and role(result) == "counted" else role(result)
    names = ("rung", "kind", "norm", "eps", "view", "attack", "eot", "seconds")
    plain: dict[str, Any] = {name: getattr(result, name) for name in names}
    plain |= {"arm": arm.name, "role": what, "note": result.problem or result.skipped}
    reading = result.reading
    if what in ("problem", "skipped") or reading is None:
        return RungRow(**plain, draws=0, images=0)
    own, reading = tally.of(reading)
    right = own.right([reading])
    return RungRow(
        **plain,
        draws=len(reading.verdicts),
        images=len(reading.flagged),
        right=int(right.sum()),
        fooled=int(own.fooled([reading]).sum()),
        balanced=own.figure(right),
        sensitivity=own.recalls([reading])[0],
        coverage=reading.coverage(),
        flagged=share(reading.flagged),
        purified=share(reading.purified),
        **({} if check else detection(arm.clean, reading, beaten(result))),
        nfe=reading.nfe,
        ms=reading.ms,
    )


def noted(records: Iterable[Record], unreliable: Mapping[str, Sequence[str]], note: str) -> list[dict[str, Any]]:
    """Records of arms as rows, each with why not to believe its defence, and with what stands beside every number."""
    rows = []
    for record in records:
        row, own = flat(record), getattr(record, "note", "")
        reasons = "; ".join(unreliable.get(row["arm"], []))
        rows.append({**row, "unreliable": reasons, "note": f"{note}; {own}" if own else note})
    return rows
