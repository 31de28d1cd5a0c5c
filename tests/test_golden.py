"""Every plugin still answers what was recorded of it; `python tests/golden.py` records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from golden import answers, differences, figures, read, setting

from medfedpure.core.errors import MissingExtraError
from medfedpure.core.registry import BUILTIN, Plugin, registry
from medfedpure.testing import Setting

BUILTINS = [record for record in registry().plugins() if record.distribution == BUILTIN]
RECORDED = read()


@pytest.fixture(scope="module")
def where() -> Setting:
    return setting()


@pytest.mark.parametrize("record", BUILTINS, ids=lambda record: f"{record.kind}-{record.name}")
def test_a_plugin_answers_what_was_recorded(record: Plugin, where: Setting, tmp_path: Path) -> None:
    try:
        found = answers(record, where, tmp_path)
    except MissingExtraError as error:
        pytest.skip(str(error))
    key = f"{record.kind}/{record.name}"
    problems = differences(key, found, RECORDED.get(key))
    assert not problems, f"the {record.kind} {record.name!r}: {'; '.join(problems)}"


def test_nothing_is_recorded_of_plugins_that_are_gone() -> None:
    gone = RECORDED.keys() - {f"{record.kind}/{record.name}" for record in BUILTINS}
    assert not gone, f"golden.json holds {', '.join(sorted(gone))}: run `python tests/golden.py`"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda x: x + 0.01, "mean is"),
        (lambda x: x * 1.01, "std is"),
        (lambda x: x.flip(0), "wave is"),
        (lambda x: torch.where(x == x.max(), float("nan"), x), "nan"),
    ],
    ids=["shifted", "scaled", "moved", "not finite"],
)
def test_a_planted_change_is_seen(fault: Callable[[torch.Tensor], torch.Tensor], words: str) -> None:
    right = torch.linspace(0, 1, 50)
    recorded = {"scores": figures(right)}
    assert not differences("detector/planted", {"scores": figures(right + 1e-5)}, recorded), "rounding is no change"
    problems = differences("detector/planted", {"scores": figures(fault(right))}, recorded)
    assert any(words in problem for problem in problems), f"{words!r} is wanted; found: {problems}"


def test_a_missing_record_is_seen() -> None:
    found = {"scores": figures(torch.ones(3))}
    assert "nothing is recorded" in differences("detector/planted", found, None)[0]
    assert "recorded are labels" in differences("detector/planted", found, {"labels": [0.0] * 5})[0]
