"""What a session leaves behind, if asked: navigators, answers, the motion. It is patient data."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .navigators import Navigator
from .pose_job import Found
from .session_options import SessionOptions

logger = logging.getLogger(__name__)

POLL_S = 0.2
MOST_WAITING = 64  # navigators; where a disk is slower, what is newest is not written


class SessionFolder:
    """Writes ``FOLDER/DATE_TIME_session_N/``, mode 0700, in a thread of its own.

    ``navigator_0000.nii.gz`` and so on; ``answers.jsonl``, a line for each as it was sent;
    ``options.json``; at the end ``motion.tsv``, ``motion.png`` and ``report.html``. What cannot be
    written (a full disk) is logged, and never keeps an answer back.
    """

    def __init__(self, parent: Path, number: int) -> None:
        name = time.strftime(f"%Y%m%d_%H%M%S_session_{number}")
        self.path = parent / name
        self._tasks: queue.Queue[Callable[[], None]] = queue.Queue(MOST_WAITING)
        self._over = threading.Event()
        self._records: list[dict[str, Any]] = []  # of navigators, for the motion
        self._answers: list[dict[str, Any]] = []
        self._reason = ""
        self.failures = 0
        # no daemon: a service that ends while a session is open writes the rest first. It has to
        # wait for it: what is imported after the main thread's end fails
        self._thread = threading.Thread(target=self._work, name=name)

    def started(self, options: SessionOptions) -> None:
        self._put(lambda: self._begin(options))
        self._thread.start()

    def answered(
        self, navigator: Navigator | None, found: Found | None, answer: dict[str, Any]
    ) -> None:
        self._put(lambda: self._note(navigator, found, answer))
        if navigator is not None:
            self._put(lambda: self._keep(navigator))

    def ended(self, reason: str) -> None:
        self._reason = reason
        self._over.set()

    @property
    def writing(self) -> bool:
        """Whether the thread runs: from the session's start until all is written."""
        return self._thread.is_alive()

    def wait(self, timeout_s: float) -> None:
        """Wait until everything is written."""
        if self.writing:
            self._thread.join(timeout_s)

    def _put(self, task: Callable[[], None]) -> None:
        try:
            self._tasks.put_nowait(task)
        except queue.Full:
            self._failed("the disk is too slow: something was not written")

    def _work(self) -> None:
        while True:
            try:
                task = self._tasks.get(timeout=POLL_S)
            except queue.Empty:
                if self._over.is_set():
                    break
                continue
            self._try(task)
        self._try(lambda: self._conclude(self._reason))

    def _try(self, task: Callable[[], None]) -> None:
        try:
            task()
        except Exception as error:  # a full disk, a folder that was taken away
            self._failed(f"{type(error).__name__}: {error}")

    def _failed(self, message: str) -> None:
        self.failures += 1
        if self.failures in (1, 10, 100, 1000):
            logger.error("%s: not written, for the %d. time: %s", self.path, self.failures, message)

    def _begin(self, options: SessionOptions) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.mkdir(mode=0o700)
        os.chmod(self.path, 0o700)  # whatever the umask
        (self.path / "options.json").write_text(json.dumps(asdict(options), indent=2) + "\n")

    def _note(
        self, navigator: Navigator | None, found: Found | None, answer: dict[str, Any]
    ) -> None:
        self._answers.append(answer)
        if navigator is not None:
            self._records.append(_record(navigator, found, answer))
        with open(self.path / "answers.jsonl", "a") as file:
            file.write(json.dumps(answer) + "\n")

    def _keep(self, navigator: Navigator) -> None:
        from ..files import write_nifti  # torch comes with it

        path = self.path / f"navigator_{navigator.number:04d}.nii.gz"
        write_nifti(path, navigator.values, navigator.affine)

    def _conclude(self, reason: str) -> None:
        if not self.path.exists():
            return
        # torch and matplotlib take a while: not before the session has ended
        from ..files import replacing, write_text
        from .motion_files import motion_table, series_motion
        from .motion_picture import draw_motion
        from .session_report import session_report

        picture = None
        if self._records:
            motion = series_motion(self.path.name, self._records)
            write_text(self.path / "motion.tsv", motion_table(motion))
            if motion.first_pose is not None:
                picture = self.path / "motion.png"
                with replacing(picture) as partial:
                    draw_motion(partial, motion)
        page = session_report(self.path.name, self._answers, picture, reason)
        write_text(self.path / "report.html", page)
        logger.info("%s: %d answers; %s", self.path, len(self._answers), reason)


def _record(navigator: Navigator, found: Found | None, answer: dict[str, Any]) -> dict[str, Any]:
    """A navigator as inference would tell of it: what was found, not what was predicted."""
    if found is None:
        return {
            "status": answer["status"],
            "confidence": 0.0,
            "head_to_world": None,
            "time_s": navigator.received_s,
        }
    return {
        "status": found.status,
        "confidence": found.confidence,
        "head_to_world": found.head_to_world,
        "time_s": navigator.received_s,
        "rotation_sd_deg": found.rotation_sd_deg,
        "translation_sd_mm": found.translation_sd_mm,
    }
