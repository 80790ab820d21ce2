"""One client's session: reads its messages, answers every navigator in time, ends with it."""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from ismrmrd.image import Image

from .connections import prepare
from .listeners import Listener
from .mrd_images import ImageRefused
from .mrd_stream import (
    Config,
    Geometry,
    Ignored,
    Message,
    ProtocolError,
    Refused,
    Sender,
    messages,
)
from .navigators import Assembler, Navigator
from .pose_job import Found, Job
from .pose_worker import PoseWorker
from .session_options import SessionOptions
from .stack_session import StackSession

logger = logging.getLogger(__name__)

SPARE_S = 0.05  # before the deadline, for sending


class ScanSession:
    """Serves one connection.

    Parameters
    ----------
    number : of the session in this service
    connection : of the client; closed at the end
    worker : whose ``deliver`` hands this session's jobs to ``found``
    options : defaults of the session
    listeners : are told of every answer
    """

    def __init__(
        self,
        number: int,
        connection: socket.socket,
        worker: PoseWorker,
        options: SessionOptions,
        listeners: tuple[Listener, ...] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.number, self.connection, self.worker = number, connection, worker
        self.listeners, self.clock = listeners, clock
        self.stack = StackSession(options)
        self.reason = ""
        self._events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._open: dict[int, Navigator] = {}  # not answered yet, oldest first
        self._begun = self._listening = False
        self._count = 0
        self._assembler = Assembler(options.navigator_slices)
        self._sender = Sender(connection.sendall)

    def found(self, job: Job, found: Found | None) -> None:
        """From the worker: what is in a navigator; None where its process died over it."""
        self._events.put(("found", job.number, found))

    def stop(self, reason: str) -> None:
        """End the session, from any thread; the client is told."""
        self._events.put(("end", reason))

    def run(self) -> None:
        """Serve until the client ends, vanishes or errs, or ``stop``."""
        prepare(self.connection)
        reader = threading.Thread(target=self._read, name=f"session {self.number}", daemon=True)
        reader.start()
        try:
            self._serve()
        except OSError as error:
            self.reason = f"the client is gone: {error}"
        finally:
            self.worker.forget(self.number)
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)
            self.connection.close()
            reader.join(5)
            logger.info("session %d: %s", self.number, self.reason)
            if self._listening:
                for listener in self.listeners:
                    listener.ended(self.reason)

    def _read(self) -> None:
        """Messages to events; the time of arrival is that of the last byte."""
        try:
            with self.connection.makefile("rb") as stream:
                for message in messages(stream):
                    self._events.put(("message", message, self.clock()))
            self._events.put(("end", "closed by the client"))
        except ProtocolError as error:
            self._events.put(("error", f"no ISMRMRD session: {error}"))
        except (EOFError, OSError, ValueError) as error:
            self._events.put(("end", f"the client vanished: {error}"))
        except MemoryError as error:
            self._events.put(("error", f"too large a message: {error}"))

    def _serve(self) -> None:
        while True:
            for navigator in self._late():
                self._answer(navigator, None, self._why_late())
            try:
                event, *content = self._events.get(timeout=self._until_next())
            except queue.Empty:
                continue
            if event == "message":
                if not self._take(*content):
                    return
            elif event == "found":
                self._learn(*content)
            elif event == "error":
                self.reason = content[0]
                self._sender.message({"type": "error", "message": self.reason})
                self._sender.message(None)
                return
            else:
                self.reason = content[0]
                for navigator in list(self._open.values()):
                    self._answer(navigator, None, self.reason)
                with contextlib.suppress(OSError):
                    self._sender.message({"type": "end", "message": self.reason})
                    self._sender.message(None)
                return

    def _until_next(self) -> float | None:
        if not self._open:
            return None
        first = next(iter(self._open.values()))
        return max(first.received_s + self._deadline_s() - self.clock(), 0.0)

    def _deadline_s(self) -> float:
        deadline_s = self.stack.options.deadline_ms / 1000
        return deadline_s - min(SPARE_S, deadline_s / 4)

    def _late(self) -> list[Navigator]:
        now = self.clock()
        return [n for n in self._open.values() if now - n.received_s >= self._deadline_s()]

    def _why_late(self) -> str:
        if not self.worker.ready:
            return "the network is not ready"
        return f"no pose within {self.stack.options.deadline_ms:g} ms"

    def _take(self, message: Message, arrived_s: float) -> bool:
        """Take a message in; False where the session cannot go on."""
        if isinstance(message, Config):
            return self._configure(message)
        if isinstance(message, Geometry):
            self._take_geometry(message)
        elif isinstance(message, Ignored):
            logger.info("session %d: %s is not used", self.number, message.kind)
        else:
            self._begin()
            self._take_image(message, arrived_s)
        return True

    def _configure(self, config: Config) -> bool:
        text = config.text.strip("\x00 \n\r\t")
        if self._begun:
            problem = "a configuration after the first image"
        elif config.is_name and not text.startswith("{"):
            return True  # the name of a recipe, as Gadgetron has them: the defaults are meant
        else:
            try:
                self.stack = StackSession(
                    self.stack.options.changed(text) if text else self.stack.options
                )
                self._assembler.slices = self.stack.options.navigator_slices
                return True
            except ValueError as error:
                problem = str(error)
        self.reason = problem
        self._sender.message({"type": "error", "message": problem})
        self._sender.message(None)
        return False

    def _take_geometry(self, geometry: Geometry) -> None:
        options = self.stack.options
        if self._assembler.slices is None:
            self._assembler.slices = geometry.slices
        given, seen = options.patient_position, geometry.patient_position
        if given and seen and given != seen:
            logger.warning(
                "session %d: patient position %s in the configuration, %s in the header",
                self.number, given, seen,
            )  # fmt: skip

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = self._listening = True
        for listener in self.listeners:
            listener.started(self.stack.options)

    def _take_image(self, message: Image | Refused, arrived_s: float) -> None:
        try:
            if isinstance(message, Refused):
                raise ImageRefused(message.message)
            complete = self._assembler.add(message)
        except ImageRefused as error:
            self._refuse(str(error), arrived_s)
            return
        if complete is None:
            return
        values, affine, stamp = complete
        navigator = Navigator(self._count, values, affine, arrived_s, stamp)
        self._count += 1
        self.stack.started(navigator)
        self._open[navigator.number] = navigator
        tilt_deg = self.stack.options.tilt_deg
        skipped = self.worker.submit(Job(self.number, navigator.number, values, affine, tilt_deg))
        if skipped is not None and skipped.session == self.number and skipped.number in self._open:
            text = f"skipped: navigator {navigator.number} is newer"
            self._answer(self._open[skipped.number], None, text)

    def _refuse(self, reason: str, arrived_s: float) -> None:
        """An answer to what is no navigator: it is counted as one, and has no pose."""
        answer = {
            "type": "prescription",
            "navigator": self._count,
            "status": "no_pose",
            "head_to_patient_lps": None,
            "confidence": 0.0,
            "slice": None,
            "navigator_fov_centre_lps": None,
            "age_ms": None,
            "latency_ms": round((self.clock() - arrived_s) * 1000, 1),
            "message": f"refused: {reason}",
        }
        self._count += 1
        self._sender.message(answer)
        self._tell(None, None, answer)

    def _learn(self, number: int, found: Found | None) -> None:
        if found is None:
            if number in self._open:
                self._answer(self._open[number], None, "the process of the network died")
            return
        became = self.stack.learn(number, found)
        message = "unlike the track: the slice follows the track" if became == "refused" else ""
        if number in self._open:
            self._answer(self._open[number], found, message)

    def _answer(self, navigator: Navigator, found: Found | None, message: str) -> None:
        del self._open[navigator.number]
        answer = self.stack.answer(navigator, found, self.clock(), message)
        self._sender.message(answer)
        self._tell(navigator, found, answer)

    def _tell(
        self, navigator: Navigator | None, found: Found | None, answer: dict[str, Any]
    ) -> None:
        for listener in self.listeners:
            try:
                listener.answered(navigator, found, answer)
            except Exception:  # who looks on must not disturb
                logger.exception("session %d: a listener failed", self.number)
