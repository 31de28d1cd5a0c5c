"""What the main job found, as records that become results.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from medfedpure.core.config import Record
from medfedpure.core.storage import FORMAT
from medfedpure.evaluation.tally import Figure

_ARMS = ("bare", "anchor", "defended")


class Arm(Record):
    """One way of reading the scans, on benign and on attacked images.

    Sensitivity and specificity are None where no class is known to be a finding, or no such image is there. `recalls`
    are each class's own, by name, where there are more than two classes; None likewise.
    """

    clean_balanced_accuracy: float
    robust_balanced_accuracy: float
    clean_sensitivity: float | None
    robust_sensitivity: float | None
    clean_specificity: float | None
    robust_specificity: float | None
    clean_recalls: dict[str, float | None] = {}
    robust_recalls: dict[str, float | None] = {}


class ClientResult(Record):
    """One client's figures on its own held-out groups; all rates are shares in [0, 1].

    `gains` are differences of robust balanced accuracy between the defence and what is simpler, by `bare`, `anchor` and
    `majority`, with 95 % intervals; {} in results of version 0.1.
    """

    client: str
    test_images: int
    test_groups: int
    calibration_images: int
    calibration: str
    majority_balanced_accuracy: float
    majority_accuracy: float
    bare: Arm
    anchor: Arm
    defended: Arm
    bpda_robust_balanced_accuracy: float | None
    flagged_benign: float
    flagged_attacked: float
    detector_auroc: float
    detector_tpr_at_5_fpr: float
    attack_success: float
    bare_ms_per_image: float
    defended_benign_ms_per_image: float
    defended_attacked_ms_per_image: float
    purifier_nfe_benign: float
    purifier_nfe_attacked: float
    gains: dict[str, Figure] = {}


class StrategyResult(Record):
    """The classifiers of one personalization strategy, bare and each in a defence that is otherwise built alike.

    `mean` has every number of the clients' figures under a dotted name; `worst` the lowest of any
    client, for the figures of the arms, of which more is better.
    """

    strategy: str
    clients: list[ClientResult]
    mean: dict[str, float]
    worst: dict[str, float]

    @classmethod
    def of(cls, strategy: str, clients: list[ClientResult]) -> Self:
        """Figures of all clients, with their mean and their worst."""
        return cls(
            strategy=strategy, clients=clients, mean=mean_over_clients(clients), worst=worst_over_clients(clients)
        )


class RunResult(Record):
    """The whole run; `strategies` holds the job's own first, then those it is compared with.

    `format` says what `splits` are fingerprints of, and by whom drawn images were drawn. `positive` are the names of
    the classes that are a finding; None in results of version 0.1, where the last one was. `policy` says what became of
    images, and `choice` how the recipe "robust" came to it; None where another recipe did, and in earlier results.
    """

    format: int = FORMAT
    config: dict[str, Any]
    class_names: list[str]
    positive: list[str] | None = None
    policy: str | None = None
    choice: dict[str, Any] | None = None
    attack: str
    attacker: str
    bpda: str | None
    anchor: str
    clients: list[ClientResult]
    mean: dict[str, float]
    strategies: list[StrategyResult]
    splits: dict[str, dict[str, str]]
    sizes: dict[str, dict[str, int]]
    federated: dict[str, list[dict[str, Any]]]
    seconds: dict[str, float]
    versions: dict[str, str]

    def __repr__(self) -> str:
        means = {arm: self.mean.get(f"{arm}.clean_balanced_accuracy", float("nan")) for arm in ("bare", "defended")}
        figures = ", ".join(f"{arm} {mean:.3f}" for arm, mean in means.items())
        names = ", ".join(found.strategy for found in self.strategies)
        return f"RunResult of {len(self.clients)} clients, {names}: clean balanced accuracy, mean, {figures}"

    __str__ = __repr__


def flatten(result: ClientResult) -> dict[str, float]:
    """Every number of one client under a dotted name; what is None is left out."""
    return dict(_numbers("", result.model_dump(exclude={"gains"})))


def _numbers(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _numbers(f"{prefix}{key}.", value)
        elif isinstance(value, (int, float)):
            yield prefix + key, float(value)


def mean_over_clients(results: list[ClientResult]) -> dict[str, float]:
    """Unweighted mean of every number over the clients in which it is known."""
    rows = [flatten(result) for result in results]
    keys = dict.fromkeys(key for row in rows for key in row)
    known = {key: [row[key] for row in rows if key in row and row[key] == row[key]] for key in keys}
    return {key: sum(values) / len(values) for key, values in known.items() if values}


def worst_over_clients(results: list[ClientResult]) -> dict[str, float]:
    """The lowest of any client, of every figure in [0, 1] of which more is better: how fair a strategy is."""
    rows = [flatten(result) for result in results]
    arms = dict.fromkeys(key for row in rows for key in row if key.partition(".")[0] in _ARMS)
    known = {key: [row[key] for row in rows if key in row and row[key] == row[key]] for key in arms}
    return {key: min(values) for key, values in known.items() if values}
