"""Searches for bytes that a parser answers with anything but its own errors: `python tests/fuzz/run.py`.

    python tests/fuzz/run.py --seconds 60 --only dicom --only nifti

Needs atheris: pip install 'medfedpure[fuzz]'. Each parser is searched in a process of its own, which ends at the first
crash, at an input that takes more than 10 seconds, or at 2 GB of memory; the input is kept in --found, and is read
again by `python tests/fuzz/run.py --only NAME --again FILE`.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from mutations import mutated
from parsers import PARSERS, read

SLOWEST, MOST_MEMORY = 10, 2048
"""Seconds of one input; MiB of the process."""


def search(name: str, seconds: int, found: Path, work: Path) -> None:
    """Search in this process, which ends with it."""
    import atheris

    parser = PARSERS[name]
    for folder in ("seeds", "corpus", "target"):
        (work / folder).mkdir()
    for number, seed in enumerate(parser.seeds(work / "seeds")):
        (work / "corpus" / str(number)).write_bytes(seed)
    with atheris.instrument_imports(include=list(parser.instrumented), enable_loader_override=False):
        target = parser.target(work / "target")
        for seed in sorted((work / "corpus").iterdir()):  # what is imported late is guided by, too
            read(target, seed.read_bytes())

    def changed(content: bytes, longest: int, seed: int) -> bytes:
        if seed % 3 == 0:
            return bytes(atheris.Mutate(content, longest))
        return mutated(content, random.Random(seed), longest)

    words = [
        *(f"-max_total_time={seconds}", f"-timeout={SLOWEST}", f"-rss_limit_mb={MOST_MEMORY}", "-max_len=65536"),
        *(f"-artifact_prefix={found / name}-", "-print_final_stats=1", "-verbosity=0", "-seed=1"),
    ]
    atheris.Setup([name, *words, str(work / "corpus")], lambda content: read(target, content), custom_mutator=changed)
    atheris.Fuzz()


def main() -> int:
    """Search every parser, or those that are named; how many failed."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seconds", type=int, default=60, help="of each parser")
    asked.add_argument("--only", action="append", choices=sorted(PARSERS), help="may be given several times")
    asked.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where inputs that fail are kept")
    asked.add_argument("--again", type=Path, help="only read this file")
    asked.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    given = asked.parse_args()
    names = given.only or list(PARSERS)
    if given.again is not None:
        with tempfile.TemporaryDirectory() as work:
            read(PARSERS[names[0]].target(Path(work)), given.again.read_bytes())
        return 0
    if given.here is not None:
        search(names[0], given.seconds, given.found, given.here)
    given.found.mkdir(parents=True, exist_ok=True)
    failed = [name for name in names if not _holds(name, given.seconds, given.found)]
    if not any(given.found.iterdir()):
        given.found.rmdir()
    _say(f"{len(names) - len(failed)} of {len(names)} parsers held{'; failed: ' if failed else ''}{', '.join(failed)}")
    return len(failed)


def _holds(name: str, seconds: int, found: Path) -> bool:
    """Whether a search ended without a crash."""
    with tempfile.TemporaryDirectory() as work:
        words = ["--only", name, "--seconds", str(seconds), "--found", str(found.absolute()), "--here", work]
        ended = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said = ended.stdout.decode(errors="backslashreplace")
    count = next((line.split()[-1] for line in said.splitlines() if "number_of_executed_units" in line), "?")
    _say(f"{name}: {count} inputs, {'held' if ended.returncode == 0 else 'FAILED'}")
    if ended.returncode:
        _say(said[-4000:])
    return ended.returncode == 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
