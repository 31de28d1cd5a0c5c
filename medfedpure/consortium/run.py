"""`medfedpure federation run`: start a run over the network, wait for it, and fail where it fails.

`flwr run --stream` ends with 0 also when the run failed, so the run's own status is read.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medfedpure.consortium.deployment import FAILURE, RESULTS
from medfedpure.consortium.files import CONNECTION
from medfedpure.core.errors import ConfigError, FederationError
from medfedpure.federation.environment import SWITCHES

_POLL, _SILENCE, _SIGN_OF_LIFE = 3.0, 60.0, 60.0


def run_federation(folder: Path, *, say: Callable[[str], None], timeout: float | None = None) -> dict[str, Any]:
    """Run what `federation init` wrote, at the coordinator; given again after a failure, it resumes.

    Args:
        folder: with `app/` and `server/`.
        say: receives one line per round, change of status, minute without either, and site that has its defence.
        timeout: seconds after which the run is stopped; by default never.

    Returns:
        results.json of the server.

    Raises:
        FederationError: the run failed or was stopped, or the SuperLink does not answer any more.
        ConfigError: the folder is not one of `federation init`, or Flower's command is missing.
    """
    server = folder.resolve() / "server"
    if not (server / "flower" / "config.toml").is_file():
        raise ConfigError(f"{folder} holds no server/flower/config.toml: make it by `medfedpure federation init`")
    (server / "out" / FAILURE).unlink(missing_ok=True)
    flower = _Flower(server / "flower")
    run_id = flower.submit(folder.resolve() / "app")
    say(f"run {run_id} submitted")
    try:
        status = _wait(flower, run_id, server / "out" / RESULTS, say, timeout)
    except (KeyboardInterrupt, FederationError):
        flower.stop(run_id)
        raise
    if status != "finished:completed":
        why = _read(server / "out" / FAILURE).get("text", f"`flwr log {run_id} {CONNECTION}` may show why")
        raise FederationError(
            f"run {run_id} ended as {status!r}: {why}. The same command resumes after the last whole round"
        )
    results: dict[str, Any] = _read(server / "out" / RESULTS)
    if not _whole(results):
        raise FederationError(
            f"run {run_id} counts as completed, but {server / 'out' / RESULTS} lacks rounds: does the SuperLink's "
            "environment name this folder?"
        )
    made = results.get("defences", {"done": {}, "failed": {}})
    for client, counts in sorted(made["done"].items()):
        told = ", ".join(f"{name} {count:g}" for name, count in counts.items())
        say(f"{client} has its defence" + (f"; it tells of its trial ({made['attack']}): {told}" if told else ""))
    for client, why in sorted(made["failed"].items()):
        say(f"{client} has no defence: {why}. Where that has passed, the same command asks it again")
    return results


def _rounds(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """All rounds so far, each with the name of its part where there are several."""
    several = "phases" in results
    phases = results.get("phases", [results])
    return [(f"{phase['part']}, " if several else "", one) for phase in phases for one in phase.get("history", [])]


def _whole(results: dict[str, Any]) -> bool:
    """Whether the results hold every round of every part."""
    phases = results.get("phases", [results])
    parts = results.get("parts", [None])
    return len(phases) == len(parts) and all(len(one.get("history", [])) == one.get("rounds") for one in phases)


def _wait(flower: _Flower, run_id: str, results: Path, say: Callable[[str], None], timeout: float | None) -> str:
    started = heard = said = time.monotonic()
    known, rounds = "", len(_rounds(_read(results)))
    while True:
        now = time.monotonic()
        status = flower.status(run_id)
        if status is not None:
            heard = now
        elif now - heard > _SILENCE:
            raise FederationError(
                f"the SuperLink has not answered for {_SILENCE:g} s: start it again and give the same command, which "
                "resumes after the last whole round"
            )
        history = _rounds(_read(results))
        for part, record in history[rounds:]:
            left_out = "".join(f"; without {client}: {why}" for client, why in sorted(record["failed"].items()))
            say(f"{part}round {record['round']}: {record['seconds']:.0f} s, {len(record['clients'])} clients{left_out}")
            said = now
        rounds = max(rounds, len(history))
        if status is not None and status != known:
            known, said = status, now
            say(status)
        if now - said >= _SIGN_OF_LIFE and not known.startswith("finished"):
            said = now
            say(f"{known or 'no answer yet'} for {int(now - started) // 60} min; rounds that are over: {rounds}")
        if known.startswith("finished"):
            return known
        if timeout is not None and now - started > timeout:
            raise FederationError(
                f"run {run_id} was stopped after {timeout:g} s: allow more, or look at the sites' logs"
            )
        time.sleep(_POLL)


class _Flower:
    """Flower's command line, kept off the network and out of other Flower settings of this user."""

    def __init__(self, home: Path) -> None:
        beside = Path(sys.executable).with_name("flwr")
        command = str(beside) if beside.is_file() else shutil.which("flwr")
        if command is None:
            raise ConfigError("Flower's command `flwr` is not installed here: pip install 'medfedpure[federated]'")
        self.command = command
        path = os.pathsep.join((str(Path(command).parent), os.environ.get("PATH", "")))
        self.environment = {**os.environ, **SWITCHES, "FLWR_HOME": str(home), "PATH": path}

    def submit(self, app: Path) -> str:
        answer, text = self._ask("run", str(app), CONNECTION)
        if not answer.get("success") or "run-id" not in answer:
            raise FederationError(f"the SuperLink took no run: {answer.get('error-message') or text.strip()}")
        return str(answer["run-id"])

    def status(self, run_id: str) -> str | None:
        """The run's status, or None where the SuperLink does not answer; a lost run counts as failed."""
        answer, _ = self._ask("ls", CONNECTION)
        if not answer.get("success"):
            return None
        runs = {str(run["run-id"]): str(run["status"]) for run in answer.get("runs", [])}
        return runs.get(run_id, "finished:failed (lost by the SuperLink)")

    def stop(self, run_id: str) -> None:
        self._ask("stop", run_id, CONNECTION)

    def _ask(self, *arguments: str) -> tuple[dict[str, Any], str]:
        try:
            done = subprocess.run(
                [self.command, *arguments, "--format", "json"],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=_SILENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {}, "no answer in time"
        try:
            answer = json.loads(done.stdout)
        except (ValueError, RecursionError):
            answer = {}
        return answer if isinstance(answer, dict) else {}, done.stdout + done.stderr


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
