"""Recorded answers of every plugin on embedded phantoms: what `golden.json` holds, and how it is made.

    python tests/golden.py            # record all that changed or is new, and say what changed
    python tests/golden.py --check    # say it, and write nothing

An answer is a tensor, kept as five figures. The classifier's weights are a formula, not trained, so that what is pinned
is the plugin. A plugin that learns is trained for two steps.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import SMALL_CONFIGS
from torch import Tensor, nn

from medfedpure.core.detector import ScoreContext
from medfedpure.core.registry import BUILTIN, Plugin, create, registry
from medfedpure.testing import Setting, SmoothingDenoiser, tiny_classifier
from medfedpure.testing.components import fitted_copy
from medfedpure.testing.observing import client_round, model_of, observe

FILE = Path(__file__).with_name("golden.json")
FIGURES = ("mean", "std", "min", "max", "wave")
"""`wave` is the sum of the values times a cosine of their place, over the root of their number: it sees what moved."""
TIGHT, LOOSE = 1e-3, 2e-2
"""Relative to the largest value. Loose are attacks and training steps: the sign of a gradient near zero depends on the
build, and moves single values by a whole step."""
LOOSE_ONES = ("attack", "personalization", "mae", "mae_inpaint", "distilled")
"""Kinds and plugins; the attention of older PyTorch rounds otherwise, and training carries it on."""
TELLING = {("personalization", "fedprox"): {"mu": 10.0}, ("personalization", "ditto"): {"lam": 10.0}}
"""Where two steps with the defaults would show nothing of the method."""

Golden = dict[str, dict[str, list[float]]]


def by_formula(model: nn.Module) -> nn.Module:
    """The model with weights that no random generator and no training had a part in."""
    for place, (name, value) in enumerate(model.state_dict().items()):
        if not value.is_floating_point():
            continue
        wave = torch.cos(torch.arange(value.numel(), dtype=torch.float64) * 0.7 + place).view_as(value)
        if value.ndim > 1:
            wave = wave / math.sqrt(value[0].numel())
        else:
            wave = 0.1 * wave + float(name.endswith(("running_var", "weight")))
        value.copy_(wave)
    return model


def setting() -> Setting:
    """Six phantoms, 24 to learn from, and a classifier by formula."""
    data = create("dataset", "phantom", images=24, image_size=32).read()
    classifier = by_formula(tiny_classifier(steps=0))
    return Setting.of(data, ScoreContext(classifier, classifier.features, SmoothingDenoiser()))


def answers(record: Plugin, where: Setting, folder: Path) -> dict[str, list[float]]:
    """What a plugin answers, each tensor as five figures; the tensors of one prefix count as one."""
    key = (record.kind, record.name)
    options = TELLING.get(key) or SMALL_CONFIGS.get(key, {})
    folder.mkdir(parents=True, exist_ok=True)
    part = create(record.kind, record.name, options(folder) if callable(options) else options)
    subject = fitted_copy(part, where.train, where.context)
    if record.kind == "classifier":
        subject = by_formula(model_of(subject, where))
    together: dict[str, list[Tensor]] = {}
    found = observe(subject, where)
    # A change says more than what it ends in.
    if record.kind in ("attack", "purifier"):
        found["change"] = found.pop("images") - where.images
    elif record.kind == "personalization":
        start = client_round(subject, where).shared
        found = {name: value - start.get(name.partition(".")[2], 0) for name, value in found.items()}
    for name, value in sorted(found.items()):
        together.setdefault(name.partition(".")[0], []).append(value.detach().double().flatten())
    return {name: figures(torch.cat(values)) for name, values in together.items() if sum(v.numel() for v in values)}


def figures(values: Tensor) -> list[float]:
    """The five figures of a tensor of any shape."""
    flat = values.double().flatten()
    wave = torch.cos(torch.arange(flat.numel(), dtype=torch.float64) * 0.3)
    found = (flat.mean(), flat.std(correction=0), flat.min(), flat.max(), (flat * wave).sum() / math.sqrt(flat.numel()))
    return [float(f"{float(figure):.6g}") for figure in found]


def differences(key: str, found: Mapping[str, list[float]], recorded: Mapping[str, list[float]] | None) -> list[str]:
    """In words, where an answer is not the recorded one; the key is `kind/name`."""
    allowance = LOOSE if set(key.split("/")) & {*LOOSE_ONES} else TIGHT
    if recorded is None:
        return ["nothing is recorded of it: run `python tests/golden.py`"]
    if found.keys() != recorded.keys():
        return [f"it answers {', '.join(found)}; recorded are {', '.join(recorded)}"]
    problems = []
    for name, mine in found.items():
        allowed = allowance * max(map(abs, recorded[name]))
        for what, here, there in zip(FIGURES, mine, recorded[name], strict=True):
            if not abs(here - there) <= allowed:
                problems.append(f"{name}: {what} is {here:g}, recorded is {there:g} with a tolerance of {allowed:.2g}")
    return problems


def read() -> Golden:
    """What is recorded, by `kind/name`."""
    found: Golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    return found


def main(arguments: list[str]) -> int:
    """Compare, and record unless `--check` was given; the number of plugins that differ."""
    torch.set_num_threads(1)
    old, new, where, differing = read(), {}, setting(), 0
    with tempfile.TemporaryDirectory() as folder:
        for record in registry().plugins():
            if record.distribution != BUILTIN:
                continue
            key = f"{record.kind}/{record.name}"
            found: Any = answers(record, where, Path(folder) / record.kind / record.name)
            problems = differences(key, found, old.get(key))
            differing += bool(problems)
            # What agrees stays as it was recorded, so that a record changes only where a plugin did.
            new[key] = found if problems else old[key]
            for problem in problems:
                sys.stdout.write(f"{key}: {problem}\n")
    if "--check" not in arguments:
        lines = [f"  {json.dumps(key)}: {json.dumps(new[key])}" for key in sorted(new)]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return differing


if __name__ == "__main__":
    differ = main(sys.argv[1:])
    sys.exit(1 if differ and "--check" in sys.argv else 0)
