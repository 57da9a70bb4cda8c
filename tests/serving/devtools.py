"""A headless Chromium, driven through its DevTools protocol over a WebSocket of our own."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PATIENCE = 20.0


def find_chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Tab]:
    """One tab of a new browser whose profile lies in `folder`."""
    options = ("--headless", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run")
    quiet = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
    program = find_chromium()
    assert program is not None
    browser = subprocess.Popen(
        [program, *options, *quiet, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        active = folder / "DevToolsActivePort"
        wait(lambda: active.is_file() and active.read_text().count("\n") == 1)
        port = int(active.read_text().split("\n")[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=PATIENCE) as answer:
            (path,) = (tab["webSocketDebuggerUrl"] for tab in json.load(answer) if tab["type"] == "page")
        with contextlib.closing(WebSocket(port, path.partition(f":{port}")[2])) as connection:
            yield Tab(connection)
            connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
            with contextlib.suppress(subprocess.TimeoutExpired):
                browser.wait(5)
    finally:
        browser.kill()
        browser.wait(10)


def wait(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """What `condition` gives as soon as that is true."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.03)
    return value


class Tab:
    """Calls of the protocol; events that come meanwhile are kept in `events`."""

    def __init__(self, connection: WebSocket) -> None:
        self._connection, self._number = connection, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (message := json.loads(self._connection.receive())).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, (method, message["error"])
        return message["result"]

    def event(self, method: str) -> dict[str, Any]:
        """The parameters of an event, waited for."""

        def come() -> list[dict[str, Any]]:
            self.evaluate("0")
            return [event for event in self.events if event.get("method") == method]

        event = wait(come)[0]
        self.events.remove(event)
        return event["params"]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=url)
        wait(lambda: self.evaluate(f"document.readyState === 'complete' && location.href.startsWith('{url}')"))

    def middle(self, selector: str) -> dict[str, float]:
        """Where an element's middle is on the screen, scrolled into view."""
        return self.evaluate(
            f"(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{block: 'center'}});"
            "const r = e.getBoundingClientRect(); return {x: r.x + r.width / 2, y: r.y + r.height / 2} })()"
        )

    def click(self, selector: str) -> None:
        """Press and release the mouse's left button there."""
        place = self.middle(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **place)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def press(self, key: str, code: int) -> None:
        """One key of the keyboard."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def drop(self, selector: str, *files: Path) -> None:
        """Drag files from outside onto an element and let them go."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, data=data, **self.middle(selector))

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))


class WebSocket:
    """The client's side of RFC 6455: text messages to and fro."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        key = base64.b64encode(os.urandom(16)).decode()
        head = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(head.encode())
        self._file = self._socket.makefile("rb")
        status = self._file.readline()
        assert b" 101 " in status, status
        while self._file.readline() != b"\r\n":
            pass

    def send(self, text: str) -> None:
        data, mask = text.encode(), os.urandom(4)
        length = len(data)
        if length < 126:
            head = struct.pack(">BB", 0x81, 0x80 | length)
        elif length < 1 << 16:
            head = struct.pack(">BBH", 0x81, 0x80 | 126, length)
        else:
            head = struct.pack(">BBQ", 0x81, 0x80 | 127, length)
        masked = bytes(byte ^ mask[place % 4] for place, byte in enumerate(data))
        self._socket.sendall(head + mask + masked)

    def receive(self) -> bytes:
        message, last = b"", False
        while not last:
            first, length = struct.unpack(">BB", self._file.read(2))
            if length == 126:
                (length,) = struct.unpack(">H", self._file.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._file.read(8))
            content = self._file.read(length)
            if first & 0x0F in (0, 1):  # neither ping nor close
                message, last = message + content, bool(first & 0x80)
        return message

    def close(self) -> None:
        self._file.close()
        self._socket.close()
