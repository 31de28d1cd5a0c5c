"""A classifier of one's own by name: it is found from the current folder, and what is wrong with it is a sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from medfedpure.core.errors import ConfigError
from medfedpure.job.own_module import own_module

CODE = """
import sys
from torch import nn

made = nn.Linear(2, 2)
number = 5

def build():
    from inner_part_of_mine import WIDTH  # found from here, also where it is imported late
    return nn.Linear(2, WIDTH)

def build_wide(width):
    return nn.Linear(2, width)

def nothing():
    pass

def fails():
    raise OSError("no weights at /data")

def moves():
    import os
    os.chdir("/")
    return nn.Linear(2, 2)

def __getattr__(name):
    raise RuntimeError(f"no {name} without a licence") if name == "licensed" else AttributeError(name)

def leaves():
    sys.exit("usage: train.py DATA")

class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 7)

    @classmethod
    def small(cls):
        return nn.Linear(2, 1)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a module into an empty folder that is the current one; what is imported is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name: str, code: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code, encoding="utf-8")

    write("model_of_mine.py", CODE)
    write("inner_part_of_mine.py", "WIDTH = 3")
    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(("name", "width"), [("build", 3), ("made", 2), ("Net", 7), ("Net.small", 1)])
def test_a_function_a_class_or_a_module_is_found_from_here(written: object, name: str, width: int) -> None:
    before = list(sys.path)
    model = own_module(f"model_of_mine:{name}")
    assert isinstance(model, nn.Linear)
    assert model.out_features == width
    assert sys.path == before, "the folder stayed on the path"


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("model_of_mine", "named package.module:function, as in mymodel:build; got 'model_of_mine'"),
        ("model_of_mine:", "named package.module:function"),
        (":build", "named package.module:function"),
        ("models/mine.py:build", "named package.module:function"),
        ("a:b:c", "named package.module:function"),
        ("no_such_model:build", "no module no_such_model: .* run the command in the folder that holds it"),
        ("no_such.model:build", "no module no_such.model: 'no_such' is neither in"),
        ("model_of_mine.sub:build", r"no module model_of_mine\.sub"),
        ("model_of_mine:biuld", "no 'biuld'; did you mean build"),
        ("model_of_mine:zzz", "no 'zzz'; it holds "),
        ("model_of_mine:Net.zzz", "no 'zzz'"),
        ("model_of_mine:number", r"is a int; an nn\.Module is wanted"),
        ("model_of_mine:nothing", r"returned a NoneType; an nn\.Module is wanted: return the model"),
        ("model_of_mine:build_wide", "raised TypeError: .*without arguments"),
        ("model_of_mine:licensed", "to look up 'licensed' raised RuntimeError: no licensed without a licence"),
        ("model_of_mine:fails", "raised OSError: no weights at /data"),
        ("model_of_mine:leaves", r"raised SystemExit: usage: train\.py DATA"),
        ("broken_model:build", "broken_model is there, but importing it raised SyntaxError"),
        ("script_model:build", "script_model is there, but importing it raised SystemExit: 2"),
        (
            "lacking_model:build",
            "lacking_model is there, but what it imports is not: .*'no_such_library'.*: install it",
        ),
        ("late_model:build", r"raised ModuleNotFoundError: No module named 'no_such_library'"),
    ],
)
def test_what_is_wrong_is_a_sentence(written: Callable[[str, str], None], named: str, sentence: str) -> None:
    written("broken_model.py", "def build(:")
    written("script_model.py", "import sys\nsys.exit(2)")
    written("lacking_model.py", "import no_such_library")
    written("late_model.py", "def build():\n    import no_such_library")
    before = list(sys.path)
    with pytest.raises(ConfigError, match=sentence):
        own_module(named)
    assert sys.path == before, "the folder stayed on the path"


def test_the_current_folder_stays_the_current_one(written: object, tmp_path: Path) -> None:
    own_module("model_of_mine:moves")
    assert Path.cwd() == tmp_path, "the command's paths would lead elsewhere"


def test_a_package_is_found_too(written: Callable[[str, str], None]) -> None:
    written("package_of_mine/models.py", "from torch import nn\ndef build():\n    return nn.Identity()")
    assert isinstance(own_module("package_of_mine.models:build"), nn.Identity)
