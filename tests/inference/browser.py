"""A page in headless Chromium, spoken to from Python."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Chromium reads commands from descriptor 3 and answers on 4.
ON_PIPES = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A page in headless Chromium, spoken to through a pair of pipes."""

    def __init__(self, folder: Path, address: str, width: int, height: int) -> None:
        to_browser, from_browser = os.pipe(), os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", ON_PIPES, str(to_browser[0]), str(from_browser[1]), CHROMIUM, "--headless"]
            + ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
            + [f"--user-data-dir={folder}", f"--window-size={width},{height}", "--remote-debugging-pipe"],
            pass_fds=(to_browser[0], from_browser[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        self._write, self._read = to_browser[1], os.fdopen(from_browser[0], "rb")
        self._number, self._session, self.complaints, self.requests = 0, None, [], []
        target = self.call("Target.createTarget", url="about:blank")
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=address)
        deadline = time.monotonic() + 20
        while self.js("document.readyState") != "complete" and time.monotonic() < deadline:
            time.sleep(0.05)

    def call(self, method: str, **parameters) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def js(self, expression: str):
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def key(self, name: str, modifiers: int = 0) -> None:
        text = {"text": " "} if name == " " else {}
        code = "Space" if name == " " else name
        virtual = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "End": 35, " ": 32}[name]
        common = {"key": name, "code": code, "modifiers": modifiers, "windowsVirtualKeyCode": virtual}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def close(self) -> None:
        self._session = None
        os.write(self._write, b'{"id":0,"method":"Browser.close"}\0')
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._write)
        self._read.close()

    def _next(self) -> bytes:
        message = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        return bytes(message)

    def _note(self, event: dict) -> None:
        kind, details = event.get("method"), event.get("params", {})
        logged = kind == "Log.entryAdded" and details["entry"]["level"] != "verbose"
        if logged or kind in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
            self.complaints.append(details)
        elif kind == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"][:200])
