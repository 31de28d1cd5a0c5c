"""The command says a warning of ours in a sentence, and leaves those of others, and Python's own way, alone."""

import subprocess
import sys

COMMAND = """
import sys, warnings
import typer
from medfedpure import cli
from medfedpure.cli import app as commands
from medfedpure.core.errors import WeakDefenceWarning

app = typer.Typer()

@app.command()
def run():
    warnings.warn("a weak\\x1b defence", WeakDefenceWarning)
    warnings.warn("of another", UserWarning)

commands.app = app
sys.argv = ["medfedpure"]
before = warnings.formatwarning
try:
    cli.main()
finally:
    assert warnings.formatwarning is before
"""


def test_our_warnings_are_sentences():
    done = subprocess.run([sys.executable, "-c", COMMAND], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, others = done.stderr.splitlines()[:2]
    assert ours == "warning: a weak\\x1b defence"
    assert others.endswith("UserWarning: of another")
