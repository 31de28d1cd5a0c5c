"""An evaluation that several processes share has the numbers of one, keeps what is finished, and goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from chains import chain_of
from torch import Tensor, nn

from medfedpure.core.errors import ConfigError, MedFedPureError
from medfedpure.core.registry import create
from medfedpure.defence.chain import DefendedClassifier
from medfedpure.evaluation.evaluate import evaluate
from medfedpure.evaluation.ladder import Preset
from medfedpure.evaluation.records import Evaluation
from medfedpure.evaluation.store import Store
from medfedpure.testing import tiny_classifier, tiny_dataset

BRIEF = Preset("brief", 10, 3, 2, 1, 2, 2, 4, "for tests")
DATA = tiny_dataset(40, seed=21)
CHUNKS: dict[str, Any] = {"preset": BRIEF, "eps": (0.05,), "batch_size": 4, "threads": 1}


def arms(classifier: nn.Module | None = None) -> dict[str, DefendedClassifier]:
    """A stochastic chain, and its classifier by itself."""
    chain = chain_of()
    if classifier is not None:
        chain.classifier = classifier
    return {"bare": DefendedClassifier(chain.classifier, policy="none"), "chain": chain}


def numbers(found: Evaluation) -> list[Any]:
    """All but what a clock says."""
    plain = found.model_dump(exclude={"seconds", "peak_memory_mb"})
    for arm in plain["arms"]:
        for rung in (*arm["rungs"], *arm["checks"], {"seconds": 0, "reading": arm["clean"]}):
            rung["seconds"] = 0
            if rung["reading"] is not None:
                rung["reading"]["ms"] = 0
    return [plain["setting"], plain["arms"], plain["transfers"], plain["met_by_all"]]


@pytest.fixture(scope="module")
def one(one_thread: None) -> Evaluation:
    """Of this process."""
    own = arms()
    federation = {"a": (own["chain"], DATA), "b": (own["bare"], DATA)}
    return evaluate(own, DATA, **{**CHUNKS, "threads": None}, federation=federation)


@pytest.fixture(scope="module")
def one_thread() -> Any:
    """As the workers have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_two_processes_give_the_numbers_of_one_bit_for_bit_and_a_killed_call_goes_on(
    one: Evaluation, tmp_path: Path
) -> None:
    own = arms()
    federation = {"a": (own["chain"], DATA), "b": (own["bare"], DATA)}
    said: list[str] = []

    def killed(text: str) -> None:
        said.append(text)
        if "joint" in text:
            raise KeyboardInterrupt

    shared = {**CHUNKS, "federation": federation, "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        evaluate(own, DATA, **shared, processes=2, say=killed)
    kept = {path.parent.name for path in tmp_path.rglob("medfedpure.json")}
    assert kept, "what was finished is there"
    assert not list(tmp_path.rglob("*.tmp")), "and nothing half-written"
    again: list[str] = []
    two = evaluate(own, DATA, **shared, processes=2, say=again.append)
    assert numbers(two) == numbers(one)
    assert "shared by 2 processes" in again[0]
    plan = [f"{name} linf 0.05" for name in ("bpda", "exact", "joint", "orthogonal", "square")]
    attacks = [text.removeprefix("chain: ").partition(",")[0] for text in again if text.startswith("chain: ")]
    attacks = [text for text in attacks if text in plan]
    assert attacks == [text for text in plan if text in attacks], "each defence's lines come in its order"
    assert {"joint linf 0.05", "square linf 0.05"} <= set(attacks)
    finished = {text for text in said[1:-1] if not text.startswith("crafted once")}
    assert len(finished & set(again)) <= 2, "at most what was under way in the two is attacked again"
    assert not (tmp_path / "chunks").exists(), "parts are kept until the whole is"


def test_a_chunk_that_was_finished_is_not_attacked_again(
    one: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the three chunks of one attack the second fails; later the first is taken as it was kept."""
    from medfedpure.evaluation import work

    made: list[list[int]] = []
    crafted = work.Work._crafted

    def fails(self: Any, name: str, rung: Any, places: Tensor, number: int) -> Any:
        if rung.name == "exact":
            made.append(places.tolist())
            if len(made) == 2:
                raise RuntimeError("out of memory")
        return crafted(self, name, rung, places, number)

    monkeypatch.setattr(work.Work, "_crafted", fails)
    own = arms()
    alone = {**CHUNKS, "threads": None, "out": tmp_path}
    alone["federation"] = {"a": (own["chain"], DATA), "b": (own["bare"], DATA)}
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate(own, DATA, **alone)
    found = evaluate(own, DATA, **alone)
    assert len(made) > 2
    assert made[0] not in made[1:]
    assert made[2] == made[1], "it goes on with the one that failed"
    assert numbers(found) == numbers(one)


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"threads": 3}, r"threads differ\): it was begun with 3: call torch\.set_num_threads"),
        ({"chunks": None}, r"chunks differ\): choose another folder"),
        ({"chunks": None, "versions": {}}, "what other versions began they alone can finish"),
    ],
)
def test_what_cannot_go_on_says_why(changed: dict[str, Any], advice: str, tmp_path: Path) -> None:
    """Of other threads, and of a version that knew no chunks."""
    setting = {"threads": 1, "chunks": "noise begins anew with each", "versions": {"medfedpure": "0.3"}}
    Store(tmp_path, {key: value for key, value in (setting | changed).items() if value is not None})
    with pytest.raises(ConfigError, match=advice):
        Store(tmp_path, setting)


class Deadly(nn.Module):
    """A classifier that ends its process once it is asked for a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_classifier()
        self.at_home = os.getpid()

    def forward(self, images: Tensor) -> Tensor:
        if images.requires_grad and os.getpid() != self.at_home:
            os.kill(os.getpid(), signal.SIGKILL)
        answer: Tensor = self.inner(images)
        return answer


def test_a_dead_worker_ends_the_evaluation_with_a_sentence(tmp_path: Path) -> None:
    bare = {"bare": DefendedClassifier(Deadly(), policy="none")}
    with pytest.raises(MedFedPureError, match=r"the worker process on cpu died \(signal SIGKILL\)"):
        evaluate(bare, DATA, **CHUNKS, processes=2, out=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


class Here(nn.Module):
    """Holds what no other process can have."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_classifier()
        self.asked = 0
        self.curve = lambda logits: logits

    def forward(self, images: Tensor) -> Tensor:
        self.asked += 1
        answer: Tensor = self.curve(self.inner(images))
        return answer


def test_what_cannot_travel_is_refused_before_it_is_asked_anything() -> None:
    model = Here()
    with pytest.raises(ConfigError, match=r"what is evaluated cannot be sent .*no lambda"):
        evaluate({"it": DefendedClassifier(model, policy="none")}, DATA, **CHUNKS, processes=2)
    assert model.asked == 0


def test_a_spared_image_moves_no_other_to_another_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    from medfedpure.evaluation.work import Work

    met: list[tuple[str, int, list[int]]] = []
    crafted = Work._crafted

    def noted(self: Any, name: str, rung: Any, places: Tensor, number: int) -> Any:
        met.append((rung.name, number, places.tolist()))
        return crafted(self, name, rung, places, number)

    monkeypatch.setattr(Work, "_crafted", noted)
    own = {"it": DefendedClassifier(tiny_classifier(), policy="none")}
    found = evaluate(own, DATA, **{**CHUNKS, "threads": None, "eps": (0.1, 0.2)})
    assert any(rung.reading is not None and rung.reading.places is not None for rung in found.arms[0].rungs)
    assert all(place // 4 == number for _, number, places in met for place in places)
    assert len({number for name, number, _ in met if name == "static"}) == 3


def test_the_noise_of_a_chunk_is_its_own() -> None:
    """An attack on the first chunk alone is that on the first chunk of all."""
    chain = chain_of()
    few = Preset("few", 4, 3, 2, 1, 2, 2, 4, "for tests")
    many = evaluate({"it": chain}, DATA, preset=BRIEF, eps=(0.05,), batch_size=4, cascade=False)
    exact = {
        size: next(rung for rung in found.arms[0].rungs if rung.rung == "exact")
        for size, found in ((10, many), (4, evaluate({"it": chain}, DATA, preset=few, eps=(0.05,), batch_size=4)))
    }
    assert exact[4].distance == exact[10].distance[:4]
    assert exact[4].reading is not None
    assert exact[10].reading is not None
    assert exact[4].reading.scores == exact[10].reading.scores[:4]  # type: ignore[index]


def test_what_learns_from_its_batch_meets_all_chunks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from medfedpure.evaluation.work import Work

    met: list[int] = []
    crafted = Work._crafted

    def noted(self: Any, name: str, rung: Any, places: Tensor, number: int) -> Any:
        if rung.name.startswith("mine"):
            met.append(len(places))
        return crafted(self, name, rung, places, number)

    monkeypatch.setattr(Work, "_crafted", noted)
    own = {"it": DefendedClassifier(tiny_classifier(), policy="none")}
    learning = {"mine": create("attack", "hfc", steps=2)}
    evaluate(own, DATA, **{**CHUNKS, "threads": None}, extra_attacks=learning)
    assert set(met) == {10}
    met.clear()
    reference = tiny_dataset(12, seed=33)
    evaluate(own, DATA, **{**CHUNKS, "threads": None}, extra_attacks=learning, reference=reference)
    assert max(met) <= 4, "what has learned before looks at each image by itself"
