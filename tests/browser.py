"""Opens a page in headless Chromium, over the DevTools protocol, and reports what a reader would see and meet.

Images are scrolled to, videos are played, and every request, console error and uncaught exception is kept:

    with Browser() as browser, serve(folder) as url:
        report = browser.open_page(f"{url}/index.html")
        assert report.console_errors == []
"""

from __future__ import annotations

import asyncio
import base64
import functools
import http.server
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tornado.websocket import WebSocketClientConnection, websocket_connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_SECONDS, PAGE_SECONDS = 60.0, 60.0
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # Chromium refuses to sandbox for root, which containers run as
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--mute-audio",
    "--autoplay-policy=no-user-gesture-required",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no page reaches a network
    "--remote-debugging-port=0",  # a free one, written to DevToolsActivePort
)

# Every image is brought into view, since pages load them lazily.
_LOOK = """(async () => {
  for (const element of document.querySelectorAll("img, video, svg, table")) {
    element.scrollIntoView();
    await new Promise(requestAnimationFrame);
  }
  const posters = [...document.querySelectorAll("video[poster]")].map((video) => {
    const image = new Image();
    image.src = video.poster;
    return image;
  });
  const images = [...document.images, ...posters];
  await Promise.all(images.map((image) => image.decode().catch(() => null)));
  return images.map((image) => ({ src: image.src, width: image.naturalWidth, height: image.naturalHeight }));
})()"""

# A page may give a video another source once it knows its server, so a broken-off play() is no fault by itself.
_PLAY = """(async (seconds, limit) => {
  const played = [];
  for (const video of [...document.querySelectorAll("video")].slice(0, limit)) {
    let source = null, first = -1, last = -1;  // frames count, not the clock: they are what is seen
    const begin = () => { if (source !== video.currentSrc) [source, first] = [video.currentSrc, video.currentTime]; };
    const look = (_, frame) => {
      if (source === video.currentSrc) last = Math.max(last, frame.mediaTime);
      video.requestVideoFrameCallback(look);
    };
    video.addEventListener("playing", begin);
    video.requestVideoFrameCallback(look);
    video.scrollIntoView();
    video.muted = true;
    let problem = null;
    video.play().catch((error) => { if (error.name !== "AbortError") problem = String(error); });
    const until = performance.now() + 1000 * seconds;
    while (performance.now() < until && !problem && !(first >= 0 && last - first >= 0.15)) {
      await new Promise((done) => setTimeout(done, 20));
    }
    video.pause();
    if (video.error) problem = video.error.message || String(video.error.code);
    played.push({
      src: video.getAttribute("src"), first, advanced: Math.max(0, last - first), problem,
      width: video.videoWidth, height: video.videoHeight, duration: video.duration || 0, current: video.currentTime,
    });
  }
  return played;
})(%f, %d)"""

# JavaScript whose value is the texts of all tooltips of charts, after they had time to appear.
TOOLTIPS = """(async () => {
  await new Promise((done) => setTimeout(done, 300));
  const found = [];
  const walk = (root) => { for (const e of root.querySelectorAll("*")) {
    if (e.matches(".bk-tooltip-content")) found.push(e.innerText);
    if (e.shadowRoot) walk(e.shadowRoot);
  } };
  walk(document);
  return found;
})()"""


@dataclass(frozen=True, kw_only=True)
class Image:
    """An <img> of the page, or a video's poster: width and height are the file's own, 0 where it cannot be shown."""

    src: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Video:
    """A <video> of the page after it was played, muted."""

    src: str
    first: float  # s, where it stood when it began; −1 when it never did
    advanced: float  # s, how far the frames that were shown came from there
    problem: str | None
    width: int  # pixels, 0 where no frame could be decoded
    height: int
    duration: float  # s
    current: float  # s, where it stands when left


@dataclass(frozen=True, kw_only=True)
class PageReport:
    """What became of an opened page."""

    url: str
    title: str
    text: str  # as a reader sees it
    console_errors: list[str]  # errors and warnings of the console, uncaught exceptions, failed and blocked loads
    requests: list[
        str
    ]  # every URL that was asked for, the page's own first; data: and blob: URLs, which the page itself holds, left out
    images: list[Image]
    videos: list[Video]
    width: int  # pixels that the page is wide: more than the window's where a reader must scroll sideways
    answers: dict[str, Any]  # what the expressions in `ask` came to


