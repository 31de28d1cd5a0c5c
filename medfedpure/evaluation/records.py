"""What an evaluation found, as records that become results.json."""

from __future__ import annotations

from typing import Any

from medfedpure.core.config import Record
from medfedpure.evaluation.readings import Reading


class RungResult(Record):
    """One attacker against one chain.

    Attributes:
        rung, kind, norm, eps: who, and how far he may go.
        view, attack: what he sees and what he does, in words.
        eot: looks at each step.
        seconds: that crafting took.
        reading: what the chain says of the attacked images; None where there are none.
        success: where the attacker, on his own view, thought that he had won.
        distance: size of every perturbation.
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


class Evaluation(Record):
    """Every number of the report can be made from this; a published schema describes it.

    Attributes:
        positive: the classes that are a finding, by number; None in results of version 0.1, where the last was.
        gradients: planned evaluations of a whole defence's gradient, for one image and look each; early stops take
            fewer.
        seconds: wall clock of all calls; of one that was killed, until its last finished rung.
        peak_memory_mb: the most that one call held: tensors on the GPU, or the whole process on the CPU.
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
    versions: dict[str, str]
