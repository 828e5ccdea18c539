"""An HTTP server on the loopback interface that injects faults."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class FaultyServer:
    """Serves a folder; `faults[path]` lists the faults of the next requests for a path, in order.

    Faults: `503`, `404`, `403` (a status), `cut` (half of the body), `wrong` (a byte changed), `hang` (no byte until
    the client gives up), `slow` (in small pieces), `drop` (the connection closes without an answer).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.faults: dict[str, deque[str]] = defaultdict(deque)
        self.requests: Counter[str] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, owner: FaultyServer, *arguments: object) -> None:
        self._owner = owner
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        owner = self._owner
        owner.requests[self.path] += 1
        planned = owner.faults[self.path]
        fault = planned.popleft() if planned else ""
        path = owner.root / self.path.lstrip("/")
        if fault == "drop":
            self.connection.close()
            return
        if fault.isdigit() or not path.is_file():
            self.send_error(int(fault) if fault else 404)
            return
        data = bytearray(path.read_bytes())
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "hang":
            time.sleep(3)
            return
        if fault == "wrong":
            data[len(data) // 2] ^= 1
        pieces = [data[: len(data) // 2]] if fault == "cut" else [data]
        if fault == "slow":
            step = max(1, len(data) // 20)
            pieces = [data[at : at + step] for at in range(0, len(data), step)]
        for piece in pieces:
            try:
                self.wfile.write(piece)
            except OSError:
                return
            if fault == "slow":
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty_server(root: Path) -> Iterator[FaultyServer]:
    """Serve `root` while the context is open."""
    server = FaultyServer(root)
    try:
        yield server
    finally:
        server.close()