@dataclass(kw_only=True)
class _Log:
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """A Chromium of its own: its own profile in a temporary folder, ended with the block."""

    def __init__(self) -> None:
        self._program = next((path for name in NAMES if (path := shutil.which(name))), None)
        if self._program is None:
            pytest.skip("no Chromium is installed: apt-get install chromium")

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        assert self._program is not None
        self._errors = Path(self._profile.name, "stderr").open("w+b")
        self._process = subprocess.Popen(
            [self._program, *ARGUMENTS, f"--user-data-dir={self._profile.name}/profile", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            start_new_session=True,  # so that its children end with it
        )
        try:
            self._endpoint = self._wait_for_endpoint()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)
        self._errors.close()
        self._profile.cleanup()

    def open_page(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        is_dark: bool = False,
        play_seconds: float = 3.0,
        max_videos: int = 200,
        pointer: str | None = None,
        ask: Mapping[str, str] | None = None,
        screenshot: Path | None = None,
    ) -> PageReport:
        """Return what became of the page at `url`, in a window of its own of `width` × `height` pixels.

        Each of the first `max_videos` videos is played until it has advanced by 0.15 s, for `play_seconds` at most.
        `pointer` is a JavaScript expression for the [x, y] to which the mouse then moves. `ask` are expressions by
        name, evaluated last, promises awaited; `screenshot` is the file of a PNG of the whole page, taken first.
        """
        opening = self._open_page(
            url,
            metrics={"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
            is_dark=is_dark,
            play=_PLAY % (play_seconds, max_videos),
            pointer=pointer,
            ask=ask or {},
            screenshot=screenshot,
        )
        return asyncio.run(opening)

    async def _open_page(
        self,
        url: str,
        *,
        metrics: dict[str, Any],
        is_dark: bool,
        play: str,
        pointer: str | None,
        ask: Mapping[str, str],
        screenshot: Path | None,
    ) -> PageReport:
        log = _Log()
        connection = _Connection(await websocket_connect(self._endpoint, max_message_size=1 << 28), log)
        target = await connection.send("Target.createTarget", {"url": "about:blank"})
        attached = await connection.send("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        page = functools.partial(connection.send, session=attached["sessionId"])
        try:
            for domain in ("Page", "Runtime", "Network", "Log"):
                await page(f"{domain}.enable")
            await page("Emulation.setDeviceMetricsOverride", metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
            await page("Emulation.setEmulatedMedia", {"features": [scheme]})
            loaded = connection.expect("Page.loadEventFired")
            answer = await page("Page.navigate", {"url": url})
            if "errorText" in answer:
                raise RuntimeError(f"{url}: {answer['errorText']}")
            await asyncio.wait_for(loaded, PAGE_SECONDS)

            async def evaluate(expression: str) -> Any:
                asked = {"expression": expression, "awaitPromise": True, "returnByValue": True, "userGesture": True}
                result = await page("Runtime.evaluate", asked)
                if "exceptionDetails" in result:
                    raise RuntimeError(f"{expression[:80]}: {result['exceptionDetails']}")
                return result["result"].get("value")

            images = await evaluate(_LOOK)
            if screenshot is not None:
                shot = await page("Page.captureScreenshot", {"captureBeyondViewport": True})
                screenshot.write_bytes(base64.b64decode(shot["data"]))
            videos = await evaluate(play)
            if pointer is not None:
                x, y = await evaluate(pointer)
                for place in (x - 3, x):
                    await page("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": place, "y": y})
            return PageReport(
                url=url,
                title=await evaluate("document.title"),
                text=await evaluate("document.body.innerText"),
                images=[Image(**image) for image in images],
                videos=[Video(**video) for video in videos],
                width=await evaluate("document.documentElement.scrollWidth"),
                answers={name: await evaluate(expression) for name, expression in ask.items()},
                console_errors=list(log.errors),
                requests=list(log.requests),
            )
        finally:
            await connection.send("Target.closeTarget", {"targetId": target["targetId"]})
            connection.close()

    def _wait_for_endpoint(self) -> str:
        """Return the WebSocket address that Chromium writes down once it listens."""
        written = Path(self._profile.name, "profile", "DevToolsActivePort")
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                break
            lines = written.read_text().split("\n") if written.exists() else []
            if len(lines) == 2:
                return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
            time.sleep(0.02)
        self._errors.seek(0)
        said = self._errors.read()[-2000:].decode(errors="replace")
        raise RuntimeError(f"{self._program} did not start (exit code {self._process.poll()}):\n{said}")


class _Connection:
    """Commands and their answers over one WebSocket; what pages report goes to the log."""

    def __init__(self, socket: WebSocketClientConnection, log: _Log) -> None:
        self._socket, self._log = socket, log
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._expected: dict[str, asyncio.Future[None]] = {}
        self._reading = asyncio.ensure_future(self._read())

    async def send(self, method: str, params: Mapping[str, Any] | None = None, *, session: str = "") -> dict[str, Any]:
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        message = {"id": number, "method": method, "params": dict(params or {})}
        await self._socket.write_message(json.dumps(message | ({"sessionId": session} if session else {})))
        return await asyncio.wait_for(answer, PAGE_SECONDS)

    def expect(self, event: str) -> asyncio.Future[None]:
        """Return what is done when `event` next comes."""
        self._expected[event] = asyncio.get_running_loop().create_future()
        return self._expected[event]

    def close(self) -> None:
        self._reading.cancel()
        self._socket.close()

    async def _read(self) -> None:
        while (text := await self._socket.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if answer.done():
                    continue
                if "error" in message:
                    answer.set_exception(RuntimeError(str(message["error"])))
                else:
                    answer.set_result(message["result"])
            else:
                self._note(message["method"], message["params"])
        for answer in self._answers.values():
            answer.set_exception(RuntimeError("Chromium closed the connection"))

    def _note(self, event: str, params: dict[str, Any]) -> None:
        waiting = self._expected.pop(event, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)
        if event == "Network.requestWillBeSent":
            url = params["request"]["url"]
            if not url.startswith(("data:", "blob:")):
                self._log.requests.append(url)
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self._log.errors.append(f"{details['text']} {details.get('exception', {}).get('description', '')}")
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert", "warning"):
            self._log.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in params["args"]))
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            entry = params["entry"]
            self._log.errors.append(f"{entry['text']} {entry.get('url', '')}".strip())


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: the browser's report names what failed."""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of loopback, as `python -m http.server` does; yield its URL."""
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def outside(report: PageReport) -> list[str]:
    """Return the requests of a page that left its own folder."""
    folder = report.url.rpartition("/")[0] + "/"
    return [url for url in report.requests if not url.startswith(folder) or ".." in url]
