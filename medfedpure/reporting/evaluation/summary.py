"""The figures of an evaluation: plain rows from which tables, CSV and the page are made, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from medfedpure.core.config import Record
from medfedpure.evaluation.readings import Count, Reading
from medfedpure.evaluation.records import ArmResult, Evaluation, RungResult, RungRow, role
from medfedpure.evaluation.tally import Figure, Tally, share
from medfedpure.figures.balanced import balanced, balanced_difference
from medfedpure.figures.expected import expected_robustness
from medfedpure.reporting.evaluation.threat import gradient_mode, threat

UNDEFENDED = "undefended"
_COUNTS: tuple[Count, ...] = ("one draw", "worst of N", "majority of N")


class Line(Record):
    """One defence on benign images, or on attacked ones in the worst case over all counted attacks of one eps.

    Attributes:
        arm, policy, eps: which; eps is None for benign images.
        images, right, fooled, withheld: counts of one draw; they add up where an attack counts.
        balanced, worst_of_draws, majority_of_draws: balanced accuracy in one draw, and over all `draws`.
        sensitivity, specificity, ece: of one draw; None where there is no such image; ece of benign images only.
        recalls: of one draw, by class, the share of its images that are right; None where there is none.
        coverage: share of images that are not refused.
        flagged, purified, nfe, ms: means, over attacks where there are several.
        difference: balanced accuracy less the undefended one's, paired.
        expected: mean balanced accuracy over all sizes from 0 to eps (`figures.expected`), by the sizes that were
            measured; low and high are the same of the ends of the intervals at each size.
        attacks, kinds, modes: that count.
        weakest, weakest_right, weakest_of: the attack that leaves fewest right, how many, and of how many: all images,
            or in a cascade those that met every attack.
        threat: what must stand beside the figures.
    """

    arm: str
    policy: str
    eps: float | None
    images: int
    right: int
    fooled: int
    withheld: int
    draws: int
    balanced: Figure | None
    worst_of_draws: Figure | None
    majority_of_draws: Figure | None
    sensitivity: float | None
    specificity: float | None
    recalls: dict[str, float | None]
    ece: float | None
    coverage: float
    flagged: float | None
    purified: float | None
    nfe: float | None
    ms: float | None
    difference: Figure | None
    expected: Figure | None = None
    attacks: list[str]
    kinds: list[str]
    modes: list[str]
    weakest: str
    weakest_right: int | None
    weakest_of: int
    threat: str


class Rival(Record):
    """The best other defence at an eps, and by how much the headline's is better: balanced accuracy, paired.

    Chosen on these images, which flatters it; one whose own checks failed is none.
    """

    eps: float
    arm: str
    right: int
    gain: Figure


class Anchor(Record):
    """What always answering the most frequent class of these images would get, attacked or not."""

    answer: str
    balanced: float
    accuracy: float
    sensitivity: float | None
    specificity: float | None


class Summary(Record):
    """Everything that is shown of an evaluation.

    Attributes:
        positive: the classes that are a finding; several, or none that is known, where there are more than two.
        rounded: the precision of defences that do not compute in float32.
        met_by_all: of a cascade: the first so many images met every attack; None where all did.
        seeds: the seed in words, or that there are several.
    """

    data: str
    images: int
    groups: int
    class_names: list[str]
    positive: list[str]
    norm: str
    eps: list[float]
    note: str
    seeds: str
    headline: str
    reference: str | None
    anchor: Anchor
    lines: list[Line]
    rivals: list[Rival]
    rungs: list[RungRow]
    unreliable: dict[str, list[str]]
    rounded: dict[str, str]
    gradients: int
    seconds: float
    peak_memory_mb: float | None
    met_by_all: int | None
    versions: dict[str, str]
    setting: dict[str, Any]

    def line(self, arm: str | None, eps: float | None) -> Line:
        """The one row of a defence at an eps; None for benign images."""
        return next(line for line in self.lines if line.arm == arm and line.eps == eps)


def summarize(evaluation: Evaluation, *, headline: str | None = None) -> Summary:
    """Count.

    Args:
        evaluation: finished.
        headline: the defence that the verdict is about; by default the last one.
    """
    names = [arm.name for arm in evaluation.arms]
    counter = _Counter(evaluation)
    own = next(arm for arm in evaluation.arms if arm.name == (headline or names[-1]))
    return Summary(
        data=evaluation.data,
        images=len(evaluation.labels),
        groups=len(set(evaluation.groups)),
        class_names=evaluation.class_names,
        positive=[evaluation.class_names[place] for place in counter.findings.tolist()],
        norm=evaluation.norm,
        eps=evaluation.eps,
        note=evaluation.note,
        seeds=_seeds(evaluation.setting),
        headline=own.name,
        reference=UNDEFENDED if UNDEFENDED in names else None,
        anchor=_anchor(counter.labels, evaluation.class_names, counter.findings.tolist()),
        lines=_expecting([counter.line(arm, eps) for eps in (None, *evaluation.eps) for arm in evaluation.arms]),
        rivals=[found for eps in evaluation.eps for found in counter.rival(own, evaluation.arms, eps)],
        rungs=evaluation.attacks(counter),
        unreliable={arm.name: arm.unreliable for arm in evaluation.arms if arm.unreliable},
        rounded={arm.name: arm.precision for arm in evaluation.arms if arm.precision != "float32"},
        gradients=evaluation.gradients,
        seconds=evaluation.seconds,
        peak_memory_mb=evaluation.peak_memory_mb,
        met_by_all=evaluation.met_by_all,
        versions=evaluation.versions,
        setting=evaluation.setting,
    )


def _seeds(setting: dict[str, Any]) -> str:
    parts = setting.get("merged", [setting])
    return f"seed {parts[0]['seed']}" if len(parts) == 1 else f"{len(parts)} parts, each with a seed of its own"


def counted(arm: ArmResult, eps: float) -> list[RungResult]:
    """The attacks of one eps that count."""
    return [rung for rung in arm.rungs if rung.eps == eps and role(rung) == "counted"]


def worst_of(arm: ArmResult, eps: float) -> list[Reading]:
    """What a worst case is taken over: the attacks of this eps, and of smaller ones, whose changes are allowed too.

    Nothing where no attack of this eps counts.
    """
    if not counted(arm, eps):
        return []
    return [rung.reading for rung in arm.rungs if rung.eps <= eps and role(rung) == "counted" and rung.reading]


class _Counter(Tally):
    """Figures of one evaluation, of each defence in its worst case."""

    def __init__(self, evaluation: Evaluation) -> None:
        own = evaluation.tally()
        super().__init__(evaluation.labels, evaluation.groups, own.findings.tolist())
        self.names = evaluation.class_names
        self.common = len(self.labels) if evaluation.met_by_all is None else evaluation.met_by_all
        self.bare = next((arm for arm in evaluation.arms if arm.name == UNDEFENDED), None)

    def line(self, arm: ArmResult, eps: float | None) -> Line:
        """A defence on benign images, or in the worst case of an eps."""
        attacks = [] if eps is None else counted(arm, eps)
        own = [arm.clean] if eps is None else [rung.reading for rung in attacks if rung.reading is not None]
        readings = own if eps is None else worst_of(arm, eps)
        right, fooled = self.right(readings), self.fooled(readings)
        alone = [int(self.right([reading])[: self.common].sum()) for reading in own]
        worst = min(range(len(attacks)), key=lambda place: alone[place], default=None)
        figures = {count: self.figure(self.right(readings, count)) if readings else None for count in _COUNTS}
        sensitivity, specificity = self.recalls(readings)
        return Line(
            arm=arm.name,
            policy=arm.policy,
            eps=eps,
            images=len(self.labels),
            right=int(right.sum()),
            fooled=int(fooled.sum()),
            withheld=int((~right & ~fooled).sum()),
            draws=len(arm.clean.verdicts),
            balanced=figures["one draw"],
            worst_of_draws=figures["worst of N"],
            majority_of_draws=figures["majority of N"],
            sensitivity=sensitivity,
            specificity=specificity,
            recalls={name: share(right[self.labels == place].tolist()) for place, name in enumerate(self.names)},
            ece=arm.clean.ece if eps is None else None,
            coverage=float((right | fooled).double().mean()),
            flagged=_mean([share(reading.flagged) for reading in own]),
            purified=_mean([share(reading.purified) for reading in own]),
            nfe=_mean([reading.nfe for reading in own]),
            ms=_mean([reading.ms for reading in own]),
            difference=self.gain(arm, right, eps) if readings else None,
            attacks=[attack.rung for attack in attacks],
            kinds=list(dict.fromkeys(attack.kind for attack in attacks)),
            modes=list(dict.fromkeys(gradient_mode(attack) for attack in attacks)),
            weakest="" if worst is None else attacks[worst].rung,
            weakest_right=None if worst is None else alone[worst],
            weakest_of=self.common,
            threat="no attack" if eps is None else threat(attacks),
        )

    def gain(self, arm: ArmResult, right: Tensor, eps: float | None) -> Figure | None:
        """Balanced accuracy less that of the undefended classifier, paired."""
        if self.bare is None or arm is self.bare:
            return None
        readings = [self.bare.clean] if eps is None else worst_of(self.bare, eps)
        return self.difference(right, self.right(readings)) if readings else None

    def rival(self, own: ArmResult, arms: Sequence[ArmResult], eps: float) -> list[Rival]:
        """The best of the other defences at an eps, as a list of one; of none where nothing can be compared."""
        worst = {arm.name: self.worst(arm, eps) for arm in arms if arm is own or not arm.unreliable}
        mine = worst.pop(own.name)
        others = {name: right for name, right in worst.items() if right is not None}
        if mine is None or not others:
            return []
        name = max(others, key=lambda name: balanced(others[name], self.labels))
        gain = self.difference(mine, others[name])
        return [Rival(eps=eps, arm=name, right=int(others[name].sum()), gain=gain)]

    def worst(self, arm: ArmResult, eps: float) -> Tensor | None:
        """`(N,)` bool, right in the worst case of an eps; None where no attack of it counts."""
        readings = worst_of(arm, eps)
        return self.right(readings) if readings else None

    def difference(self, one: Tensor, other: Tensor) -> Figure:
        """Of two balanced accuracies on the same images, in pairs."""
        key = (bytes(one.tolist()), bytes(other.tolist()))
        if key not in self.known:
            low, high = balanced_difference(one, other, self.labels, self.groups) or (None, None)
            value = balanced(one, self.labels) - balanced(other, self.labels)
            self.known[key] = Figure(value=value, low=low, high=high)
        return self.known[key]


def _expecting(lines: Sequence[Line]) -> list[Line]:
    """The lines, each with the mean of its defence's curve up to its eps, where every smaller size has a figure."""
    found = []
    for line in lines:
        own = sorted((other for other in lines if other.arm == line.arm), key=lambda other: other.eps or 0.0)
        curve = [(other.eps or 0.0, other.balanced) for other in own if (other.eps or 0.0) <= (line.eps or 0.0)]
        found.append(line.model_copy(update={"expected": _expected(curve)}) if line.eps else line)
    return found


def _expected(curve: Sequence[tuple[float, Figure | None]]) -> Figure | None:
    sizes, figures = [size for size, _ in curve], [figure for _, figure in curve if figure is not None]
    if len(figures) < len(curve):
        return None
    lows, highs = ([getattr(figure, end) for figure in figures] for end in ("low", "high"))
    low, high = (None if None in ends else expected_robustness(sizes, ends) for ends in (lows, highs))
    return Figure(value=expected_robustness(sizes, [figure.value for figure in figures]), low=low, high=high)


def _anchor(labels: Tensor, names: Sequence[str], findings: Sequence[int]) -> Anchor:
    counts = labels.bincount(minlength=len(names))
    answer = int(counts.argmax())
    return Anchor(
        answer=names[answer],
        balanced=1 / int((counts > 0).sum()),
        accuracy=float(counts[answer]) / len(labels),
        sensitivity=float(answer in findings) if findings else None,
        specificity=float(answer not in findings) if findings else None,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
