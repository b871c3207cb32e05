"""A headless Chromium, driven by its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

BINARY = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
START_S, ANSWER_S = 60, 60


class Browser:
    """A browser with a profile of its own in `folder`; a context manager."""

    def __init__(self, folder: Path):
        options = [
            "--headless=new",
            "--no-first-run",
            "--disable-gpu",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
        ]
        options += ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium refuses to run as root otherwise
        self.process = subprocess.Popen([BINARY, *options, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file, deadline = folder / "DevToolsActivePort", time.monotonic() + START_S
        while not port_file.exists() or not port_file.read_text().strip():
            assert self.process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        self.base = f"http://127.0.0.1:{port_file.read_text().split()[0]}"

    def tab(self, url="about:blank", **options):
        request = urllib.request.Request(f"{self.base}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            tab = Tab(json.load(answer), self.base, **options)
        tab.go(url)
        return tab

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Tab:
    """One tab.

    Attributes:
        complaints: warnings and errors that the page wrote to its console, and uncaught exceptions.
    """

    def __init__(self, target, base, width=1280, height=800, scale=1, mobile=False, theme="light"):
        self.id, self.base, self.complaints = target["id"], base, []
        self._open = contextlib.ExitStack()
        opened = connect(target["webSocketDebuggerUrl"], max_size=None, compression=None, ping_interval=None)
        self.socket = self._open.enter_context(opened)
        self.numbers = itertools.count(1)
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        self.theme(theme)

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(ANSWER_S))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _note(self, event):
        what = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(what["exceptionDetails"].get("exception", {}).get("description") or str(what))
        elif event["method"] == "Log.entryAdded" and what["entry"]["level"] in ("warning", "error"):
            self.complaints.append(what["entry"]["text"])

    def theme(self, name):
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def go(self, url):
        self.call("Page.navigate", url=url)

    def run(self, script):
        """The value of an expression in the page; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script, wait_s=30):
        """Wait until an expression is true."""
        deadline = time.monotonic() + wait_s
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}; {self.complaints}"
            time.sleep(0.05)
        return value

    def press(self, key):
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, text=key if len(key) == 1 else "")
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def show(self):
        """Bring it to the front, which hides the other tabs of its window."""
        self.call("Page.bringToFront")

    def picture(self, path, kind="png"):
        data = self.call("Page.captureScreenshot", format=kind, **({"quality": 85} if kind == "jpeg" else {}))["data"]
        Path(path).write_bytes(base64.b64decode(data))

    def close(self):
        self._open.close()
        urllib.request.urlopen(f"{self.base}/json/close/{self.id}", timeout=ANSWER_S).close()
