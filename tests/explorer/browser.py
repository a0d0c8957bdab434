"""Headless Chromium, driven through its own protocol (Chrome DevTools Protocol) with the websockets that lapa has."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The program, as $CHROMIUM or the path name it."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page. `errors` are what its console and its scripts complained of, `requests` the addresses it asked for."""

    def __init__(self, folder: Path, width: int = 1400, height: int = 1000) -> None:
        from websockets.sync.client import connect

        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage"]
        options += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
        options += ["--remote-debugging-port=0", f"--user-data-dir={folder}", f"--window-size={width},{height}"]
        self._open = ExitStack()
        log = (folder.parent / f"{folder.name}.log").open("wb")
        self._process = subprocess.Popen([str(chromium()), *options, "about:blank"], stdout=log, stderr=log)
        log.close()
        port = self._port(folder / "DevToolsActivePort")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{port}/json/list", timeout=10
        ) as answer:
            page = next(one for one in json.load(answer) if one["type"] == "page")
        self._socket = self._open.enter_context(connect(page["webSocketDebuggerUrl"], max_size=None, proxy=None))
        self._number = 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _port(self, file: Path) -> int:
        end = time.monotonic() + 30
        while time.monotonic() < end and self._process.poll() is None:
            if file.exists() and (lines := file.read_text().split()):
                return int(lines[0])
            time.sleep(0.05)
        self.close()
        raise RuntimeError("Chromium did not start")

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        """One command and its answer; events that come in between are kept."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": values}))
        while True:
            message = json.loads(self._socket.recv(timeout=20))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
            self._event(message.get("method", ""), message.get("params", {}))

    def _event(self, name: str, about: dict[str, Any]) -> None:
        if name == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
        elif name == "Network.webSocketCreated":
            self.requests.append(about["url"])
        elif name == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(about["exceptionDetails"]))
        elif name == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            self.errors.append(json.dumps(about["args"]))
        elif name == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(json.dumps(about["entry"]))

    def open(self, url: str) -> None:
        """Go to an address."""
        self.send("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What a JavaScript expression is."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 15) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.value(f"Boolean({script})"):
                return
            time.sleep(0.03)
        raise AssertionError(f"not within {seconds} s: {script}")

    def key(self, key: str) -> None:
        """Press a key, named as browsers do; with "Shift+" in front."""
        shift, key = 8 if key.startswith("Shift+") else 0, key.removeprefix("Shift+")
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, modifiers=shift, **(text if kind == "keyDown" else {})
            )

    def click(self, selector: str) -> None:
        """Click the middle of an element."""
        place = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Write into what has the focus."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, width: int, height: int, kind: str = "png") -> None:
        """A picture of the page at this size."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        time.sleep(0.5)
        quality = {"quality": 85} if kind == "jpeg" else {}
        shot = self.send("Page.captureScreenshot", format=kind, captureBeyondViewport=False, **quality)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """End it."""
        self._open.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
