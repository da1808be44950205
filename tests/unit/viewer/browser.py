"""A headless Chromium, driven by its remote debugging protocol over two pipes."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Self

#: None where this machine has no browser.
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page of a browser of its own.

    Args:
        profile: An empty folder for what the browser keeps.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        (their_input, ours), (answers, theirs) = os.pipe(), os.pipe()
        options = "--headless --no-sandbox --disable-gpu --remote-debugging-pipe --window-size=1500,950"
        # Where the browser has its pipes is fixed: descriptors 3 and 4.
        command = f'exec "$0" {options} --user-data-dir="$1" about:blank 3<&{their_input} 4>&{theirs}'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", command, CHROMIUM, str(profile)],
            pass_fds=(their_input, theirs),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_input)
        os.close(theirs)
        self._orders, self._answers = os.fdopen(ours, "wb", 0), os.fdopen(answers, "rb")
        self._number, self._page = 0, {}
        [page] = [each for each in self._ask("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self._ask("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._page = {"sessionId": attached["sessionId"]}

    def open(self, page: Path, place: str = "") -> None:
        """Open a file, and wait until it says that it is ready."""
        self._ask("Page.navigate", url=f"{page.resolve().as_uri()}{place}")
        self.wait("document.body?.dataset.ready !== undefined")

    def run(self, script: str) -> Any:
        """Evaluate an expression on the page; wait for it where it is a promise."""
        wanted = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self._ask("Runtime.evaluate", **wanted)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + seconds
        while not self.run(f"!!({condition})"):
            assert time.monotonic() < end, condition
            time.sleep(0.02)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        order = {"id": self._number, "method": method, "params": params} | self._page
        self._orders.write(json.dumps(order).encode() + b"\0")
        while True:
            message = bytearray()
            while (letter := self._answers.read(1)) != b"\0":
                assert letter, "the browser has ended"
                message += letter
            answer = json.loads(message)
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._orders.close()
        self._answers.close()
