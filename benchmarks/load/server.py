"""The service as a process of its own: `python -m benchmarks.load.server FOLDER`, which `benchmarks.serve_load` starts.

It is `medfedpure serve` but for the seed of its noise, which no option of that command can set.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from medfedpure.defence.chain import DefendedClassifier
from medfedpure.service.app import create_app
from medfedpure.service.audit import AuditLog
from medfedpure.service.limits import Limits
from medfedpure.service.run import Server, listen

SEED = 7
TOKEN = "a-token-of-24-characters"  # noqa: S105 - of a service that lasts minutes, on loopback
MADE_BY = "under load"
LIMITS = Limits(max_bytes=300_000, max_pixels=512 * 512, upload_seconds=5.0)


def main() -> None:
    """Serve what lies in a folder, until SIGTERM."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    chain = DefendedClassifier.load(folder / "guarded")
    with listen("127.0.0.1", 0, TOKEN) as socket, AuditLog(folder / "log") as log:
        app = create_app(chain, token=TOKEN, limits=LIMITS, made_by=MADE_BY, audit=log, drift_window=50, seed=SEED)
        port = socket.getsockname()[1]
        Server(app, lambda: print(port, flush=True)).run(sockets=[socket])


if __name__ == "__main__":
    main()
