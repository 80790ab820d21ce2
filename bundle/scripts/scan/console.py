"""A page on this machine that shows a running session: read-only, without any outside resource."""

from __future__ import annotations

import base64
import io
import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .navigators import Navigator
from .patient import world_to_patient
from .pose_job import Found
from .prescription_picture import plane_image, views
from .session_options import SessionOptions

logger = logging.getLogger(__name__)

PAGE = Path(__file__).with_name("console.html")
TRACE = 200  # navigators that the trace of motion goes back
KEEP_ALIVE_S = 10.0
OWN_NAMES = ("127.0.0.1", "localhost", "[::1]")


class Console:
    """Serves ``http://127.0.0.1:PORT/``, and what it shows as server-sent events.

    A listener of sessions: what it is told is copied, and drawn in a thread of its own.
    """

    def __init__(self, port: int) -> None:
        self._changed = threading.Condition()
        self._state: dict[str, Any] = {"session": "waiting", "trace": [], "done": []}
        self._version, self._closed = 0, False
        self._fresh: tuple[Navigator, Any] | None = None
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        for run in (self._server.serve_forever, self._draw):
            threading.Thread(target=run, name=f"console: {run.__name__}", daemon=True).start()

    def started(self, options: SessionOptions) -> None:
        self._show({
            "session": "running", "plane": options.plane, "deadline_ms": options.deadline_ms,
            "trace": [], "done": [], "planes": None, "answer": None,
        })  # fmt: skip

    def answered(
        self, navigator: Navigator | None, found: Found | None, answer: dict[str, Any]
    ) -> None:
        pose = answer["head_to_patient_lps"]
        with self._changed:
            trace, done = list(self._state["trace"]), list(self._state["done"])
        point = {"at_s": time.time(), "status": answer["status"], "place": None}
        if pose is not None:
            matrix = np.array(pose)
            point["place"] = [*matrix[:3, 3].round(2).tolist(), *_rotation_deg(matrix)]
        given = answer["slice"]
        if given is not None:
            # a new stack begins with none done
            done = [*done, given["number"]] if given["order"] else [given["number"]]
        self._show({"answer": answer, "trace": [*trace, point][-TRACE:], "done": done})
        if navigator is not None and pose is not None:
            with self._changed:
                self._fresh = navigator, world_to_patient(np.array(pose))
                self._changed.notify_all()

    def ended(self, reason: str) -> None:
        self._show({"session": "ended", "reason": reason})

    def close(self) -> None:
        """Stop serving."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def next_state(self, seen: int) -> tuple[int, dict[str, Any]] | None:
        """Version and content of what is to be shown, once it is newer; None if it stays."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen or self._closed, KEEP_ALIVE_S)
            return None if self._version == seen else (self._version, dict(self._state))

    @property
    def closed(self) -> bool:
        return self._closed

    def _show(self, changes: dict[str, Any]) -> None:
        with self._changed:
            self._state = {**self._state, **changes}
            self._version += 1
            self._changed.notify_all()

    def _draw(self) -> None:
        """Draw the newest navigator, and none that is older."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._fresh is not None or self._closed)
                if self._closed:
                    return
                assert self._fresh is not None
                (navigator, head_to_world), self._fresh = self._fresh, None
            try:
                planes = head_planes(navigator, head_to_world)
            except Exception:  # a picture must not end the page
                logger.exception("navigator %d could not be drawn", navigator.number)
                continue
            self._show({"planes": planes, "planes_of": navigator.number})


def head_planes(navigator: Navigator, head_to_world: Any) -> dict[str, str]:
    """Sagittal, coronal and axial plane of the head as PNG files, for addresses "data:"."""
    values = navigator.values
    some = values[np.isfinite(values) & (values != 0)]
    low, high = np.percentile(some, [0.5, 99.5]) if some.size else (0.0, 1.0)
    found = {}
    for view in views(head_to_world, (0.0, 0.0, 0.0))[:3]:
        picture = np.nan_to_num(plane_image(values, navigator.affine, view), nan=low)
        grey = np.clip((picture - low) / max(high - low, 1e-6), 0, 1) * 255
        file = io.BytesIO()
        Image.fromarray(grey.astype(np.uint8)).save(file, "PNG", compress_level=1)
        text = base64.b64encode(file.getvalue()).decode()
        found[view.plane] = f"data:image/png;base64,{text}"
    return found


def _rotation_deg(matrix: Any) -> list[float]:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(matrix[:3, :3]).as_rotvec(degrees=True).round(2).tolist()


def _handler(console: Console) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.headers.get("Host", "").rsplit(":", 1)[0]
            if name not in OWN_NAMES:  # a page of somebody else's that was led here
                self.send_error(403, "this page is for this machine alone")
            elif self.path == "/":
                self._send(PAGE.read_bytes(), "text/html; charset=utf-8")
            elif self.path == "/events":
                self._events()
            else:
                self.send_error(404)

        def _head(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.send_header(
                "Content-Security-Policy",
                "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
                "img-src data:; connect-src 'self'",
            )

        def _send(self, content: bytes, kind: str) -> None:
            self._head(kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _events(self) -> None:
            self._head("text/event-stream")
            self.end_headers()
            seen = -1
            try:
                while not console.closed:
                    fresh = console.next_state(seen)
                    if fresh is None:
                        self.wfile.write(b": still here\n\n")
                        continue
                    seen, state = fresh
                    self.wfile.write(f"data: {json.dumps(state)}\n\n".encode())
                    self.wfile.flush()
            except OSError:
                pass  # the page was closed

        def log_message(self, *_: Any) -> None:
            """Requests are not logged."""

    return Handler
