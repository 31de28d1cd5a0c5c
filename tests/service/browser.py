"""A Chromium without a window, told what to do through a pipe in the protocol of its developer tools."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
_BECOME = """
import fcntl, os, sys
above = [fcntl.fcntl(int(handle), fcntl.F_DUPFD, 10) for handle in sys.argv[1:3]]
os.dup2(above[0], 3)
os.dup2(above[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser reads from handle 3 and writes to handle 4."""
PATIENCE = 60.0
"""Seconds that the browser may take for one thing."""


def chromium() -> str | None:
    """The browser's path; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page.

    Args:
        asking: handle that the browser reads from.
        telling: handle that it writes to.

    Attributes:
        said: warnings and errors in its console.
        requested: addresses that it asked for.
    """

    def __init__(self, asking: int, telling: int) -> None:
        self.asking, self.telling = asking, telling
        self.said: list[str] = []
        self.requested: list[str] = []
        self._number, self._left = 0, b""
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self.asking, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._told(answer.get("method"), answer.get("params", {}))

    def ask(self, script: str) -> Any:
        """What an expression is in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, script: str) -> Any:
        """What an expression is as soon as it is true."""
        end = time.monotonic() + PATIENCE
        while not (found := self.ask(script)):
            assert time.monotonic() < end, f"{script} did not become true: {self.ask('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def open(self, address: str, width: int, height: int, scheme: str = "light") -> None:
        """Show an address in a window of so many pixels; "light" or "dark"."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.call("Page.navigate", url=address)
        self.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def drop(self, file: Path, x: int, y: int) -> None:
        """Drop a file of this machine on a place of the page, as a hand does."""
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def picture(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._left:
            assert select.select([self.telling], [], [], max(0, end - time.monotonic()))[0], "the browser is silent"
            more = os.read(self.telling, 2**16)
            assert more, "the browser has ended"
            self._left += more
        line, _, self._left = self._left.partition(b"\0")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _told(self, event: str | None, about: dict[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            self.requested.append(about["request"]["url"])
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("warning", "error"):
            self.said.append(about["entry"]["text"])
        elif event == "Runtime.exceptionThrown":
            self.said.append(about["exceptionDetails"]["text"])


@contextmanager
def browsing() -> Iterator[Page]:
    """A page of a new browser, which knows nothing and keeps nothing."""
    path = chromium()
    assert path is not None
    (theirs, asking), (telling, ours) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        words = [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        words += ["--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        process = subprocess.Popen(
            [sys.executable, "-c", _BECOME, str(theirs), str(ours), *words],
            pass_fds=(theirs, ours),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(ours)
        try:
            yield Page(asking, telling)
        finally:
            os.close(asking)
            os.close(telling)
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
