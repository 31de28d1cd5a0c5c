"""Runs the pages as a reader would: `python tests/pages.py [--verbose] [PAGE ...]`.

Each page gets an empty folder (or a copy of the repository where it runs what lies there), a home of its own and an
environment `.venv` in which it may install; there its blocks run in order: all Python of a page in one process, all
shell in one session that ends with the first command that fails, and a block with a title is saved as that file.
pip finds there all that the present environment has, and asks its index only for what builds a package. Blocks that
are not run say so in the page (tests/documentation.py).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from documentation import PAGES, ROOT, Block, blocks, in_a_clone

LIMIT = 1800.0
"""Seconds that one block may take."""

DRIVER = """
import json, linecache, sys, traceback
answers = open(int(sys.argv[1]), "w", buffering=1)
__name__, space = "__main__", {"__name__": "__main__"}
for line in sys.stdin:
    where, text = json.loads(line)
    linecache.cache[where] = (len(text), None, text.splitlines(True), where)
    try:
        exec(compile(text, where, "exec"), space)
        answers.write("done\\n")
    except BaseException:
        traceback.print_exc()
        answers.write("failed\\n")
    sys.stdout.flush()
"""
PIP = """#!{python}
import sys
from pip._internal.cli.main import main
sys.exit(main())
"""
COMMAND = """#!{python}
import sys
from medfedpure.cli import main
sys.exit(main())
"""


@dataclass(frozen=True)
class Ran:
    """What became of one block: its seconds, all that it printed, and whether it ran to its end."""

    block: Block
    seconds: float
    output: str
    right: bool


class Worker:
    """A child that is sent one block after the other, and answers when each is done."""

    def __init__(self, words: list[str], folder: Path, settings: dict[str, str], log: Path) -> None:
        self.answers, far = os.pipe()
        self._log = log
        with log.open("wb") as out:
            self._child = subprocess.Popen(
                [*words, str(far)], cwd=folder, env=settings, stdin=subprocess.PIPE, stdout=out,
                stderr=subprocess.STDOUT, pass_fds=[far], start_new_session=True,
            )  # fmt: skip
        os.close(far)
        self._read = 0

    def run(self, line: str) -> tuple[bool, str]:
        """Send one line; whether it came to its end, and what was printed meanwhile."""
        assert self._child.stdin is not None
        self._child.stdin.write(line.encode() + b"\n")
        self._child.stdin.flush()
        ready, _, _ = select.select([self.answers], [], [], LIMIT)
        right = bool(ready) and os.read(self.answers, 16).startswith(b"done")
        printed = self._log.read_bytes()[self._read :]
        self._read += len(printed)
        return right, printed.decode(errors="replace") + ("" if ready else f"\nstopped after {LIMIT:.0f} s\n")

    def close(self) -> None:
        """End the child, and what it started."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, 9)
            self._child.wait()
        os.close(self.answers)


class Reader:
    """One page's folder, home and environment, for as long as the page is read."""

    def __init__(self, page: Path) -> None:
        self._all = Path(tempfile.mkdtemp(prefix="page-"))
        self.folder, self._home, self._scripts = (self._all / name for name in ("reader", "home", "scripts"))
        for folder in (self._home, self._scripts):
            folder.mkdir()
        if in_a_clone(page):
            clone(self.folder)
        else:
            self.folder.mkdir()
        environment(self.folder / ".venv")
        python = str(self.folder / ".venv" / "bin" / "python")
        shell = 'while read -r place; do . "$place" </dev/null; echo done >&"$1"; done'
        self._words = {"python": [python, "-u", "-c", DRIVER], "shell": ["bash", "-euc", shell, "reader"]}
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for worker in self._workers.values():
            worker.close()
        shutil.rmtree(self._all, ignore_errors=True)

    def _settings(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MEDFEDPURE", "XDG_"))}
        binaries = os.pathsep.join(
            [str(self.folder / ".venv" / "bin"), str(Path(sys.executable).parent), kept.get("PATH", os.defpath)]
        )
        own = {"HOME": str(self._home), "PATH": binaries, "TMPDIR": str(self._scripts), "MPLBACKEND": "agg"}
        return {**kept, **own, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_QUIET": "1", "HF_HUB_OFFLINE": "1"}

    def _worker(self, name: str) -> Worker:
        """The page's Python or shell, started when it is first asked for: Python sees what was installed before."""
        if name not in self._workers:
            log = self._all / f"{name}.log"
            self._workers[name] = Worker(self._words[name], self.folder, self._settings(), log)
        return self._workers[name]

    def run(self, block: Block) -> Ran:
        """What a reader does with a block: save it under its title, or run it."""
        start = time.perf_counter()
        right, printed = True, ""
        if block.title is not None:
            target = self.folder / block.title
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            right, printed = self._worker("python").run(json.dumps([block.where, block.text]))
        else:
            script = self._scripts / f"line_{block.line}.sh"
            script.write_text(block.text, encoding="utf-8")
            right, printed = self._worker("shell").run(str(script))
        return Ran(block, time.perf_counter() - start, printed, right)


def clone(folder: Path) -> None:
    """The repository as it stands, changes included, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in sorted(set(listed.stdout.decode().split("\0")) - {""}):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def environment(folder: Path) -> None:
    """An environment that sees all that the present one has, and into which more can be installed."""
    venv.EnvBuilder(symlinks=True).create(folder)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    places = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    lines = [str(ROOT), *(f"import site; site.addsitedir({place!r})" for place in places)]
    (folder / "lib" / version / "site-packages" / "zz_present.pth").write_text("\n".join(lines), encoding="utf-8")
    for name, text in (("pip", PIP), ("medfedpure", COMMAND)):
        (folder / "bin" / name).write_text(text.format(python=python), encoding="utf-8")
        (folder / "bin" / name).chmod(0o755)
    for tool in Path(sys.executable).parent.iterdir():
        if not (folder / "bin" / tool.name).exists():
            (folder / "bin" / tool.name).symlink_to(tool)
    (folder / ".created").touch()  # the Makefile's stamp


def read(page: Path, tell: bool = False) -> list[Ran]:
    """Run a page; its blocks up to the first that fails."""
    found: list[Ran] = []
    with Reader(page) as reader:
        for block in blocks(page):
            if block.runs or (block.title is not None and block.reason is None):
                found.append(ran := reader.run(block))
                if tell or not ran.right:
                    _say(f"-- {block.where} {block.language} {ran.seconds:.1f} s\n{ran.output}")
                if not ran.right:
                    break
    return found


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _stop(*_: object) -> None:
    """End, so that folders and children go as well; once."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    """Run pages, and say of each how long it took; 1 where one fails."""
    parser = argparse.ArgumentParser(description="Run the pages of the documentation as a reader would.")
    parser.add_argument("pages", nargs="*", type=Path, help="default: all that have something to run")
    parser.add_argument("--verbose", action="store_true", help="show what every block prints")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    failed = []
    for page in [path.resolve() for path in options.pages] or PAGES:
        ran = read(page, options.verbose)
        if ran:
            wrong = [one.block.where for one in ran if not one.right]
            failed += wrong
            seconds = sum(one.seconds for one in ran)
            verdict = f"FAILS at line {ran[-1].block.line}" if wrong else "runs"
            _say(f"{page.relative_to(ROOT)}: {len(ran)} blocks, {seconds:.1f} s, {verdict}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
