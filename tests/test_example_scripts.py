"""Every script in examples/ runs, and says what it promises."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from medfedpure.testing import tiny_dataset

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = {
    "quickstart.py": (
        r"benign +bare 0\.9\d+ .*\nattacked +bare 0\.[0-4]",
        r"eps 0\.0313725",
        "attacker ignores the defence",
    ),
    "swap_detector.py": ("feature_squeezing +AUROC", "mahalanobis +AUROC", "eps 0.0313725"),
    "defend_your_own_model.py": ("80 images of", "p = ", "it answers the same"),
    "federated_hospitals.py": ("the head stays: network.head.bias", "north ", "south ", "west ", "eps 0.0313725"),
    "adaptive_attack.py": ("ignores the defence", "BPDA", "exact gradient", "fools and hides", "worst case", "EoT 1"),
}


def write_images(folder: Path) -> None:
    """Two class folders with forty PNG files each."""
    data, names = tiny_dataset(80), ("no_disc", "disc")
    for place, (pixels, label) in enumerate(zip(data.pixels, data.labels.tolist(), strict=True)):
        target = folder / names[label]
        target.mkdir(exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(target / f"{place:02}.png")


def test_every_example_is_run_here() -> None:
    found = {path.name for path in EXAMPLES.glob("*.py")}
    assert found == SCRIPTS.keys(), f"not run: {found - SCRIPTS.keys()}, not there: {SCRIPTS.keys() - found}"


@pytest.mark.filterwarnings("ignore::medfedpure.core.errors.WeakDefenceWarning")  # trained for seconds, they are
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments: list[str] = []
    if name.startswith("defend_your_own"):
        (tmp_path / "images").mkdir()
        write_images(tmp_path / "images")
        arguments = ["images", "--model", "test_resnet", "--size", "32", "--steps", "4"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    for words in SCRIPTS[name]:
        assert re.search(words, printed), f"{name} does not print {words!r}:\n{printed}"


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["nowhere"], "error: nowhere does not exist", 1),
        (["images", "--detector", "madr"], "error: no detector is named 'madr'", 1),
        (["images", "--model", "resnet_of_mine"], "timm has no model 'resnet_of_mine'", 2),
        (["images", "--weights", "none.safetensors"], "--weights none.safetensors are not those of test_resnet", 2),
    ],
)
def test_a_users_mistake_is_one_line(
    words: list[str],
    said: str,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images")
    small = ["--model", "test_resnet", "--size", "32", "--steps", "1"]
    monkeypatch.setattr(sys, "argv", ["x", *small, *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(EXAMPLES / "defend_your_own_model.py"), run_name="__main__")
    assert caught.value.code == code
    assert said in capsys.readouterr().err


def test_the_quickstart_is_short_and_the_readmes_own() -> None:
    text = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 25, f"quickstart.py has {len(text.splitlines())} lines; 25 are promised"
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert f"```python\n{text}```" in readme, "the README's quickstart differs from examples/quickstart.py: copy it"
