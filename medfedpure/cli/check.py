"""`medfedpure check`: the contract of its kind on an installed plugin, in plain words."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from medfedpure.cli.new import CONTRACTS
from medfedpure.cli.shown import Terminal, say_json
from medfedpure.cli.which import ConfigFile, Kind, Name, find, read_config
from medfedpure.core.errors import MissingExtraError
from medfedpure.core.registry import Plugin, registry

_TEST = """
import json
import pytest
import medfedpure
from medfedpure.testing import {contract}

class TestPlugin({contract}):
    @pytest.fixture(scope="class")
    @classmethod
    def unfitted(cls):
        return medfedpure.create({kind!r}, {name!r}, json.loads({config!r}))
"""


@dataclass
class Finding:
    """One check that failed: its name, what is promised, and what was found instead."""

    check: str
    promise: str
    found: str


@dataclass
class Verdict:
    """What the contract says of one plugin."""

    kind: str
    name: str
    distribution: str
    contract_version: int
    passed: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: list[Finding] = field(default_factory=list)


def check(
    name: Name,
    kind: Kind = None,
    config: ConfigFile = None,
    device: Annotated[
        str | None, typer.Option("--device", help="Compare with the CPU on this device; default: CUDA where present.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Also list what passed and what does not apply.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Run the contract of its kind on an installed plugin; the exit code is 1 where something fails."""
    if device is not None:
        from medfedpure.job.device import check_device

        check_device(device)
    verdict = run_contract(find(name, kind), read_config(config), device)
    if as_json:
        say_json(asdict(verdict))
    else:
        _print(verdict, verbose)
    if verdict.failed:
        raise typer.Exit(1)


def run_contract(record: Plugin, options: dict[str, Any], device: str | None = None) -> Verdict:
    """Run the contract of a plugin's kind on it, in this process.

    Args:
        record: the plugin.
        options: its configuration, as it stands in a run file.
        device: a second device to compare the CPU with.

    Raises:
        MissingExtraError: pytest is not installed, or the plugin lacks an optional dependency.
        PluginLoadError: the plugin cannot be imported.
    """
    try:
        import pytest
    except ImportError as error:
        raise MissingExtraError("the contract needs pytest: pip install 'medfedpure[test]'") from error
    from medfedpure.testing import CONTRACT_VERSION
    from medfedpure.testing.components import DEVICE_VARIABLE

    registry().load(record.kind, record.name)
    verdict = Verdict(record.kind, record.name, record.distribution, CONTRACT_VERSION)
    before = os.environ.get(DEVICE_VARIABLE)
    if device is not None:
        os.environ[DEVICE_VARIABLE] = device
    try:
        with tempfile.TemporaryDirectory(prefix="medfedpure-check-") as work:
            folder = Path(work)
            text = _TEST.format(
                contract=CONTRACTS[record.kind], kind=record.kind, name=record.name, config=json.dumps(options)
            )
            (folder / "test_contract_of_plugin.py").write_text(text, encoding="utf-8")
            (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
            quiet = ["-p", "no:terminal", "-p", "no:cacheprovider", "-c", str(folder / "pytest.ini")]
            code = int(pytest.main([*quiet, "--rootdir", work, work], plugins=[_Listener(verdict)]))
    finally:
        if device is not None:
            os.environ.pop(DEVICE_VARIABLE)
            if before is not None:
                os.environ[DEVICE_VARIABLE] = before
    if not verdict.passed and not verdict.failed:
        verdict.failed.append(Finding("contract", "The contract runs.", f"pytest ended with {code} and ran nothing"))
    return verdict


class _Listener:
    """Collects what pytest reports."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.promises: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for item in items:
            self.promises[item.nodeid] = " ".join((item.function.__doc__ or "").split())

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.verdict.failed.append(Finding("collection", "The contract can be read.", _message(report)))

    def pytest_runtest_logreport(self, report: Any) -> None:
        name = report.nodeid.rsplit("::", 1)[-1].removeprefix("test_").replace("_", " ")
        if report.failed:
            self._add(name, report)
        elif report.skipped:
            self.verdict.skipped[name] = str(report.longrepr[2]).removeprefix("Skipped: ")
        elif report.when == "call":
            self.verdict.passed.append(name)

    def _add(self, name: str, report: Any) -> None:
        if report.when == "call":
            promise = self.promises.get(report.nodeid, "")
        else:
            name, promise = "it can be made and fitted", "A new instance can be created and fitted on a small data set."
        found = Finding(name, promise, _message(report))
        # One plugin that cannot be made fails every check in the same words: say it once.
        if found not in self.verdict.failed:
            self.verdict.failed.append(found)


def _message(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    text = crash.message if crash is not None else str(report.longrepr)
    return str(text).removeprefix("AssertionError: ").removeprefix("Failed: ").split("\nassert ")[0].strip()


def _print(verdict: Verdict, verbose: bool) -> None:
    say = Terminal().say
    version = f"contract version {verdict.contract_version}"
    say(f"{verdict.kind} {verdict.name!r} (from {verdict.distribution}) against {version}", "bold")
    for finding in verdict.failed:
        say(f"  fails: {finding.check}", "bold red")
        say(f"    promised: {finding.promise}")
        say("    found:    " + finding.found.replace("\n", "\n              "))
    if verbose:
        for name in verdict.passed:
            say(f"  passes: {name}", "green")
        for name, reason in verdict.skipped.items():
            say(f"  does not apply: {name} ({reason})", "dim")
    say(f"{len(verdict.passed)} checks pass, {len(verdict.failed)} fail, {len(verdict.skipped)} do not apply")
