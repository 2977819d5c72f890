"""A page in headless Chromium, steered over its own protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser")
"""None on a machine without one: tests of pages are skipped there."""

PATIENCE = 120.0

AXE = os.environ.get("AXE", "")
"""File of axe-core, as `.ci/axe` fetches it."""

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
needs_axe = pytest.mark.skipif(not AXE, reason='needs axe-core: export AXE="$(.ci/axe)"')


class Page:
    """What a tab shows.

    Attributes
    ----------
    requests : list of str
        Addresses it has asked for.
    complaints : list of str
        Errors and warnings on its console.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **given: object) -> dict[str, Any]:
        """Call a method of the protocol."""
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": given}))
        while True:
            message = json.loads(self._connection.recv(PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        name, told = message.get("method"), message.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif name == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(told["args"]))
        elif name == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["entry"]))

    def open(self, address: str) -> None:
        """Load a page."""
        self.send("Page.navigate", url=address)
        self.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true in the page."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (expression, self.run("document.body.innerText"))
            time.sleep(0.02)

    def press(self, key: str, *, code: int, control: bool = False, text: str = "") -> None:
        """Press a key and let it go."""
        given = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 * control}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **given)
        self.send("Input.dispatchKeyEvent", type="keyUp", **given)

    def look(self, *, width: int = 900, dark: bool = False) -> None:
        """Show it this wide, in CSS pixels, and as a dark theme shows it."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def faults(self) -> list[dict[str, Any]]:
        """Serious faults that axe-core finds in what it shows, each with its places."""
        self.run(Path(AXE).read_text("utf-8") + "; true")
        found = self.run("axe.run().then((told) => told.violations)")
        return [one for one in found if one["impact"] in ("serious", "critical")]

    def picture(self, path: Path) -> None:
        """Write what it shows as a PNG."""
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with one empty tab; its profile is in `folder`."""
    assert PROGRAM is not None
    process = subprocess.Popen(
        [
            PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--no-proxy-server", "--remote-debugging-port=0",
            f"--user-data-dir={folder}", "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        port = _port(folder, process)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + PATIENCE
        while True:
            listed = json.load(opener.open(f"http://127.0.0.1:{port}/json/list", timeout=PATIENCE))
            if tabs := [one for one in listed if one["type"] == "page"]:
                break
            assert time.monotonic() < deadline, listed
            time.sleep(0.05)
        address = tabs[0]["webSocketDebuggerUrl"]
        with connect(address, max_size=None, proxy=None, open_timeout=PATIENCE) as connection:
            yield Page(connection)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(folder: Path, process: subprocess.Popen[bytes]) -> str:
    told = folder / "DevToolsActivePort"
    deadline = time.monotonic() + PATIENCE
    while not (told.exists() and told.read_text().count("\n")):
        assert process.poll() is None, "the browser has ended"
        assert time.monotonic() < deadline, "the browser does not answer"
        time.sleep(0.05)
    return told.read_text().split("\n")[0]
