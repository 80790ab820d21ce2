"""The server at the scanner: one session at a time, which ends without ending the service."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
from collections.abc import Callable

from .connections import turn_away
from .listeners import Listener
from .pose_job import Found, Job
from .pose_worker import LONGEST_S, PoseWorker, Target
from .scan_session import ScanSession
from .session_options import SessionOptions

logger = logging.getLogger(__name__)

POLL_S = 0.2
GRACE_S = 0.5


class ScanService:
    """Listens on ``host``:``port`` and serves one client after the other.

    A second client during a session is told "busy" and let go.

    Parameters
    ----------
    target : what finds heads in a process of its own (``pose_worker``)
    options : of a session that does not say otherwise
    listeners : makes those of a session from its number
    """

    def __init__(
        self,
        target: Target,
        host: str = "127.0.0.1",
        port: int = 9002,
        options: SessionOptions | None = None,
        listeners: Callable[[int], tuple[Listener, ...]] | None = None,
        longest_s: float = LONGEST_S,
    ) -> None:
        self.options = options or SessionOptions()
        self.listeners = listeners or (lambda number: ())
        self.worker = PoseWorker(target, self._deliver, longest_s)
        self.session: ScanSession | None = None
        self._numbers = itertools.count(1)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket = socket.create_server((host, port), backlog=8)
        self._socket.settimeout(POLL_S)

    @property
    def address(self) -> tuple[str, int]:
        """Where the service listens: the port that was found where 0 was asked for."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def serve(self) -> None:
        """Serve until ``stop``; the open session is told, and everything is closed."""
        self.worker.start()
        try:
            while not self._stopping.is_set():
                try:
                    connection, peer = self._socket.accept()
                except TimeoutError:
                    continue
                except OSError as error:  # such as too many open files: the session goes on
                    logger.error("a client could not be accepted: %s", error)
                    self._stopping.wait(POLL_S)
                    continue
                self._welcome(connection, f"{peer[0]}:{peer[1]}")
        finally:
            self._socket.close()
            if self.session is not None and self._thread is not None:
                self.session.stop("the service is shutting down")
                self._thread.join(10)
            self.worker.close()

    def stop(self) -> None:
        """End ``serve`` soon; may be called from a signal handler."""
        self._stopping.set()

    def _welcome(self, connection: socket.socket, peer: str) -> None:
        if self._thread is not None:
            # a client that has lost its connection comes back at once: let the old session end
            self._thread.join(GRACE_S)
        if self._thread is not None and self._thread.is_alive():
            logger.warning("%s: busy", peer)
            threading.Thread(target=turn_away, args=(connection,), daemon=True).start()
            return
        number = next(self._numbers)
        logger.info("session %d: %s", number, peer)
        session = ScanSession(number, connection, self.worker, self.options, self.listeners(number))
        self.session = session
        self._thread = threading.Thread(target=self._run, args=(session,), daemon=True)
        self._thread.start()

    def _run(self, session: ScanSession) -> None:
        try:
            session.run()
        except Exception:  # a fault of one session must not end the service
            logger.exception("session %d failed", session.number)
            with contextlib.suppress(OSError):
                session.connection.close()

    def _deliver(self, job: Job, found: Found | None) -> None:
        session = self.session
        if session is not None and session.number == job.session:
            session.found(job, found)
