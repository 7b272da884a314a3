"""A real headless Chromium for tests, driven over its DevTools protocol through a pipe: no driver, no sockets."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

_FLAGS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --disable-dev-shm-usage --disable-extensions --hide-scrollbars --mute-audio --remote-debugging-pipe"
)


class Browser:
    """One page in a browser of its own. ``problems`` collects what the console and the security policy complain of."""

    def __init__(self, profile: Path, flags: Sequence[str] = ()) -> None:
        if not shutil.which("chromium"):
            pytest.skip("chromium is not installed")
        commands, self._commands = os.pipe()
        self._events, events = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, events)]  # clear of 3 and 4
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec chromium "$@" 3<&{high[0]} 4>&{high[1]}',
                "chromium",
                *_FLAGS.split(),
                *flags,
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=high,
        )
        for fd in (commands, events, *high):
            os.close(fd)
        self._unread, self._number, self._session = b"", 0, ""
        self.problems: list[str] = []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; events that come before it are looked at."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            said = self._read(until)
            if said.get("id") == self._number:
                assert "error" not in said, f"{method}: {said['error']}"
                return said["result"]
            self._look_at(said)

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._events], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            block = os.read(self._events, 1 << 20)
            assert block, "the browser ended"
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\0")
        return json.loads(line)

    def _look_at(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(str(params["exceptionDetails"].get("exception", {}).get("description")))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        if event.get("method") == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(str([value.get("value") for value in params["args"]]))

    def open(self, url: str) -> None:
        """Goes to an address, and waits until the page is ready."""
        self.call("Page.navigate", url=url)
        self.ready()

    def ready(self) -> None:
        """Waits until the page says that it is."""
        self.until("document.documentElement?.dataset.ready === 'yes'")

    def ask(self, script: str) -> Any:
        """What a JavaScript expression gives, promises awaited."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said["exceptionDetails"]
        return said["result"].get("value")

    def until(self, script: str, seconds: float = 30) -> Any:
        """Waits until a JavaScript expression gives something that counts as true."""
        end = time.monotonic() + seconds
        while not (found := self.ask(script)):
            assert time.monotonic() < end, f"never came true: {script}\n{self.ask('document.body.innerText')}"
            time.sleep(0.05)
        return found

    def middle(self, selector: str) -> tuple[float, float]:
        """Where an element's middle is, scrolled into view."""
        box = self.ask(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center'}});"
            "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
        )
        return box[0] + box[2] / 2, box[1] + box[3] / 2

    def click(self, selector: str) -> None:
        """A click of the mouse on an element's middle."""
        x, y = self.middle(selector)
        self.drag([(x, y)])

    def drag(self, path: Sequence[tuple[float, float]]) -> None:
        """The mouse's button pressed at the first place, moved along the others, released at the last."""
        for k, (x, y) in enumerate(path):
            kind = "mouseMoved" if k else "mousePressed"
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = path[-1]
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def drop(self, selector: str, file: Path) -> None:
        """A file dragged in from the desktop and dropped on an element."""
        x, y = self.middle(selector)
        data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def choose(self, selector: str, file: Path) -> None:
        """A file chosen in a file input."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)

    def screen(self, width: int, height: int, scheme: str = "light", scale: float = 1) -> None:
        """A screen of this size, and the colour scheme that its user likes."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 500,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, file: Path) -> None:
        """Writes what the whole page looks like as a PNG."""
        said = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(said["data"]))

    def close(self) -> None:
        """Ends the browser."""
        os.close(self._commands)
        os.close(self._events)
        self.process.terminate()
        self.process.wait(20)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
