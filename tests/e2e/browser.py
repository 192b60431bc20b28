"""A real headless Chromium, spoken to over a pipe: navigate, look, measure, take a picture."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def found() -> str:
    """The program, or "" where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), "")


class Browser:
    """One browser, with one page at a time."""

    def __init__(self, home: Path) -> None:
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        command = [
            found(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            f"--user-data-dir={home}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        # The browser reads its orders from 3 and answers on 4. The numbers in between are free ones
        # above both, asked of the system: a fixed one may be another thread's by then.
        orders, answers = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 16) for fd in (read, write))
        moved = f'exec "$@" 3<&{orders} 4>&{answers} {orders}<&- {answers}>&-'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "browser", *command],
            pass_fds=(orders, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (read, write, orders, answers):
            os.close(fd)
        self._number = 0
        self._rest = b""
        self._context = self._session = ""
        self.told: list[str] = []
        """What the page's console said, and what its policy has forbidden."""

    def begin(self) -> None:
        """An empty page that knows nothing of those before it."""
        self.told.clear()
        self._context = self._ask("Target.createBrowserContext")["browserContextId"]
        place = {"url": "about:blank", "browserContextId": self._context}
        target = self._ask("Target.createTarget", **place)["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def end(self) -> None:
        """Throw the page away, with all that it has stored."""
        self._session = ""
        self._ask("Target.disposeBrowserContext", browserContextId=self._context)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result

    def _hear(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._in, 65536)
            assert more, "the browser has ended"
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if message.get("method") == "Log.entryAdded":
            self.told.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Runtime.exceptionThrown":
            self.told.append(json.dumps(message["params"]["exceptionDetails"]))
        return message

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        self._ask("Page.navigate", url=url)
        while self._hear().get("method") != "Page.loadEventFired":
            pass

    def look_like(self, width: int, height: int, dark: bool = False) -> None:
        """The size of the window, and what the system prefers."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, code: str) -> Any:
        """The value of an expression in the page."""
        return self._ask("Runtime.evaluate", expression=code, returnByValue=True)["result"].get(
            "value"
        )

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        shot = self._ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
