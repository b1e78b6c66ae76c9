"""A headless Chromium, driven over its debugging pipe: open a page, run its code, press keys, take pictures."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

_LAUNCH = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def find_chromium() -> str | None:
    """Return the path of a Chromium, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One page of a browser with a profile of its own.

    Attributes:
        errors: Exceptions and console errors of the page so far.
    """

    def __init__(self, path: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        self.errors: list[str] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        self._process = subprocess.Popen(
            [
                sys.executable, "-c", _LAUNCH, str(to_browser), str(from_browser), path, "--headless=new",
                "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
                "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}",
                "about:blank",
            ],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._held, self._num_sent = b"", 0
        self._session: str | None = None
        target = next(t for t in self._send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._send(f"{domain}.enable")
        self._send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._scheme = "dark" if dark else "light"
        self.prefer(reduced_motion=False)

    def prefer(self, *, reduced_motion: bool) -> None:
        """Tell pages what the user wants of motion."""
        wanted = {
            "prefers-color-scheme": self._scheme,
            "prefers-reduced-motion": "reduce" if reduced_motion else "no-preference",
        }
        features = [{"name": name, "value": value} for name, value in wanted.items()]
        self._send("Emulation.setEmulatedMedia", features=features)

    def open(self, url: str) -> None:
        """Open a page."""
        self._send("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page; promises are waited for."""
        answer = self._send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, *, timeout_s: float = 60) -> None:
        """Wait until an expression is true in the page, looking at each frame."""
        found = self.evaluate(
            f"""new Promise((resolve) => {{
              const start = performance.now();
              const look = () => {{
                let found = false;
                try {{ found = Boolean({condition}); }} catch {{ found = false; }}
                if (found || performance.now() - start > {1000 * timeout_s}) resolve(found);
                else setTimeout(look, 20);
              }};
              look();
            }})"""
        )
        assert found, f"never came true in the page: {condition}"

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        codes = {"Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "Tab": 9, "Home": 36, "End": 35}
        text = {"Enter": "\r"}.get(key, "")
        common = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key], "text": text}
        self._send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **common)
        self._send("Input.dispatchKeyEvent", type="keyUp", **common)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the window."""
        path.write_bytes(base64.b64decode(self._send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        with suppress(OSError):
            self._send("Browser.close")
        os.close(self._out)
        os.close(self._in)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def _send(self, method: str, **params: Any) -> dict[str, Any]:
        self._num_sent += 1
        message: dict[str, Any] = {"id": self._num_sent, "method": method, "params": params}
        if self._session is not None and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._out, data) :]
        while True:
            answer = self._read()
            if answer.get("id") == self._num_sent:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(answer["params"]["exceptionDetails"])[:500])
            if answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.errors.append(str(answer["params"]["entry"]["text"]))

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise OSError("the browser has closed")
            self._held += part
        line, _, self._held = self._held.partition(b"\0")
        return json.loads(line)
