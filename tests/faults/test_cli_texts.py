"""Texts that are not ours, on the terminal: neither markup nor control."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

import medfedpure.cli
from medfedpure.bench.stage import Bench, Row
from medfedpure.cli import bench, evaluate, federate, job
from medfedpure.cli.app import app
from medfedpure.cli.bars import Bars
from medfedpure.cli.shown import Terminal, echo_json, shown
from medfedpure.federation import RoundRecord

EVIL = "g[/b] [bold] :smile: \x1b]0;t\x07 \x1b[2J \x9b2J \u202e \udc80 \r"
SPELLED = r"g[/b] [bold] :smile: \x1b]0;t\x07 \x1b[2J \x9b2J \u202e \udc80 \r"
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def test_b11_a_text_is_spelled_out() -> None:
    """B11: every character that steers a terminal, and only those."""
    assert shown(EVIL) == SPELLED
    good = "Straße 5 \u00b5m [x]\n\t\u0632\u0646\u200c\u0647\u0627 \U0001f469\u200d\u2695"
    assert shown(good) == good
    assert not STEERING.search(shown("".join(map(chr, range(0x3000)))))


def test_b11_the_terminal_shows_every_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """B11: lines, titles, rules, cells, headers and groups alike."""
    console = Terminal()
    console.width = 200
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    for thing in (EVIL, table, Group(EVIL, table)):
        console.print(thing)
        said = capsys.readouterr().out
        assert SPELLED in said
        assert not STEERING.search(said)
    console.say(EVIL, "bold")
    console.rule(EVIL)
    said = capsys.readouterr().out
    assert said.count(SPELLED) == 2
    assert not STEERING.search(said)


def test_b11_bars_show_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    """B11: the descriptions of loops hold names of clients and attacks."""
    console = Terminal()
    console.width = 200
    bars = Bars(console)
    bars.started(EVIL, 3)
    console.print(bars.progress.get_renderable())
    said = capsys.readouterr().out
    assert SPELLED in said
    assert not STEERING.search(said)


def test_b11_tables_of_sites_and_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    """B11: names of clients, and why they failed."""
    record = RoundRecord(
        1, 1.0, {EVIL: {"balanced_accuracy": 0.5, "loss": 1.0}}, {f"{EVIL}2": EVIL}, {EVIL: 1}, {EVIL: 1}
    )
    console = Terminal()
    console.width = 300
    console.print(federate.rounds_table((record,), 300))
    console.print(federate.clients_table(record))
    bench._print(Bench("detector", ("AUROC",), [Row(EVIL, {"AUROC": 0.5}), Row(EVIL, problem=EVIL)], [EVIL]), EVIL)
    job._print_table(console, [["", EVIL], [EVIL, EVIL]], [EVIL])
    said = capsys.readouterr().out
    assert said.count(SPELLED) >= 9
    assert not STEERING.search(said)


def test_b11_no_text_of_the_command_passes_by_the_terminal() -> None:
    """B11: nothing in the command prints on another way, so that a new table is safe as well."""
    root = Path(medfedpure.cli.__file__).parent
    for path in root.glob("*.py"):
        if path.name == "shown.py":
            continue
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<!\w)Console\(|from_markup|(?<![.\w])print\(|stdout\.write", text), path.name
        for printed in re.findall(r"typer\.echo\((.*)", text):
            assert printed.startswith("json.dumps("), f"{path.name}: {printed}"


def test_b11_json_is_ascii(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """B11: in JSON such a character is an escape, which whoever parses it gets back."""
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"a": [EVIL, 0.1]}), encoding="utf-8")
    echo_json(path)
    said = capsys.readouterr().out
    assert said.isascii()
    assert not STEERING.search(said)
    assert json.loads(said) == {"a": [EVIL, 0.1]}


@pytest.mark.parametrize(
    "line",
    [
        ["run", "\x1b]0;t\x07[/x].toml", "--out", "g[/b]"],
        ["evaluate", "\x1b[2J[/x]", "--report", "g[/b]"],
        ["plugins", "\x1b[2J[/x]"],
        ["plugins", "a", "b", "\x1b[2J[/x]"],
        ["\x1b[2J[/x]"],
        ["bench", "\x1b[2J[/x]", "--images", "120"],
        ["new", "detector", "\x1b[2J[/x]"],
    ],
    ids=lambda line: line[0].encode("unicode_escape").decode(),
)
def test_b11_errors_of_the_command(tmp_path: Path, line: list[str]) -> None:
    """B11: one line with the text as it is, no traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "medfedpure", *line],
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        timeout=120,
    )
    said = (done.stdout + done.stderr).decode()
    assert done.returncode in (1, 2), said
    assert "Traceback" not in said
    assert not STEERING.search(said), said
    assert r"\x1b" in said


def test_b11_an_output_folder_of_any_name(tmp_path: Path) -> None:
    """B11: the name is shown after the work, where a markup error would come late."""
    out = tmp_path / "g[/b]\x1b[2J"
    done = CliRunner().invoke(app, ["new", "detector", "my_own", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert r"g[/b]\x1b[2J" in done.output
    assert not STEERING.search(done.output)


def every_command(command: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    found = {path: command}
    for name, inner in getattr(command, "commands", {}).items():
        found |= every_command(inner, (*path, name))
    return found


@pytest.mark.parametrize("path", every_command(typer.main.get_command(app)), ids=" ".join)
def test_b11_help_loses_nothing_in_brackets(path: tuple[str, ...]) -> None:
    """B11: "[all]", "[data]" and the like stay in the help."""
    done = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "300"})
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    command = every_command(typer.main.get_command(app))[path]
    for text in [command.help or "", *(getattr(option, "help", None) or "" for option in command.params)]:
        assert " ".join(text.split()) in said, f"{text!r} is not in the help:\n{done.output}"


def test_b11_a_summary_of_an_evaluation(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """B11: the table of an evaluation comes with its own markup, and escapes the rest."""
    from medfedpure.reporting.evaluation import table, words

    def made(summary: object, width: int) -> Table:
        from rich.markup import escape

        found = Table(box=None)
        found.add_row(f"[bold]{escape(EVIL)}[/]")
        found.add_row(escape(EVIL))
        return found

    monkeypatch.setattr(table, "terminal_table", made)
    monkeypatch.setattr(table, "conditions", lambda summary: [EVIL])
    monkeypatch.setattr(table, "warnings", lambda summary: [EVIL])
    monkeypatch.setattr(words, "verdict", lambda summary: [EVIL])
    monkeypatch.setattr(words, "verdict_benign", lambda summary: EVIL)
    evaluate._print(None)  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert said.replace("\n", " ").count("g[/b] [bold]") == 6
    assert not STEERING.search(said)
    assert isinstance(Terminal().render_str("a"), Text)
