"""A headless Chromium, spoken to in its DevTools protocol through a pipe.

`--remote-debugging-pipe` needs neither a port nor a websocket: messages are JSON that end with a
zero byte, read by the browser from file 3 and written by it to file 4.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time

_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)

# Text with less contrast than 4.5 (WCAG 2) to the first background behind it that is one.
FAINT = """
(() => {
  // Colours that fade in on loading are at their ends.
  document.getAnimations().forEach(one => one.effect.getTiming().iterations < 9 && one.finish());
  const light = c => {
    const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
      .map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = e => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(c)) return c;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => e.getClientRects().length && getComputedStyle(e).visibility !== 'hidden')
    .filter(e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim()))
    .filter(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    })
    .map(e => `faint: ${e.tagName} ${e.className}, ${e.textContent.trim().slice(0, 30)}`);
})()
"""


def find_chromium():
    """Return the browser's program, None where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


class Browser:
    """A browser with one tab; what happens in it is kept in ``events``."""

    def __init__(self, program, profile, timeout=240.0):
        self.timeout, self.events, self._last, self._unread = timeout, [], 0, b""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser wants its ends as files 3 and 4, wherever they are here: a shell moves them.
        wiring = f'exec "$0" "$@" 3<&{to_browser} 4>&{from_browser}'
        self._process = subprocess.Popen(
            ["bash", "-c", wiring, program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        tabs = self._send("Target.getTargets")["targetInfos"]
        tab = next(found["targetId"] for found in tabs if found["type"] == "page")
        attached = self._send("Target.attachToTarget", targetId=tab, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Send a command to the tab and return its result."""
        return self._send(method, self._session, **parameters)

    def _send(self, method, session=None, **parameters):
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        answer = self._wait(lambda found: found.get("id") == self._last)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _wait(self, wanted):
        """Return the first message that is wanted, and keep all others."""
        until = time.monotonic() + self.timeout
        while True:
            while b"\0" in self._unread:
                line, _, self._unread = self._unread.partition(b"\0")
                message = json.loads(line)
                if wanted(message):
                    return message
                self.events.append(message)
            left = until - time.monotonic()
            ready = left > 0.0 and select.select([self._read], [], [], left)[0]
            part = os.read(self._read, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._unread += part

    def open(self, url, width, height=800, scale=1.0, dark=False):
        """Show a page in a window of so many CSS pixels and wait until all of it is there."""
        self.events.clear()
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 600,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Page.navigate", url=url)
        loaded = self._wait(lambda found: found.get("method") == "Page.loadEventFired")
        self.events.append(loaded)

    def evaluate(self, expression):
        """Return the value of a JavaScript expression in the page."""
        found = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def happened(self, method):
        """Return the parameters of all events of a kind since the page was opened."""
        return [found["params"] for found in self.events if found.get("method") == method]

    def screenshot(self, path, whole=False):
        """Write what is to be seen, or the whole page, as PNG."""
        found = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self):
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
