"""A detector of somebody else's, installed from its own package and swapped in by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "third_party_detector"
NAME = "laplacian_energy"

COMMON = """
import json, sys
import torch
import medfedpure
from torch.nn.functional import avg_pool2d

def images(count, seed):
    noise = torch.rand(count, 1, 36, 36, generator=torch.Generator().manual_seed(seed))
    return avg_pool2d(noise, 5, 1)[:, :, :32, :32]

def attacked(count, seed):
    sign = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(-seed)) - 0.5
    return (images(count, seed) + 0.05 * sign.sign()).clamp(0, 1)

def report(prediction, **more):
    print(json.dumps({
        "labels": prediction.labels.tolist(), "scores": prediction.scores.tolist(),
        "logits": prediction.logits.tolist(), "flagged": prediction.flagged.tolist(),
        "purified": prediction.purified.tolist(), **more,
    }))
"""

BUILD = """
name, folder = sys.argv[1:]
classifier = medfedpure.create("classifier", "small_cnn", widths=(4, 8)).create_model(
    in_channels=1, num_classes=2, image_size=32)
chain = medfedpure.DefendedClassifier(
    classifier, detector=medfedpure.create("detector", name), purifier=medfedpure.create("purifier", "median"))
chain.calibrate(images(100, 1), 0.05)
chain.save(folder)
record = medfedpure.registry().get("detector", name)
mixed = torch.cat((images(40, 2), attacked(40, 3)))
report(chain.predict(mixed, seed=0), distribution=record.distribution, detector=type(chain.detector).__module__)
"""

RELOAD = """
chain = medfedpure.DefendedClassifier.load(sys.argv[1])
report(chain.predict(torch.cat((images(40, 2), attacked(40, 3))), seed=0))
"""

LISTING = """
import json, sys
from medfedpure.core.registry import registry
records = registry().plugins("detector")
print(json.dumps([[record.name for record in records], len(registry().failures), sorted(sys.modules)]))
"""

RUN_FILE = """
[data]
plugin = "phantom"
config = { images = 240, image_size = 24 }
clients = 2
calibrate = 0.3

[classifier]
plugin = "small_cnn"
config = { widths = [8, 8] }
training = { steps = 4, batch_size = 8 }

[detector]
plugin = "mae"

[purifier]
plugin = "median"

[attack]
plugin = "fgsm"
"""

CONTRACT = f"""
import medfedpure, pytest
from medfedpure.testing import DetectorContract

class TestExample(DetectorContract):
    @pytest.fixture(scope="class")
    def unfitted(self):
        return medfedpure.create("detector", "{NAME}")
"""

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed by pip into a folder of its own, without a network."""
    folder = tmp_path_factory.mktemp("third_party")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(folder), str(EXAMPLE)]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 0, f"pip could not install the example:\n{answer.stdout}{answer.stderr}"
    return folder


@pytest.fixture(scope="module")
def run(installed: Path) -> Run:
    """Run code in a fresh process that sees the installed example (or not); the JSON it prints last."""

    def fresh(code: str, *arguments: str, sees_example: bool = True, fails: bool = False) -> Any:
        path = [str(installed)] * sees_example + [p for p in [os.environ.get("PYTHONPATH")] if p]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "MEDFEDPURE_STRICT_PLUGINS": "1"}
        command = [sys.executable, "-c", code, *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert (answer.returncode != 0) == fails, f"the process failed:\n{answer.stdout}\n{answer.stderr}"
        return answer.stderr if fails else json.loads(answer.stdout.splitlines()[-1])

    return fresh


@pytest.fixture(scope="module")
def defence(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """What a chain with the example as its detector predicts, and the folder it was saved to."""
    folder = str(tmp_path_factory.mktemp("saved") / "defence")
    return run(COMMON + BUILD, NAME, folder), folder


def test_the_example_is_short() -> None:
    files = [EXAMPLE / "pyproject.toml", *EXAMPLE.rglob("*.py")]
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)
    assert lines <= 40, f"the example has {lines} lines; 40 are promised"


def test_installed_it_is_listed_by_name_and_stays_lazy(run: Run) -> None:
    names, failures, modules = run(LISTING)
    assert NAME in names, f"only {names} are listed"
    assert failures == 0, "the example is a broken plugin"
    assert "laplacian_energy.detector" not in modules, "listing imports the implementation"
    assert "torch" not in modules, "listing loads torch"
    names, _, _ = run(LISTING, sees_example=False)
    assert NAME not in names, "the example is listed where it is not installed"


def test_it_takes_the_place_of_a_detector_by_name(defence: tuple[Any, str]) -> None:
    built, _ = defence
    assert built["distribution"] == "laplacian-energy", f"registered by {built['distribution']!r}"
    assert built["detector"] == "laplacian_energy.detector", f"the chain uses {built['detector']!r}"
    benign, attacked = built["flagged"][:40], built["flagged"][40:]
    assert sum(benign) <= 8, f"{sum(benign)} of 40 benign images are flagged at a target of 5 %"
    assert sum(attacked) == 40, f"only {sum(attacked)} of 40 images with added noise are flagged"
    assert built["purified"] == built["flagged"], "what is purified is not what its detector flags"


def test_a_saved_defence_finds_it_by_name_in_another_process(run: Run, defence: tuple[Any, str]) -> None:
    built, folder = defence
    loaded = run(COMMON + RELOAD, folder)
    for what in ("labels", "scores", "logits", "flagged"):
        assert loaded[what] == built[what], f"{what} differ after loading in another process"


def test_without_it_a_saved_defence_says_what_is_missing(run: Run, defence: tuple[Any, str]) -> None:
    _, folder = defence
    complaint = run(COMMON + RELOAD, folder, sees_example=False, fails=True)
    assert f"no detector is named '{NAME}'" in complaint, f"the error does not name the detector:\n{complaint}"


def test_one_line_of_a_run_file_swaps_it_in(installed: Path, tmp_path: Path) -> None:
    job, out = tmp_path / "job.toml", tmp_path / "out"
    job.write_text(RUN_FILE.replace('plugin = "mae"', f'plugin = "{NAME}"'), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "medfedpure", "run", str(job), "--out", str(out), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, f"the job failed:\n{answer.stderr[-3000:]}"
    assert json.loads(answer.stdout)["config"]["detector"]["plugin"] == NAME
    saved = json.loads((out / "defences" / "client_0" / "detector" / "medfedpure.json").read_text(encoding="utf-8"))
    assert saved["plugin"] == NAME, f"the saved defence names {saved['plugin']!r}"


@pytest.mark.slow
def test_it_passes_the_contract_of_detectors(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "test_example.py").write_text(CONTRACT, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    answer = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert answer.returncode == 0, f"the example breaks the contract:\n{answer.stdout}{answer.stderr}"
