"""A headless Chromium, driven through its pipe: pages, widths, light and dark, screenshots.

Tests and scripts use it; by itself it takes a picture of a page:
    python -m tests.browser report.html picture.png --width 390 --dark
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--no-first-run", "--hide-scrollbars", "--mute-audio"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--disable-background-networking"),
    *("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
)
SECONDS = 120


def program() -> str | None:
    """Chromium on this machine, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One tab of Chromium.

    Attributes:
        requests: addresses that the page asked for.
        said: what the page wrote to the console, errors of scripts and of its policy too.
    """

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back = to, back
        self._number = 0
        self._rest = b""
        self._session = ""
        self.requests: list[str] = []
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for room in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{room}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer.get("result", {})
        return result

    def open(self, page: Path, width: int, height: int = 900, dark: bool = False) -> None:
        """Open a file in a window of a width, light or dark, and wait until it is there."""
        self.requests.clear()
        self.said.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.until("document.readyState === 'complete'")

    def run(self, code: str) -> Any:
        """Value of JavaScript; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def until(self, code: str) -> None:
        """Wait until JavaScript is true."""
        end = time.monotonic() + SECONDS
        while not self.run(code):
            if time.monotonic() > end:
                raise TimeoutError(f"{code} was not true after {SECONDS} s: {self.said}")
            time.sleep(0.2)

    def picture(self, path: Path, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        found = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._back, 2**20)
            if not more:
                raise RuntimeError("Chromium ended")
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        name, content = event.get("method"), event.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        elif name == "Log.entryAdded":
            self.said.append(content["entry"]["text"])
        elif name == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(one.get("value")) for one in content["args"]))
        elif name == "Runtime.exceptionThrown":
            self.said.append(str(content["exceptionDetails"]))


@contextmanager
def browser() -> Iterator[Browser]:
    """Start Chromium, and end it.

    Raises:
        FileNotFoundError: there is none.
    """
    path = program()
    if path is None:
        raise FileNotFoundError(f"none of {', '.join(NAMES)} is installed")
    theirs, to = os.pipe()
    back, answers = os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        # Chromium reads from descriptor 3 and answers on 4.
        shell = f'exec 3<&{theirs} 4>&{answers}; exec "$0" "$@"'
        command = ["bash", "-c", shell, path, *FLAGS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(
            command,
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs)
        os.close(answers)
        try:
            yield Browser(to, back)
        finally:
            os.close(to)
            os.close(back)
            process.terminate()
            process.wait()


def main() -> None:
    """A picture of a page, and what it said and asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--at", help="id of the element to scroll to")
    parser.add_argument("--run", help="JavaScript to run before")
    parser.add_argument("--whole", action="store_true", help="the whole page")
    options = parser.parse_args()
    with browser() as tab:
        tab.open(options.page, options.width, options.height, options.dark)
        if options.at:
            tab.run(f"document.getElementById({options.at!r}).scrollIntoView()")
        if options.run:
            tab.run(options.run)
        time.sleep(2)
        tab.picture(options.picture, options.whole)
        print(*tab.said, sep="\n")
        print(*(one[:100] for one in tab.requests), sep="\n")


if __name__ == "__main__":
    main()
