"""What was asked and what was heard, and whether they fit together and with what the service counted and logged."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfedpure.service.audit import check

ONE, SEVERAL = "/v1/verdict", "/v1/verdicts"
GIVEN_UP = 499
"""What the service counts for a request whose connection was cut off; nobody hears it."""
_REQUESTS = re.compile(r'^medfedpure_requests_total\{path="(/v1/\w+)",status="(\d+)"\} (\d+)\.0$', re.M)


@dataclass
class Heard:
    """All answers.

    Attributes:
        statuses: of what was asked under /v1, by path and status.
        cases: how often each thing that has to be refused was, by its name.
        rows: verdicts that were answered, by request.
        seconds: that each request with verdicts took.
        refusing: that each refusal took, of requests that came at once.
        cut: connections that were cut off, in a body and behind it.
        unanswered: requests that were sent when the service had been told to end, and met a closed port.
        faults: what is wrong, in sentences.
    """

    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    cases: Counter[str] = field(default_factory=Counter)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    refusing: list[float] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    unanswered: int = 0
    faults: list[str] = field(default_factory=list)

    def demand(self, true: object, otherwise: str) -> None:
        """A fault unless something is true."""
        if not true:
            self.faults.append(otherwise)

    def refused(self, case: str, wanted: int, status: int, seconds: float | None) -> None:
        """Take in what something that has to be refused was answered; no seconds of what waits on purpose."""
        self.cases[case] += 1
        self.demand(status == wanted, f"{case} was answered {status}, not {wanted}")
        if seconds is not None:
            self.refusing.append(seconds)

    def verdicts(self, request: str, rows: list[dict[str, Any]], seconds: float) -> None:
        """Take in what a request with verdicts was answered."""
        if request in self.rows:
            self.faults.append(f"request {request} was answered twice")
        self.rows[request] = rows
        self.seconds.append(seconds)

    def counted(self, text: str) -> None:
        """Compare with what the service's metrics say of requests, which have to be the same."""
        theirs = Counter({(path, int(status)): int(count) for path, status, count in _REQUESTS.findall(text)})
        given_up = theirs.pop((ONE, GIVEN_UP), 0)
        # A request may be answered just before its connection is cut: then it counts as answered, and nobody heard.
        unheard = {code: theirs[(ONE, code)] - self.statuses[(ONE, code)] for code in (200, 429)}
        told = given_up + sum(unheard.values())
        self.demand(told == self.cut.total(), f"{self.cut.total()} were cut off, and {told} were so for the service")
        self.demand(0 <= unheard[200] <= self.cut["behind a body"], f"{unheard[200]} verdicts were not heard")
        theirs.subtract({(ONE, code): count for code, count in unheard.items()})
        more, less = dict(theirs - self.statuses), dict(self.statuses - theirs)
        self.demand(not more and not less, f"the service counts {more} more than were heard, and {less} less")

    def logged(self, log: Path) -> dict[str, int]:
        """Compare with the log, in which every verdict is once; how many rows it has, and of them verdicts."""
        chain = check(log)
        if chain.fault is not None:
            self.faults.append(f"the log breaks: {chain.fault}")
        written: dict[str, list[dict[str, Any]]] = {}
        rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        for row in rows:
            if row["event"] in ("verdict", "refused"):
                written.setdefault(row["request"], []).append(row)
        for request, answered in self.rows.items():
            logged = written.pop(request, [])
            if [row.get("score") for row in logged] != [row["score"] for row in answered]:
                self.faults.append(f"request {request} has other rows in the log than were answered")
        unheard = sum(row["event"] == "verdict" for group in written.values() for row in group)
        if unheard > self.cut["behind a body"]:
            self.faults.append(f"{unheard} verdicts were logged and never heard")
        if rows[-1]["event"] != "ended":
            self.faults.append("the log has no end: the service did not end well")
        return {"rows": chain.rows, "verdicts": sum(row["event"] == "verdict" for row in rows)}


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50, p95, p99 and the longest, in milliseconds; NaN of none."""
    ordered = sorted(seconds) or [float("nan")]
    places = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "most": 1.0}
    return {name: round(1000 * ordered[min(int(q * len(ordered)), len(ordered) - 1)], 1) for name, q in places.items()}
