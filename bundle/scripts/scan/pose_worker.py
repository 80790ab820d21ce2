"""A process of its own for the network, always on the newest volume, started anew when it dies."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from .pose_job import Found, Job

logger = logging.getLogger(__name__)

# Threads of OpenMP that wait for the others spin by default: with busy cores one inference took
# 15 s in place of half a second. This is for LLVM's and Intel's library; of GNU's no policy is
# chosen here, so that `process.sleep_while_waiting` acts in the process (docs/deployment.md).
PATIENT_THREADS = {"KMP_BLOCKTIME": "0"}
LONGEST_S = 30.0  # a volume that takes longer has hung the process
LOADING_S = 300.0
LONGEST_PAUSE_S = 10.0


@dataclass(frozen=True)
class Broken:
    """The target failed before it was ready, and why."""

    message: str


Target = Callable[[Connection], None]
Deliver = Callable[[Job, Found | None], Any]


class PoseWorker:
    """Runs ``target(link)`` in a process; it sends "ready", then a Found for every Job it gets.

    Jobs are never queued: one is worked on, one may wait, and a newer one takes its place.

    Parameters
    ----------
    target : what runs in the process; can be pickled
    deliver : called from a thread with each job and what was found, None where the process died
    longest_s : the process is killed where a volume takes longer
    """

    def __init__(self, target: Target, deliver: Deliver, longest_s: float = LONGEST_S) -> None:
        self.target, self.deliver, self.longest_s = target, deliver, longest_s
        self.starts = 0
        self.failure = ""  # why the process has not become ready
        self._changed = threading.Condition()
        self._ready = self._closed = self._sending = False
        self._waiting: Job | None = None
        self._busy: tuple[Job, float] | None = None
        self._link: Connection | None = None
        self._process: Any = None
        self._threads = [
            threading.Thread(target=run, name=f"pose worker: {run.__name__}", daemon=True)
            for run in (self._watch, self._feed)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def ready(self) -> bool:
        """Whether the network is loaded and warm."""
        return self._ready

    @property
    def pid(self) -> int | None:
        """Of the process, None where there is none now."""
        process = self._process
        return None if process is None else process.pid

    def submit(self, job: Job) -> Job | None:
        """Look at a job as soon as may be; returns the one that waited, which is not looked at."""
        with self._changed:
            skipped, self._waiting = self._waiting, job
            self._changed.notify_all()
        return skipped

    def forget(self, session: int) -> None:
        """Do not look at the waiting job of a session that has ended."""
        with self._changed:
            if self._waiting is not None and self._waiting.session == session:
                self._waiting = None

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait for the network, at most so long; whether it is ready (else see ``failure``)."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._closed or self.failure, timeout_s)
            return self._ready

    def close(self) -> None:
        """End the process and the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._process is not None:
            self._process.kill()
        for thread in self._threads:
            thread.join(5)

    def _feed(self) -> None:
        """Hand the waiting job over as soon as the process is free."""
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._closed or (self._ready and self._waiting and not self._busy)
                )
                if self._closed:
                    return
                job, self._waiting, link = self._waiting, None, self._link
                assert job is not None
                assert link is not None
                self._busy, self._sending = (job, time.monotonic()), True
            # not under the lock: a process that stands still does not read
            with contextlib.suppress(OSError):
                link.send(job)
            with self._changed:
                self._sending = False
                self._changed.notify_all()

    def _watch(self) -> None:
        """Start the process, take what it finds, and start it again when it is gone."""
        failures = 0
        while not self._closed:
            process, link = self._begin()
            was_ready = False
            for item in self._received(process, link):
                if item == "ready":
                    was_ready, failures = True, 0
                    with self._changed:
                        self._ready, self.failure = True, ""
                        self._changed.notify_all()
                    continue
                if isinstance(item, Broken):
                    with self._changed:
                        self.failure = item.message
                        self._changed.notify_all()
                    break
                with self._changed:
                    busy, self._busy = self._busy, None
                    self._changed.notify_all()
                if busy is not None:
                    self._deliver(busy[0], item)
            self._end(process, link)
            if self._closed:
                return
            failures += not was_ready
            logger.warning(
                "the process of the network is gone: %s", self.failure or process.exitcode
            )
            pause_s = min(0.5 * 2**failures, LONGEST_PAUSE_S) if failures else 0.0
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause_s)

    def _begin(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(self.target, theirs), daemon=True)
        with _environment(PATIENT_THREADS):
            process.start()
        theirs.close()
        self.starts += 1
        with self._changed:
            self._process, self._link = process, ours
            if self._closed:
                process.kill()
        return process, ours

    def _received(self, process: Any, link: Connection) -> Iterator[Any]:
        """What comes from the process, until it is gone or has hung, in which case it is killed."""
        begun = time.monotonic()
        while not self._closed:
            try:
                if link in wait([link, process.sentinel], timeout=0.2):
                    yield link.recv()
                    continue
            except (EOFError, OSError):
                return
            if not process.is_alive():
                return
            with self._changed:
                since, most_s = begun, LOADING_S
                if self._ready:
                    since, most_s = (self._busy or (None, time.monotonic()))[1], self.longest_s
            if time.monotonic() - since > most_s:
                logger.error("the process of the network has hung for %.0f s: killed", most_s)
                return

    def _end(self, process: Any, link: Connection) -> None:
        process.kill()
        process.join()
        with self._changed:
            self._ready, self._link = False, None
            # what is being sent fails now; closed before that, its descriptor could be another's
            self._changed.wait_for(lambda: not self._sending)
            busy, self._busy = self._busy, None
        link.close()
        if busy is not None and not self._closed:
            self._deliver(busy[0], None)

    def _deliver(self, job: Job, found: Found | None) -> None:
        try:
            self.deliver(job, found)
        except Exception:  # the worker must go on, whatever a session did wrong
            logger.exception("what was found in navigator %d could not be delivered", job.number)


def _run(target: Target, link: Connection) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service ends its process itself
    try:
        target(link)
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            link.send(Broken(f"{type(error).__name__}: {error}"))


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables that a process started inside inherits; those that are set stay."""
    missing = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]
