"""Test the wheel on every Python at hand, with the oldest and the newest dependencies: `make compat`.

The wheel is built from the source tree and installed into a new environment, one at a time; the tests run from a
copy that holds no `medfedpure` folder, so that what is tested is what is installed. Newest dependencies = those that
fit together, on every Python; oldest = every direct one at the lower bound that pyproject.toml gives (uv's resolution
"lowest-direct"), on the oldest Python alone: many old releases were never built for newer ones.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = (
    *("tests", "docs", "examples", "benchmarks"),
    *("pyproject.toml", "mkdocs.yml", "Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE"),
)
EXTRAS = ("all", "privacy", "test")
MINORS = range(11, 16)
UV = (sys.executable, "-m", "uv")


def interpreters() -> Iterator[str]:
    """`python3.N` on the path that run, from the oldest that is supported."""
    for minor in MINORS:
        found = shutil.which(f"python3.{minor}")
        if found is not None and subprocess.run([found, "-c", ""], check=False, capture_output=True).returncode == 0:
            yield found


def build(folder: Path) -> Path:
    """The wheel of the source tree, in the folder."""
    _call(*UV, "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("*.whl")
    return wheel


def copy_tree(target: Path) -> None:
    """All that the tests read, and no source of the package."""
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / name)


def install(python: str, resolution: str, wheel: Path, environment: Path) -> str:
    """Fill a new environment; returns its interpreter."""
    limits = environment.with_suffix(".txt")
    extras = [word for extra in EXTRAS for word in ("--extra", extra)]
    chosen = {"oldest": "lowest-direct", "newest": "highest"}[resolution]
    _call(
        *(*UV, "pip", "compile", "--quiet", "--resolution", chosen, "--python", python, *extras),
        *("--output-file", str(limits), str(ROOT / "pyproject.toml")),
    )
    _call(*UV, "venv", "--quiet", "--seed", "--python", python, str(environment))
    inside = str(environment / "bin" / "python")
    wanted = f"medfedpure[{','.join(EXTRAS)}] @ {wheel.as_uri()}"
    _call(*UV, "pip", "install", "--quiet", "--python", inside, "--constraint", str(limits), wanted)
    return inside


def check(python: str, resolution: str, wheel: Path, arguments: list[str]) -> bool:
    """Whether the tests pass in a new environment, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as place:
        copy_tree(Path(place) / "tree")
        inside = install(python, resolution, wheel, Path(place) / "environment")
        listed = subprocess.run([*UV, "pip", "freeze", "--python", inside], check=True, capture_output=True, text=True)
        print(listed.stdout, flush=True)
        return (
            subprocess.run([inside, "-m", "pytest", *arguments], cwd=Path(place) / "tree", check=False).returncode == 0
        )


def _call(*command: str) -> None:
    subprocess.run(command, check=True)


def main() -> None:
    """Every interpreter in turn; exits 1 when one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", nargs="*", choices=("oldest", "newest"), default=["oldest", "newest"])
    parser.add_argument("--python", nargs="*", default=list(interpreters()), help="by default all that are found")
    given, arguments = parser.parse_known_args()
    pairs = [("oldest", python) for python in given.python[:1]] + [("newest", python) for python in given.python]
    verdicts = {}
    with tempfile.TemporaryDirectory() as place:
        wheel = build(Path(place))
        for resolution, python in pairs:
            if resolution in given.resolution:
                print(f"== {python}, {resolution} dependencies", flush=True)
                verdicts[python, resolution] = check(python, resolution, wheel, arguments)
    if not verdicts:
        sys.exit(f"no python3.{MINORS[0]} or newer on the path")
    for (python, resolution), passed in verdicts.items():
        print(f"{'passed' if passed else 'FAILED'}: {python}, {resolution} dependencies")
    sys.exit(not all(verdicts.values()))


if __name__ == "__main__":
    main()
