"""The service under load: `python -m benchmarks.serve_load --clients 32 --seconds 120 --result FILE.json`.

A process of its own serves on loopback, and clients ask it at the same moment, each for its own scans: pictures,
DICOM, several at a time. Every answer is held against what the same defence says of that scan alone under the same
seed; what is too large, malformed, a decompression bomb, without a token, slow or cut off has to get its status. At the
end requests, metrics and log have to agree to the last one. Then the service is told to end while all ask on: what was
in flight has to be answered, what comes later refused. Ends with 1 where anything is wrong, and says what.

Times are of the machine on which clients and service share the processors.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.load.asking import BEARER, REFUSED, Client, End
from benchmarks.load.heard import Heard, quantiles
from benchmarks.load.scans import Scan, make_defence, make_scans
from benchmarks.load.server import LIMITS, SEED
from medfedpure.core.storage import write_json
from medfedpure.evaluation.versions import versions

ROOT = Path(__file__).parents[1]
EACH = 8
"""Scans of a client."""


@contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process of the service, and its port; it is gone behind the block, however that ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load.server", str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        try:
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def memory(process: subprocess.Popen[str]) -> float:
    """What a process holds in memory, in MiB; Linux only."""
    fields = Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()
    return round(int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


async def loaded(scans: list[list[Scan]], port: int, seconds: float, heard: Heard) -> None:
    """All clients ask at once, for so long; then the service's own counts are compared."""
    end = time.monotonic() + seconds
    clients = [Client(number, port, own, heard) for number, own in enumerate(scans)]
    await asyncio.gather(*(client.ask_until(lambda: time.monotonic() > end) for client in clients))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=BEARER, trust_env=False) as client:
        await asyncio.sleep(0.5)  # what was cut off last is given up now
        heard.counted((await client.get("/metrics")).text)


async def ended(scans: list[list[Scan]], port: int, process: subprocess.Popen[str], heard: Heard) -> dict[str, Any]:
    """All ask on, and the service is told to end among them."""
    before, end = len(heard.rows), End()
    clients = [Client(len(scans) + number, port, own, heard, end, odd=0) for number, own in enumerate(scans)]
    asking = asyncio.gather(*(client.ask_until(lambda: False) for client in clients))
    while len(heard.rows) < before + len(scans) and not asking.done():
        await asyncio.sleep(0.01)
    told, end.told = len(heard.rows), time.monotonic()
    process.send_signal(signal.SIGTERM)
    await asking
    status = await asyncio.to_thread(process.wait, 60)
    heard.demand(status == 0, f"the service ended with {status}")
    refused = sum(count for (_, code), count in heard.statuses.items() if code == 503)
    return {
        "answered before": told - before,
        "answered after": len(heard.rows) - told,
        "refused with 503": refused,
        "met a closed port": heard.unanswered,
        "seconds to the end": round(time.monotonic() - end.told, 2),
    }


def measure(clients: int, seconds: float) -> dict[str, Any]:
    """The whole of it, as a document.

    Args:
        clients: that ask at the same moment.
        seconds: for which they do, before the service is told to end.
    """
    heard = Heard()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = make_scans(make_defence(folder / "guarded"), clients, EACH, SEED, folder)
        with serving(folder) as (process, port):
            held, began = [memory(process)], time.monotonic()
            for _ in range(2):
                asyncio.run(loaded(scans, port, seconds / 2, heard))
                held.append(memory(process))
            rate = len(heard.rows) / (time.monotonic() - began)
            end = asyncio.run(ended(scans, port, process, heard))
        log = heard.logged(folder / "log")
    times = quantiles(heard.seconds)
    bound = 1000 * LIMITS.upload_seconds
    heard.demand(times["p99"] <= bound, f"p99 is {times['p99']} ms, above the {bound:g} ms in which a body has to come")
    return {
        "clients": clients,
        "seconds": seconds,
        "limits": asdict(LIMITS),
        "verdicts": {
            "requests": len(heard.rows),
            "a second": round(rate, 1),
            "images": log["verdicts"],
            "milliseconds": times,
        },
        "refusals": {"milliseconds": quantiles(heard.refusing), "cases": dict(sorted(heard.cases.items()))},
        "statuses": {f"{path} {status}": count for (path, status), count in sorted(heard.statuses.items())},
        "cut off": dict(heard.cut),
        "never refused": sorted(REFUSED.keys() - heard.cases.keys()),
        "end": end,
        "log": log,
        "memory of the service in MiB, before, at half time, behind": held,
        "faults": heard.faults,
        "processors": os.cpu_count(),
        "load of the machine": round(os.getloadavg()[0], 2),
        "platform": platform.machine(),
        "versions": versions(),
    }


def sentence(found: dict[str, Any]) -> str:
    """What a document says, as the page of the service has it."""
    verdicts, times = found["verdicts"], found["verdicts"]["milliseconds"]
    refused, cut = sum(found["refusals"]["cases"].values()), sum(found["cut off"].values())
    return (
        f"{found['clients']} clients for {found['seconds']:g} s: {verdicts['requests']} requests with verdicts on "
        f"{verdicts['images']} images, {refused} refusals, {cut} connections cut off, {len(found['faults'])} answers "
        f"lost, mixed or wrong; half of the verdicts within {times['p50']:.0f} ms, 95 % within {times['p95']:.0f}, "
        f"99 % within {times['p99']:.0f}, where {found['processors']} processors had a load of "
        f"{found['load of the machine']:.0f}"
    )


def main() -> None:
    """Measure, keep it, and say what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--result", type=Path, help="JSON file that is written")
    given = parser.parse_args()
    found = measure(given.clients, given.seconds)
    if given.result is not None:
        given.result.parent.mkdir(parents=True, exist_ok=True)
        write_json(given.result, found)
    print(sentence(found))
    print(f"statuses: {found['statuses']}")
    print(f"told to end: {found['end']}")
    for fault in found["faults"]:
        print(f"wrong: {fault}")
    sys.exit(bool(found["faults"]))


if __name__ == "__main__":
    main()
